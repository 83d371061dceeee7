"""Runs trained together end as they would alone, whatever they learn, how fast, and how the others end."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from softprompt.base.model import Batch
from softprompt.base.packing import TokenRow
from softprompt.config import TrainConfig
from softprompt.data.rows import Encoded
from softprompt.evaluation.score import Scores, score, target_rows
from softprompt.listener import Listener, Report
from softprompt.methods.method import Method
from softprompt.training.checkpoint import Checkpoint
from softprompt.training.loop import Outcome, TrainingRun, fit, fit_many
from training.toy import KeysAndValues, examples, soft_prompt

Reports = list[Report]
VALIDATION = [examples(21, 100), examples(15, 60, shift=1)]
TRAIN = [target_rows(examples(48, 0).examples), target_rows(examples(31, 200, shift=1).examples)]


def runs(folder: Path | None = None) -> list[TrainingRun]:
    """Prompts of many kinds, over two jobs and two bases; no two alike."""

    def run(number: int, job: int, method: Method, **train: Any) -> TrainingRun:
        settings = {
            "learning_rate": 0.25,
            "epochs": 3,
            "batch_size": 8,
            "checkpoint_every": 5,
            "select": "nll",
        }
        checkpoint = None if folder is None else folder / f"{number}.safetensors"
        config = TrainConfig().model_copy(update=settings | {"select": "nll"} | train)
        return TrainingRun(method, TRAIN[job], config, number, checkpoint, f"run {number}")

    return [
        run(0, 0, soft_prompt(0)),
        run(1, 0, soft_prompt(1, length=9), learning_rate=0.1, schedule="constant", clip=None),
        run(2, 1, soft_prompt(2, length=1), batch_size=5, evaluate_every=4),
        run(3, 1, KeysAndValues(tiny.base(), [40, 41, 42, 9, 7]), max_steps=7),
        run(4, 0, soft_prompt(4, reparametrisation="residual"), batch_size=6, accumulation=3),
        run(5, 1, soft_prompt(5, base=tiny.base(seed=1)), optimizer="adafactor"),
    ]


def scores_of(run: TrainingRun) -> Scores:
    job = next(n for n, rows in enumerate(TRAIN) if rows is run.rows)
    return score(run.method.base, run.method.front(), VALIDATION[job])


def alone(wanted: Sequence[TrainingRun], **options: Any) -> list[tuple[Outcome, Reports]]:
    """Every run by itself, and all it told."""
    found = []
    for run in wanted:
        told: Reports = []
        heard = replace(run, listener=replace(run.listener, step=told.append))
        outcome = fit(heard, lambda run=run: scores_of(run), **options)  # type: ignore[misc]
        found.append((outcome, told))
    return found


def together(
    wanted: Sequence[TrainingRun],
    watch: Callable[[int, Report], None] = lambda number, report: None,
    stop: Callable[[int], bool] = lambda number: False,
    **options: Any,
) -> list[tuple[Outcome, Reports]]:
    """All runs at once, and all they told."""
    told: list[Reports] = [[] for _ in wanted]

    def note(number: int, report: Report) -> None:
        told[number].append(report)
        watch(number, report)

    heard = [
        replace(run, listener=Listener(step=partial(note, number), stop=partial(stop, number)))
        for number, run in enumerate(wanted)
    ]
    outcomes = fit_many(heard, lambda numbers: [scores_of(wanted[n]) for n in numbers], **options)
    return list(zip(outcomes, told, strict=True))


def same(found: tuple[Outcome, Reports], expected: tuple[Outcome, Reports]) -> None:
    """Equal ends and equal steps on the way, to fp32's rounding."""
    (a, told), (b, expected_told) = found, expected
    assert (a.steps, a.best_step, a.ended, a.error) == (b.steps, b.best_step, b.ended, b.error)
    assert (a.best.accuracy, a.best.predictions) == (b.best.accuracy, b.best.predictions)
    assert a.best.nll == pytest.approx(b.best.nll, rel=1e-4)
    assert len(told) == len(expected_told)
    for x, y in zip(told, expected_told, strict=True):
        assert (x.step, x.total, x.tokens, x.learning_rate, x.best) == (
            y.step, y.total, y.tokens, y.learning_rate, y.best
        )  # fmt: skip
        assert x.loss == pytest.approx(y.loss, rel=1e-4, nan_ok=True)
        assert x.gradient_norm == pytest.approx(y.gradient_norm, rel=1e-3)
        assert (x.scores is None) == (y.scores is None)


def same_state(found: Method, expected: Method, tolerance: float = 1e-4) -> None:
    for name, tensor in expected.state().items():
        assert (found.state()[name] - tensor).norm() <= tolerance * tensor.norm()


@pytest.mark.parametrize("pass_tokens", [None, 1, 200])
def test_every_run_learns_what_it_learns_alone(pass_tokens: int | None) -> None:
    apart, joined = runs(), runs()
    expected = alone(apart)
    found = together(joined, pass_tokens=pass_tokens)
    for run, lonely, a, b in zip(joined, apart, found, expected, strict=True):
        same(a, b)
        same_state(run.method, lonely.method)
        assert b[0].best_step > 0  # something was learnt


def test_a_pass_reads_no_more_positions_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    base = tiny.base()
    nll_many = type(base).nll_many

    def counted(self: Any, batches: Sequence[Batch], **options: Any) -> Any:
        read.append(len(batches))
        assert len(batches) == 1 or sum(batch.positions for batch in batches) <= 150
        return nll_many(self, batches, **options)

    monkeypatch.setattr(type(base), "nll_many", counted)
    together(runs()[:4], pass_tokens=150)
    assert max(read) > 1


def test_one_that_stops_early_leaves_the_others_as_they_were() -> None:
    apart, joined = runs()[:3], runs()[:3]
    patient = [
        TrainingRun(
            r.method, r.rows, r.config.model_copy(update={"learning_rate": 0.0, "patience": 1}), r.seed
        )
        for r in (apart[1], joined[1])
    ]
    apart[1], joined[1] = patient
    expected, found = alone(apart), together(joined)
    assert [outcome.ended for outcome, _ in found] == ["done", "early", "done"]
    assert found[1][0].steps < found[0][0].steps
    for run, lonely, a, b in zip(joined, apart, found, expected, strict=True):
        same(a, b)
        same_state(run.method, lonely.method)


@pytest.mark.parametrize("kind", [0, 3], ids=["soft prompt", "keys and values"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_one_that_turns_nan_leaves_the_others_as_they_were(kind: int, accumulation: int) -> None:
    def wanted() -> list[TrainingRun]:
        made = runs()
        broken = made[kind]
        config = broken.config.model_copy(update={"accumulation": accumulation})
        return [TrainingRun(broken.method, broken.rows, config, broken.seed), made[1], made[2]]

    joined, apart = wanted(), wanted()

    def spoil(number: int, report: Report) -> None:
        if (number, report.step) == (0, 4):
            joined[0].method.trainable_parameters()[0].data[0, 0] = math.nan

    found, expected = together(joined, spoil), alone(apart)
    ended = found[0][0]
    assert (ended.ended, ended.steps) == ("diverged", 4)
    assert "at step 5: the loss is nan" in ended.error
    assert all(t.isfinite().all() for t in joined[0].method.state().values())
    for number in (1, 2):
        same(found[number], expected[number])
        same_state(joined[number].method, apart[number].method)


def test_all_stop_when_asked_and_go_on_to_the_same_bits(tmp_path: Path) -> None:
    whole = runs()
    expected = together(whole)
    told: list[int] = []
    first = runs(tmp_path)
    cut = together(first, lambda number, report: told.append(report.step), stop=lambda _: max(told) >= 6)
    assert {outcome.ended for outcome, _ in cut} == {"interrupted"}
    again = runs(tmp_path)
    found = together(again, resume=True)
    for run, uncut, (a, told_again), (b, _) in zip(again, whole, found, expected, strict=True):
        assert told_again[0].step == 7
        assert (a.best, a.best_step, a.steps, a.ended) == (b.best, b.best_step, b.steps, b.ended)
        assert all(torch.equal(t, uncut.method.state()[n]) for n, t in run.method.state().items())


def test_one_that_is_stopped_leaves_the_others_and_may_go_on_later(tmp_path: Path) -> None:
    apart, joined = runs()[:3], runs(tmp_path)[:3]
    expected = alone(apart)
    steps = [0, 0, 0]

    def count(number: int, report: Report) -> None:
        steps[number] = report.step

    found = together(joined, count, stop=lambda number: number == 1 and steps[number] == 8)
    assert [(outcome.ended, outcome.steps) for outcome, _ in found][1] == ("interrupted", 8)
    for number in (0, 2):
        same(found[number], expected[number])
        same_state(joined[number].method, apart[number].method)
    again = runs(tmp_path)[1:2]
    together(again, resume=True)
    same_state(again[0].method, apart[1].method)


def test_runs_resume_from_wherever_each_stands(tmp_path: Path) -> None:
    apart = runs()
    expected = alone(apart)
    started = runs(tmp_path)
    told: Reports = []
    alone(started[:1])  # to its end
    cut = Listener(step=told.append, stop=lambda: told[-1].step == 4)
    fit(replace(started[1], listener=cut), lambda: scores_of(started[1]))
    again = runs(tmp_path)[:3]  # one done, one under way, one not begun
    found = together(again, resume=True)
    assert [reports[0].step if reports else None for _, reports in found] == [None, 5, 0]
    for run, lonely, (a, _), (b, _) in zip(again, apart[:3], found, expected[:3], strict=True):
        assert (a.steps, a.best_step, a.ended) == (b.steps, b.best_step, b.ended)
        same_state(run.method, lonely.method)


def test_no_file_is_written_without_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    together(runs()[:2])
    assert not list(tmp_path.rglob("*"))


def test_a_state_is_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []
    save = Checkpoint.save

    def noted(self: Checkpoint, path: Path) -> None:
        written.append(self.numbers["step"])
        save(self, path)

    monkeypatch.setattr(Checkpoint, "save", noted)
    (run,) = runs(tmp_path)[:1]  # 18 steps
    short = TrainingRun(
        run.method, run.rows, run.config.model_copy(update={"max_steps": 10}), 0, run.checkpoint
    )
    together([short])
    assert written == [5, 10]
    again = runs(tmp_path)[0]
    together([TrainingRun(again.method, short.rows, short.config, 0, short.checkpoint)], resume=True)
    assert written == [5, 10]
    same_state(again.method, short.method, 0)


def test_those_due_at_once_are_validated_together() -> None:
    asked: list[list[int]] = []
    wanted = runs()[:3]

    def evaluate(numbers: Sequence[int]) -> list[Scores]:
        asked.append(list(numbers))
        return [scores_of(wanted[n]) for n in numbers]

    fit_many(wanted, evaluate)
    assert asked[:3] == [[0, 1, 2], [2], [0, 1]]  # the start; step 4; step 6, an epoch of the first two


def first_words(encoded: Encoded) -> list[TokenRow]:
    return [TokenRow(example.input_ids) for example in encoded.examples]


def test_validating_many_in_one_pass_equals_one_after_another() -> None:
    methods = [run.method for run in runs()[:5]]
    base, words = tiny.base(), [10, 11, 12]
    with torch.no_grad():
        found = base.next_logits_many(
            [Batch(first_words(VALIDATION[n % 2]), m.front()) for n, m in enumerate(methods)]
        )
    for number, (method, logits) in enumerate(zip(methods, found, strict=True)):
        expected = score(base, method.front(), VALIDATION[number % 2])
        shares: Tensor = logits.log_softmax(-1)[:, words]
        labels = torch.tensor([e.label for e in VALIDATION[number % 2].examples])
        assert tuple(shares.argmax(1).tolist()) == expected.predictions
        nll = -shares[torch.arange(len(labels)), labels].mean()
        assert float(nll) == pytest.approx(expected.nll, rel=1e-4)


def test_no_byte_of_the_base_changes_and_no_gradient_stays_on_it() -> None:
    bases = [tiny.base(), tiny.base(seed=1)]
    before = [{n: p.detach().clone() for n, p in base.model.state_dict().items()} for base in bases]
    together(runs())
    for base, kept in zip(bases, before, strict=True):
        assert all(torch.equal(kept[name], p) for name, p in base.model.state_dict().items())
        assert not any(p.requires_grad or p.grad is not None for p in base.model.parameters())
