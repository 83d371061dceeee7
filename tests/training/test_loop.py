"""The loop's promises: it learns, resumes bit for bit, stops before a bad gradient; the base stays frozen."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import tiny
from softprompt.base.packing import TokenRow
from softprompt.config import PrefixTuningConfig, TrainConfig
from softprompt.errors import TrainingError
from softprompt.evaluation.score import Scores, score, target_rows
from softprompt.listener import Listener, Report
from softprompt.methods.build import Material, build_method
from softprompt.methods.method import Method
from softprompt.prefix import Prefix
from softprompt.training.checkpoint import Checkpoint
from softprompt.training.loop import Outcome, TrainingRun, fit
from softprompt.training.schedule import Steps
from training.toy import KeysAndValues, examples, front, soft_prompt

TRAIN, VALIDATION = examples(48, 0), examples(21, 100)


def run(
    folder: Path,
    method: Method,
    *,
    rows: list[TokenRow] | None = None,
    evaluate: Callable[[], Scores] | None = None,
    resume: bool = False,
    stop_after: int | None = None,
    watch: Callable[[Report], None] = lambda report: None,
    **train: Any,
) -> tuple[Outcome, list[Report]]:
    reports: list[Report] = []

    def told(report: Report) -> None:
        reports.append(report)
        watch(report)

    settings = {"learning_rate": 0.5, "epochs": 4, "batch_size": 8, "checkpoint_every": 5} | train
    listener = Listener(step=told, stop=lambda: stop_after is not None and reports[-1].step >= stop_after)
    wanted = TrainingRun(
        method,
        target_rows(TRAIN.examples) if rows is None else rows,
        TrainConfig().model_copy(update=settings),
        1,
        folder / "checkpoint.safetensors",
        "this run",
        listener,
    )
    scorer = evaluate or (lambda: score(method.base, method.front(), VALIDATION))
    return fit(wanted, scorer, resume=resume), reports


def test_it_learns_and_keeps_the_best_state(tmp_path: Path) -> None:
    method = soft_prompt()
    outcome, reports = run(tmp_path, method, learning_rate=1.0)
    scored = [r for r in reports if r.scores is not None]
    assert outcome.best.accuracy is not None
    assert outcome.best.accuracy > (scored[0].scores.accuracy or 0) + 0.2  # type: ignore[union-attr]
    assert score(method.base, method.front(), VALIDATION) == outcome.best
    assert [r.step for r in scored if r.best][-1] == outcome.best_step


@pytest.mark.parametrize(
    ("optimizer", "reparametrisation"), [("adamw", "none"), ("adafactor", "none"), ("adamw", "residual")]
)
def test_a_run_cut_anywhere_resumes_to_the_same_bits(
    tmp_path: Path, optimizer: str, reparametrisation: str
) -> None:
    options: dict[str, Any] = {"reparametrisation": reparametrisation}
    whole = soft_prompt(**options)
    expected, _ = run(tmp_path / "whole", whole, optimizer=optimizer)
    for cut in (1, 7, 23):
        folder = tmp_path / f"cut-{cut}"
        run(folder, soft_prompt(**options), optimizer=optimizer, stop_after=cut)
        again = soft_prompt(seed=99, **options)
        outcome, reports = run(folder, again, optimizer=optimizer, resume=True)
        assert reports[0].step == cut + 1
        assert torch.equal(front(again), front(whole))
        assert (outcome.best, outcome.best_step) == (expected.best, expected.best_step)


def test_a_kill_between_checkpoints_repeats_the_lost_steps(tmp_path: Path) -> None:
    whole = soft_prompt()
    run(tmp_path / "whole", whole)

    class Killed(BaseException):
        pass

    killed, evaluations = soft_prompt(), []

    def evaluate() -> Scores:
        evaluations.append(0)
        if len(evaluations) == 4:  # the start and two epochs went well; steps 16 to 18 will be lost
            raise Killed
        return score(killed.base, killed.front(), VALIDATION)

    with pytest.raises(Killed):
        run(tmp_path / "killed", killed, evaluate=evaluate)
    again = soft_prompt(seed=5)
    _, reports = run(tmp_path / "killed", again, resume=True)
    assert reports[0].step == 16
    assert torch.equal(front(again), front(whole))


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    method = soft_prompt()
    first, _ = run(tmp_path, method)
    again = soft_prompt(seed=3)
    second, reports = run(tmp_path, again, resume=True)
    assert not reports
    assert second.best == first.best
    assert torch.equal(front(again), front(method))


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    method = soft_prompt()
    run(tmp_path, method, stop_after=2)
    path = tmp_path / "checkpoint.safetensors"
    other = TrainingRun(method, target_rows(TRAIN.examples), TrainConfig(), 1, path, "another run")
    with pytest.raises(TrainingError, match="another configuration"):
        fit(other, lambda: score(method.base, method.front(), VALIDATION), resume=True)


def test_the_clock_goes_on_over_a_resume(tmp_path: Path) -> None:
    started = time.monotonic()
    first, reports = run(tmp_path, soft_prompt(), stop_after=5)
    took = time.monotonic() - started
    assert 0 < reports[0].seconds <= reports[-1].seconds <= first.seconds <= took
    path = tmp_path / "checkpoint.safetensors"
    saved = Checkpoint.load(path)
    assert reports[-1].seconds <= saved.numbers["seconds"] <= first.seconds
    Checkpoint(saved.numbers | {"seconds": 1000.0}, saved.tensors).save(path)  # as if it had been a long one
    started = time.monotonic()
    whole, reports = run(tmp_path, soft_prompt(), resume=True)
    took = time.monotonic() - started
    assert 1000 < reports[0].seconds < reports[-1].seconds <= whole.seconds <= 1000 + took


def test_a_cut_off_checkpoint_is_refused_by_name(tmp_path: Path) -> None:
    run(tmp_path, soft_prompt(), stop_after=2)
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(TrainingError, match=r"checkpoint\.safetensors"):
        run(tmp_path, soft_prompt(), resume=True)


def test_nan_stops_with_the_last_good_state(tmp_path: Path) -> None:
    method, whole = soft_prompt(), soft_prompt()
    run(tmp_path / "whole", whole, epochs=1, schedule="constant", warmup=0.0)

    def evaluate() -> Scores:
        return score(method.base, method.front(), VALIDATION)

    def watch(report: Report) -> None:
        if report.step == 8:
            method.trainable_parameters()[0].data[0, 0] = math.nan

    outcome, _ = run(tmp_path, method, evaluate=evaluate, watch=watch, schedule="constant", warmup=0.0)
    assert outcome.ended == "diverged"
    assert "at step 9: the loss is nan" in outcome.error
    assert torch.equal(front(method), front(whole))


class Uphill:
    """A method whose gradient points the wrong way: its loss can only rise."""

    def __init__(self, method: Method) -> None:
        self._method = method

    def __getattr__(self, name: str) -> Any:
        return getattr(self._method, name)

    def front(self) -> Tensor:
        value = front(self._method)
        return 2 * value.detach() - value


def test_a_loss_that_runs_away_stops_the_run(tmp_path: Path) -> None:
    method = soft_prompt()
    start = front(method)
    outcome, _ = run(tmp_path, Uphill(method), learning_rate=1.5, epochs=9, schedule="constant")
    assert (outcome.ended, outcome.best_step) == ("diverged", 0)
    assert "the loss stayed above" in outcome.error
    assert torch.equal(front(method), start)


@pytest.mark.parametrize(("period", "ended"), [(10, "done"), (11, "diverged")])
def test_only_bad_losses_in_a_row_are_a_loss_that_runs_away(tmp_path: Path, period: int, ended: str) -> None:
    """A healthy run may be noisy: here all rows are bad but each tenth, and none of it is ended for that."""
    method = soft_prompt()
    with torch.no_grad():
        likely = method.base.next_logits([TokenRow((20,))], method.front())[0].argsort(descending=True)
    good, bad = (TokenRow((20, int(word)), 1) for word in (likely[0], likely[-1]))
    order = [place for step in range(40) for place in Steps(40, 1, 1, seed=1).batch(step)]
    rows = [good] * 40
    for step, place in enumerate(order):
        rows[place] = bad if step % period else good
    settings: dict[str, Any] = {"learning_rate": 5e-9, "batch_size": 1, "epochs": 1}
    outcome, reports = run(tmp_path, method, rows=rows, **settings)
    losses = [report.loss for report in reports[1:]]
    limit = max(losses[0], math.log(method.base.embedding.weight.shape[0]))
    assert [loss > limit for loss in losses] == [bool(step % period) for step in range(len(losses))]
    assert outcome.ended == ended
    assert outcome.steps == (40 if ended == "done" else 10)  # the tenth bad one in a row is not learnt from


def test_patience_stops_early(tmp_path: Path) -> None:
    method = soft_prompt()
    outcome, reports = run(tmp_path, method, evaluate=lambda: Scores(1, 1.0, (0, 0)), patience=2, epochs=9)
    assert outcome.ended == "early"
    assert reports[-1].step == 12  # two evaluations of six steps without gain
    assert outcome.best_step == 0


def test_resuming_a_run_that_stopped_early_or_ran_away_ends_it_at_once(tmp_path: Path) -> None:
    def bored() -> Scores:
        return Scores(1, 1.0, (0, 0))

    first, _ = run(tmp_path / "early", soft_prompt(), evaluate=bored, patience=2, epochs=9)
    again, reports = run(tmp_path / "early", soft_prompt(), evaluate=bored, patience=2, epochs=9, resume=True)
    assert (again.ended, again.steps, reports) == ("early", first.steps, [])
    wild: dict[str, Any] = {"learning_rate": 1.5, "epochs": 9, "schedule": "constant", "checkpoint_every": 4}
    first, _ = run(tmp_path / "wild", Uphill(soft_prompt()), **wild)
    again, reports = run(tmp_path / "wild", Uphill(soft_prompt()), resume=True, **wild)
    assert (again.ended, again.steps, reports) == ("diverged", first.steps, [])


def test_accumulation_gives_the_same_steps(tmp_path: Path) -> None:
    one, four = soft_prompt(), soft_prompt()
    run(tmp_path / "one", one, epochs=1)
    run(tmp_path / "four", four, epochs=1, accumulation=4)
    torch.testing.assert_close(one.front(), four.front(), rtol=1e-3, atol=1e-4)


def test_an_fp32_kv_prefix_learns_over_a_bf16_base_what_it_learns_over_an_fp32_one(tmp_path: Path) -> None:
    """Its masters stay fp32, so that steps smaller than bf16's rounding add up; only what is read is bf16."""
    moved: dict[torch.dtype, Tensor] = {}
    for dtype in (torch.float32, torch.bfloat16):
        config = PrefixTuningConfig(front="abcd")
        material = Material(lambda k: "", lambda name: torch.empty(0))
        method = build_method(config, tiny.base(dtype=dtype), material)
        start = sides(method)
        outcome, reports = run(tmp_path / str(dtype), method, learning_rate=1e-3, epochs=1, select="nll")
        assert (outcome.ended, outcome.best_step) == ("done", 6)
        assert reports[-1].scores is not None
        assert reports[0].scores is not None
        assert reports[-1].scores.nll < reports[0].scores.nll
        learnt = sides(method)
        assert learnt.dtype == torch.float32
        step = (learnt - start).abs()
        lost = step < start.abs() * torch.finfo(torch.bfloat16).eps / 2
        assert float(lost[step > 0].float().mean()) > 0.5  # in bf16 most of them would have been rounded away
        moved[dtype] = learnt - start
    plain, half = moved.values()
    assert float(functional.cosine_similarity(plain, half, dim=0)) > 0.9
    assert float(half.norm() / plain.norm()) == pytest.approx(1, abs=0.1)


def sides(method: Method) -> Tensor:
    """All keys and values of a prefix, as it stands."""
    found = method.front()
    assert isinstance(found, Prefix)
    return torch.cat([side.detach().flatten() for side in (*found.keys, *found.values)])


def test_no_byte_of_the_base_changes(tmp_path: Path) -> None:
    base = tiny.base()
    before = {name: p.detach().clone() for name, p in base.model.state_dict().items()}
    run(tmp_path, soft_prompt(), epochs=1)
    after = base.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(p.requires_grad or p.grad is not None for p in base.model.parameters())


def test_the_loss_is_the_mean_over_the_tokens_that_are_scored(tmp_path: Path) -> None:
    """A row's first token is none of them behind a KV prefix, where nothing expects it."""
    method = KeysAndValues(tiny.base(), [3, 4, 5])
    rows = [TokenRow((9, 10, 11), 0), TokenRow((5, 6, 7), 0)]
    with torch.no_grad():
        losses = method.base.nll(rows, method.front()).nll
    assert len(losses) == 4
    for parts in (1, 2):
        _, reports = run(tmp_path / str(parts), method, rows=rows, epochs=1, batch_size=2, accumulation=parts)
        assert reports[1].loss == pytest.approx(float(losses.mean()), rel=1e-5)
        method = KeysAndValues(tiny.base(), [3, 4, 5])
