"""From a configuration to a saved prompt and back: what is learnt, kept, refused and killed."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers

import softprompt
import tiny
from softprompt.base.model import Base
from softprompt.base.packing import TokenRow
from softprompt.checkpoints.freeze import freeze
from softprompt.data.sources import read
from softprompt.errors import (
    ArtifactError,
    ConfigError,
    DataError,
    DivergedError,
    ResourceError,
    TrainingError,
    WrongBaseError,
)
from softprompt.generation.offline import generate
from softprompt.generation.request import GenerateRequest
from softprompt.generation.sampler import Sampling
from softprompt.library import formats
from softprompt.library.folder import Library
from softprompt.listener import Listener, Report
from softprompt.training import saving
from softprompt.training.job import Job
from training.letters import config, write_rows

NEVER_STEPS = Listener(step=lambda report: pytest.fail("it trained"))


def contents(folder: Path) -> dict[Path, bytes]:
    """Every file in a folder and below it."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_job_becomes_a_prompt_that_loads_with_the_same_answers(tmp_path: Path) -> None:
    base = tiny.base()
    notes: list[str] = []
    prompt = softprompt.train(base, config(tmp_path), listener=Listener(note=notes.append))
    card = prompt.card
    assert set(card.scores) == {"validation", "validation, untuned", "test", "test, untuned"}
    assert card.scores["test"]["nll"] < card.scores["test, untuned"]["nll"]
    assert (card.positions, card.trained_parameters) == (5 + 4, 4 * base.width)
    assert any("whole" in note for note in notes)  # every target starts with ":", so whole words are scored
    again = softprompt.load_prompt("letters", base, tmp_path / "prompts")
    assert again.prefix.digest == prompt.prefix.digest
    assert again.generate(["1 x", "2 y"]) == prompt.generate(["1 x", "2 y"])
    assert sum(again.classify("1 x").values()) == pytest.approx(1)
    scores = again.evaluate(read(str(tmp_path / "test.jsonl"))).summary()
    expected = card.scores["test"]
    assert scores["accuracy"] == expected["accuracy"]
    assert scores["nll"] == pytest.approx(expected["nll"], rel=1e-5)


def test_the_artifact_gives_pefts_logits(tmp_path: Path) -> None:
    prompt = softprompt.train(tiny.base(), config(tmp_path))
    loaded: Any = peft.PeftModel.from_pretrained(tiny.model("llama"), tmp_path / "prompts" / "letters")
    request = prompt.request("17 y")
    ids = torch.tensor([request.ids])
    with torch.no_grad():
        expected = loaded(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -1]
        found = prompt.base.next_logits([TokenRow(request.ids)], prompt.prefix)[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "data", [{}, {"max_tokens": 8, "labels": {"x": "aaa", "y": "b", "z": "c"}}], ids=["whole", "cut"]
)
def test_training_scoring_and_serving_see_the_same_tokens(tmp_path: Path, data: dict[str, Any]) -> None:
    prompt = softprompt.train(tiny.base(), config(tmp_path, data=data, train={"epochs": 0}))
    table = read(str(tmp_path / "test.jsonl"))
    encoded = prompt.encode(table)
    for example, row in zip(encoded.examples, table.rows, strict=True):
        assert prompt.request(row).ids == example.input_ids
        assert prompt.request(str(row["text"])).ids == example.input_ids


def test_rows_of_prompts_and_of_the_bare_base_share_a_batch(tmp_path: Path) -> None:
    base = tiny.base()
    one = softprompt.train(base, config(tmp_path / "one"))
    two = softprompt.train(base, config(tmp_path / "two", method={"front": "{soft:7}"}))
    wanted = [(one, "1 x"), (two, "1 x"), (None, "1 x"), (one, "a longer text y"), (None, "z")]
    together = softprompt.answer_together(wanted, base, max_new_tokens=5)
    alone = [softprompt.answer_together([pair], base, max_new_tokens=5)[0] for pair in wanted]
    assert together == alone
    five, nothing = Sampling(max_new_tokens=5), base.prefill_text("")
    bare = generate(
        [GenerateRequest(model=base, prefix=nothing, ids=tuple(base.encode("1 x")), sampling=five)]
    )
    assert together[2] == bare[0]


def test_another_base_is_refused_by_name(tmp_path: Path) -> None:
    softprompt.train(tiny.base(), config(tmp_path))
    with pytest.raises(WrongBaseError, match="tiny-llama-1"):
        softprompt.load_prompt("letters", tiny.base("llama", seed=1), tmp_path / "prompts")


def test_a_name_that_is_taken_is_refused_before_training(tmp_path: Path) -> None:
    softprompt.train(tiny.base(), config(tmp_path))
    before = (tmp_path / "prompts/letters/adapter_model.safetensors").read_bytes()
    with pytest.raises(ConfigError, match="already"):
        softprompt.train(tiny.base(), config(tmp_path), listener=NEVER_STEPS)
    assert (tmp_path / "prompts/letters/adapter_model.safetensors").read_bytes() == before


def test_the_log_and_the_settings_of_a_run_can_be_read(tmp_path: Path) -> None:
    wanted = config(tmp_path, output={"tensorboard": True})
    reports: list[Report] = []
    softprompt.train(tiny.base(), wanted, listener=Listener(step=reports.append))
    folder = tmp_path / "runs" / "letters"
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [r.step for r in reports] == list(range(11))
    assert [line["step"] for line in lines if "scores" in line] == [0, 5, 10]
    assert softprompt.load_config(folder / "config.toml") == wanted
    assert list((folder / "tensorboard").iterdir())


def test_a_run_computes_with_its_threads(tmp_path: Path) -> None:
    found: set[int] = set()
    wanted = config(tmp_path, train={"threads": 2, "epochs": 1})
    softprompt.train(
        tiny.base(), wanted, listener=Listener(step=lambda report: found.add(torch.get_num_threads()))
    )
    assert (found, torch.get_num_threads()) == ({2}, 1)


def test_ending_early_keeps_the_best_and_resumes_to_the_same_bits(tmp_path: Path) -> None:
    base = tiny.base()
    whole = softprompt.train(base, config(tmp_path / "whole"))
    cut = config(tmp_path / "cut")
    reports: list[Report] = []
    stopped = softprompt.train(
        base, cut, listener=Listener(step=reports.append, stop=lambda: reports[-1].step >= 7)
    )
    assert stopped.card.training is not None
    assert stopped.card.training.ended == "interrupted"
    assert "test" not in stopped.card.scores
    resumed = softprompt.train(base, cut, resume=True)
    assert resumed.prefix.digest == whole.prefix.digest
    lines = (tmp_path / "cut/runs/letters/log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(11))


@pytest.mark.parametrize("harm", ["settings", "rows"])
def test_a_refused_resume_leaves_the_run_as_it_was(tmp_path: Path, harm: str) -> None:
    def killed(report: Report) -> None:
        if report.step == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        softprompt.train(tiny.base(), config(tmp_path), listener=Listener(step=killed))
    wanted = config(tmp_path, train={"learning_rate": 0.6} if harm == "settings" else {})
    if harm == "rows":
        write_rows(tmp_path, 41)
    before = contents(tmp_path / "runs")
    with pytest.raises(TrainingError, match="other settings" if harm == "settings" else "another .* data"):
        softprompt.train(tiny.base(), wanted, resume=True)
    assert contents(tmp_path / "runs") == before
    assert len(before) == 3


def test_divergence_saves_the_best_state_and_says_where(tmp_path: Path) -> None:
    base = tiny.base()
    wanted = config(tmp_path, train={"warmup": 0.0, "select": "nll"})
    poisoned: list[torch.nn.Parameter] = []

    def watch(report: Report) -> None:
        if report.step == 7:
            for parameter in poisoned:
                parameter.data.fill_(float("nan"))

    original = Job.prepare

    def prepare(base: Any, config: Any, **how: Any) -> Job:
        job = original(base, config, **how)
        poisoned.extend(job.method.trainable_parameters())
        return job

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Job, "prepare", prepare)
        with pytest.raises(DivergedError, match=r"step 8.*best state, of step 5, is saved in"):
            softprompt.train(base, wanted, listener=Listener(step=watch))
    prompt = softprompt.load_prompt("letters", base, tmp_path / "prompts")
    assert prompt.card.training is not None
    assert (prompt.card.training.ended, prompt.card.training.best_step) == ("diverged", 5)
    assert isinstance(prompt.front, torch.Tensor)
    assert torch.isfinite(prompt.front).all()


KILLED = """
import sys, time, torch
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import softprompt, tiny
from softprompt import Listener
from training_job import config
torch.set_num_threads(1)
folder = Path(sys.argv[2])
slow = lambda report: (print(report.step, flush=True), time.sleep(0.05))
softprompt.train(tiny.base(), config(folder), resume=sys.argv[3] == "resume", listener=Listener(step=slow))
"""


def test_sigkill_at_any_moment_resumes_to_the_same_bits_and_leaves_no_half_artifact(tmp_path: Path) -> None:
    (tmp_path / "training_job.py").write_text(Path(__file__).read_text())
    expected = softprompt.train(tiny.base(), config(tmp_path / "whole")).prefix.digest
    folder = tmp_path / "killed"

    def start(mode: str) -> subprocess.Popen[str]:
        path = f"{Path(tiny.__file__).parent}"
        code = KILLED.replace("sys.argv[1])", f"sys.argv[1]); sys.path.insert(0, {str(tmp_path)!r})")
        command = [sys.executable, "-c", code, path, str(folder), mode]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    for mode, kill_after in (("new", 3), ("resume", 6)):
        process = start(mode)
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) >= kill_after:
                break
        time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        assert not (folder / "prompts" / "letters").exists()
    process = start("resume")
    output, _ = process.communicate()
    assert process.returncode == 0
    assert int(output.split()[0]) > 3  # it did not begin again
    prompt = softprompt.load_prompt("letters", tiny.base(), folder / "prompts")
    assert prompt.prefix.digest == expected


def test_unknown_sampling_options_are_refused(tmp_path: Path) -> None:
    prompt = softprompt.train(tiny.base(), config(tmp_path, train={"epochs": 0}))
    with pytest.raises(ConfigError, match="max_tokens"):
        prompt.generate("a", max_tokens=3)


def test_rows_that_do_not_fit_the_model_are_refused(tmp_path: Path) -> None:
    wanted = config(tmp_path, method={"front": "{soft:508}"})
    with pytest.raises(DataError, match=r"508 positions .* holds 512; lower data\.max_tokens"):
        softprompt.train(tiny.base(), wanted)


def test_data_faults_show_before_training(tmp_path: Path) -> None:
    wanted = config(tmp_path)
    (tmp_path / "test.jsonl").write_text('{"text": "1 x", "label": "other"}\n')
    with pytest.raises(DataError, match="other"):
        softprompt.train(tiny.base(), wanted, listener=NEVER_STEPS)
    assert not (tmp_path / "runs").exists()


def test_several_jobs_learn_side_by_side_what_each_would_have_alone(tmp_path: Path) -> None:
    base = tiny.base()
    texts = {"labels": None, "target": " {label}{label}", "end_of_text": False}
    jobs = [
        config(tmp_path / "labels"),
        config(tmp_path / "texts", data=texts, method={"front": "{soft:7}"}, train={"epochs": 1}),
    ]
    jobs[1] = jobs[1].model_copy(update={"name": "texts"})
    steps: dict[str, int] = {}
    together = softprompt.train_many(
        base, jobs, listener=Listener(step=lambda report: steps.update({report.run: report.step}))
    )
    assert steps == {"letters": 10, "texts": 5}
    for job, prompt in zip(jobs, together, strict=True):
        alone = softprompt.train(base, {**job.model_dump(), "output": {"library": str(tmp_path / job.name)}})
        for mine, theirs in zip(prompt.prefix.keys, alone.prefix.keys, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
        assert prompt.card.scores["test"]["nll"] == pytest.approx(alone.card.scores["test"]["nll"], rel=1e-4)
        assert (
            softprompt.load_prompt(job.name, base, job.output.library).prefix.digest == prompt.prefix.digest
        )


def test_jobs_that_could_not_be_told_apart_are_refused(tmp_path: Path) -> None:
    job = config(tmp_path)
    with pytest.raises(ConfigError, match="Two jobs are called 'letters'"):
        softprompt.train_many(tiny.base(), [job, job])
    searching = {**job.model_dump(), "search": {"seeds": [0, 1]}}
    with pytest.raises(ConfigError, match="letters has a search"):
        softprompt.train_many(tiny.base(), [searching])


# What cannot be saved is not begun ------------------------------------------------------------------


def random_base(about: Any) -> Base:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(about)
    return freeze(model, tiny.tokenizer(), f"tiny-{about.model_type}")


def test_vectors_that_a_model_cannot_read_are_refused_before_the_first_step(tmp_path: Path) -> None:
    about = transformers.Gemma4TextConfig(
        **tiny._LLAMA,
        head_dim=8,
        global_head_dim=8,
        sliding_window=16,
        layer_types=["sliding_attention", "full_attention", "full_attention"],
        vocab_size_per_layer_input=tiny.VOCABULARY,
        hidden_size_per_layer_input=8,
        num_kv_shared_layers=0,
    )
    base = random_base(about)
    with pytest.raises(ConfigError, match="reads no vectors but those of its words"):
        softprompt.train(base, config(tmp_path), listener=NEVER_STEPS)
    assert not (tmp_path / "runs").exists()
    lora = {"method": {"kind": "lora", "rank": 2}, "name": "adapters"}
    slowly = config(tmp_path, train={"learning_rate": 0.003})
    settings = slowly.model_dump(mode="json", exclude_none=True) | lora
    prompt = softprompt.train(base, settings)
    assert prompt.card.scores["test"]["nll"] < prompt.card.scores["test, untuned"]["nll"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("architecture", "layer", "taken"),
    [
        ("deepseek-v3", "layers.0.mlp.gate_proj", "a part of experts in one tensor"),
        ("laguna", "layers.1.mlp.shared_experts.gate_proj", "a name of older checkpoints"),
    ],
)
def test_what_could_not_be_saved_is_refused_before_the_first_step(
    architecture: str, layer: str, taken: str, tmp_path: Path
) -> None:
    method = {"kind": "lora", "front": "", "targets": ["gate_proj", "up_proj"]}
    said = rf"PEFT takes model\.{re.escape(layer)} of .* for {taken}"
    settings = config(tmp_path).model_dump(mode="json", exclude_none=True) | {"method": method}
    with pytest.raises((ConfigError, ArtifactError), match=said):
        softprompt.train(tiny.base(architecture), settings, listener=NEVER_STEPS)
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "prompts").exists()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("architecture", ["deepseek-v3", "laguna"])
def test_adapters_beside_layers_that_peft_takes_for_others_are_read_again_here_and_by_peft(
    architecture: str, tmp_path: Path
) -> None:
    base, notes = tiny.base(architecture), list[str]()
    plain = copy.deepcopy(base.model)
    settings = config(tmp_path).model_dump(mode="json", exclude_none=True)
    settings |= {"method": {"kind": "lora", "front": "", "rank": 2}}
    prompt = softprompt.train(base, settings, listener=Listener(note=notes.append))
    assert any("take no adapter in PEFT" in note for note in notes)
    row = TokenRow(tuple(base.encode("17 y")))
    wanted = prompt.base.next_logits([row], prompt.prefix)
    again = softprompt.load_prompt("letters", base, tmp_path / "prompts")
    torch.testing.assert_close(again.base.next_logits([row], again.prefix), wanted)
    theirs: Any = peft.PeftModel.from_pretrained(plain, tmp_path / "prompts" / "letters")
    logits = theirs.eval()(input_ids=torch.tensor([row.ids])).logits[:, -1]
    torch.testing.assert_close(logits, wanted, rtol=1e-4, atol=1e-4)


def test_what_is_not_read_as_it_was_saved_is_refused_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(folder: Path, sha256: str | None = None) -> Any:
        held = formats.read(folder, sha256)
        held.payload.tensor[0, 0] += 1  # type: ignore[attr-defined]
        return held

    monkeypatch.setattr(saving, "read", other)
    with pytest.raises(ConfigError, match=r"learns on tiny-llama-0 could not .*front is not what"):
        softprompt.train(tiny.base(), config(tmp_path), listener=NEVER_STEPS)


def test_a_run_that_cannot_save_at_its_end_says_how_to_and_is_saved_by_resuming(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = config(tmp_path)

    def full(*_: Any, **__: Any) -> None:
        raise ResourceError("There is no space left on the disk.")

    with monkeypatch.context() as patched:
        patched.setattr(Library, "save", full)
        with pytest.raises(
            TrainingError, match=r"no space left on the disk\. It is kept in .*checkpoint.*--resume"
        ):
            softprompt.train(tiny.base(), wanted)
    prompt = softprompt.train(tiny.base(), wanted, resume=True, listener=NEVER_STEPS)
    at_once = softprompt.train(tiny.base(), config(tmp_path / "other"))
    assert torch.equal(prompt.front, at_once.front)  # type: ignore[arg-type]
    assert (tmp_path / "prompts" / "letters").is_dir()


def test_a_card_names_a_local_base_so_that_it_is_found_from_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here" / "base").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    base = dataclasses.replace(tiny.base(), name="./base")
    assert softprompt.train(base, config(tmp_path)).card.base.name == str(tmp_path / "here" / "base")
    assert softprompt.train(tiny.base(), config(tmp_path / "other")).card.base.name == "tiny-llama-0"
