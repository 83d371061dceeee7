"""Tasks in files run through lm_eval, and a prompt scores there what it scores here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import softprompt
import softprompt.harness
import tiny
from harness import asking
from library import samples
from softprompt.base.model import Base
from softprompt.data.table import Table
from softprompt.errors import BaseModelError, ConfigError, DataError, ResourceError, SoftpromptError
from softprompt.harness import SoftpromptLM, evaluate
from softprompt.harness.__main__ import main as command_line
from softprompt.harness.run import measures
from softprompt.library.folder import Library
from softprompt.library.prompt import Prompt

EXAMPLE = Path(__file__).parents[2] / "examples" / "harness"
LABELS = ("up", "no")
ROWS: list[dict[str, Any]] = [
    {"text": text, "label": LABELS[i % 2]}
    for i, text in enumerate(
        ("rates rise", "a fall", "we won", "it broke", "good soup", "cold rain", "a letter", "the end",
         "new shoes", "an old dog", "home again", "so far", "a gift", "no bread")
    )
]  # fmt: skip
CHOICE: dict[str, Any] = {
    "output_type": "multiple_choice",
    "doc_to_text": "Text: {{text}}\nMood:",
    "doc_to_choice": [f" {label}" for label in LABELS],
    "doc_to_target": "{{['up', 'no'].index(label)}}",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}


def moods(base: Base, front: torch.Tensor | None = None) -> Prompt:
    return asking.prompt(
        base,
        input="Text: {text}\nMood:",
        target=" {label}",
        labels=LABELS,
        front=asking.soft(base) if front is None else front,
    )


def table(rows: int | None = None) -> Table:
    return Table(tuple(ROWS[:rows]), "rows")


def predictions(results: dict[str, Any], task: str) -> list[int]:
    """The likeliest choice of each row, by the log-likelihoods lm_eval kept."""
    rows = sorted(results["samples"][task], key=lambda row: int(row["doc_id"]))
    return [max(range(len(row["resps"])), key=lambda i: row["resps"][i][0][0]) for row in rows]


@pytest.mark.parametrize("architecture", ["llama", "bloom"])
def test_a_task_in_the_prompts_words_scores_exactly_as_the_prompt_does(
    architecture: str, tmp_path: Path
) -> None:
    prompt = moods(tiny.base(architecture))
    name = asking.write_task(tmp_path, ROWS, **CHOICE)
    ours = prompt.evaluate(table())
    results = evaluate(prompt, [name], include_path=tmp_path, log_samples=True)
    assert predictions(results, name) == list(ours.predictions)
    assert set(ours.predictions) == {0, 1}
    assert measures(results)[name]["acc"] == ours.accuracy
    info = results["config"]
    assert info["softprompt"] == "topics"
    assert info["base_fingerprint"] == prompt.base.fingerprint
    assert info["front_digest"] == prompt.prefix.digest


def test_choices_of_each_row_score_exactly_as_the_prompts_do(tmp_path: Path) -> None:
    words = ("a rise", "no", "soup and bread", "it rains", "up", "snow")
    rows: list[dict[str, Any]] = [
        {"text": row["text"], "options": [words[(i + k) % 6] for k in range(2 + i % 3)], "label": i % 2}
        for i, row in enumerate(ROWS)
    ]
    base = tiny.base()
    prompt = asking.prompt(
        base, input="Q: {text}\nA:", target=" {choice}", choices="options", front=asking.soft(base)
    )
    name = asking.write_task(
        tmp_path, rows, output_type="multiple_choice", doc_to_text="Q: {{text}}\nA:",
        doc_to_choice="options", doc_to_target="label",
    )  # fmt: skip
    task = json.loads((tmp_path / f"{name}.yaml").read_text())
    (tmp_path / f"{name}.yaml").write_text(json.dumps({**task, "target_delimiter": " "}))
    results = evaluate(prompt, [name], include_path=tmp_path, log_samples=True)
    ours = prompt.evaluate(Table(tuple(rows), "rows"))
    assert predictions(results, name) == list(ours.predictions)
    assert measures(results)[name]["acc"] == ours.accuracy


def test_lm_evals_own_entry_takes_the_model(tmp_path: Path) -> None:
    import lm_eval
    from lm_eval.tasks import TaskManager

    prompt = moods(tiny.base())
    name = asking.write_task(tmp_path, ROWS, **CHOICE)
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    results = lm_eval.simple_evaluate(model=SoftpromptLM(prompt), tasks=[name], task_manager=manager)
    assert results is not None
    assert results["results"][name]["acc,none"] == prompt.evaluate(table()).accuracy


@pytest.mark.real_base
def test_the_example_scores_the_same_on_the_real_base(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        base = softprompt.load_base("smollm2-135m", dtype="float32")
    except ResourceError as error:
        pytest.skip(f"the bundled base is not here and cannot be fetched: {error}")
    monkeypatch.chdir(EXAMPLE.parents[1])
    rows = [json.loads(line) for line in EXAMPLE.joinpath("invented_moods.jsonl").read_text().splitlines()][
        :12
    ]
    prompt = asking.prompt(
        base,
        input="Text: {text}\nMood:",
        target=" {label}",
        labels=("happy", "sad"),
        front=base.embed(base.encode("Is the writer glad or not? One word.")),
    )
    ours = prompt.evaluate(Table(tuple(rows), "rows"))
    for seam in ("apart", "joined"):  # the same tokens here, as every choice begins with a space
        lm = SoftpromptLM(prompt, seam=seam)
        results = evaluate(lm, ["invented_moods"], include_path=EXAMPLE, limit=len(rows), log_samples=True)
        assert predictions(results, "invented_moods") == list(ours.predictions)
        assert measures(results)["invented_moods"]["acc"] == ours.accuracy
    # Where the context ends in a space the seams differ: a space and a word, or one token of both.
    pair = ("Mood: ", "happy")
    apart, joined = (SoftpromptLM(prompt, seam=seam)._query(*pair) for seam in ("apart", "joined"))
    assert apart.context + apart.target == (*base.encode("Mood: "), *base.encode("happy"))
    assert joined.context + joined.target == (*base.encode("Mood:"), *base.encode(" happy"))
    assert apart.target != joined.target
    with pytest.raises(DataError, match="no tokens of its own"):
        SoftpromptLM(prompt, seam="joined")._query("The film was un", "usual")


def test_free_answers_and_whole_texts_run_too(tmp_path: Path) -> None:
    base = tiny.base()
    prompt = asking.prompt(base, input="Q: {text}", target=" {label}", front=asking.soft(base))
    answers = prompt.generate([row["text"] for row in ROWS], max_new_tokens=6, stop=("e",))
    assert len(set(answers)) > 1
    rows = [{**row, "answer": answer} for row, answer in zip(ROWS, answers, strict=True)]
    rows[0]["answer"] += "!"
    options = {"until": ["e"], "max_gen_toks": 6}
    metric = {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}
    asking.write_task(
        tmp_path, rows, "free", output_type="generate_until", doc_to_text="Q: {{text}}",
        doc_to_target="answer", generation_kwargs=options, metric_list=[metric],
    )  # fmt: skip
    asking.write_task(
        tmp_path, ROWS, "whole", output_type="loglikelihood_rolling", doc_to_text="", doc_to_target="text"
    )
    asking.write_task(
        tmp_path,
        ROWS,
        "after",
        output_type="loglikelihood",
        doc_to_text="Q: {{text}}",
        doc_to_target=" {{label}}",
    )
    found = measures(evaluate(prompt, ["free", "whole", "after"], include_path=tmp_path))
    assert found["free"]["exact_match"] == pytest.approx(13 / 14)
    bits = found["whole"]["bits_per_byte"]
    texts = [tuple(base.encode(row["text"])) for row in ROWS]
    hand = sum(asking.plain(base, asking.soft(base), (), ids)[0] for ids in texts)
    letters = sum(len(row["text"]) for row in ROWS)
    assert bits == pytest.approx(-hand / letters / 0.6931472, rel=1e-4)
    assert 0 <= found["after"]["acc"] <= 1


def test_a_group_runs_its_tasks_once(tmp_path: Path) -> None:
    for name in ("one", "two"):
        asking.write_task(tmp_path, ROWS, name, **CHOICE)
    metrics = [{"metric": "acc", "aggregation": "mean", "weight_by_size": True}]
    (tmp_path / "inner.yaml").write_text(json.dumps({"group": "inner", "task": ["two"]}))
    (tmp_path / "both.yaml").write_text(
        json.dumps({"group": "both", "task": ["one", "inner"], "aggregate_metric_list": metrics})
    )
    prompt = moods(tiny.base())
    found = measures(evaluate(prompt, ["both"], include_path=tmp_path))
    expected = prompt.evaluate(table()).accuracy
    assert found["one"]["acc"] == found["two"]["acc"] == found["both"]["acc"] == expected


def test_limit_takes_the_first_rows(tmp_path: Path) -> None:
    name = asking.write_task(tmp_path, ROWS, **CHOICE)
    prompt = moods(tiny.base())
    results = evaluate(prompt, [name], include_path=tmp_path, limit=5)
    assert measures(results)[name]["acc"] == prompt.evaluate(table(5)).accuracy
    with pytest.raises(ConfigError, match="limit must be at least 1"):
        evaluate(prompt, [name], include_path=tmp_path, limit=0)


def broken(change: Callable[[dict[str, Any]], None] = lambda row: None, **settings: Any) -> Any:
    rows = [dict(row) for row in ROWS]
    change(rows[2])
    return rows, {**CHOICE, **settings}


@pytest.mark.parametrize(
    ("task", "error", "message"),
    [
        (broken(lambda row: row.update(label="sideways")), DataError, "Row 3 of the task mine does not fit"),
        (broken(doc_to_target="{{2 if text == 'we won' else 0}}"), DataError, "Row 3 .* right answer 2, whi"),
        (broken(doc_to_target=None), DataError, "mine"),
        (broken(doc_to_text="{{nothing}}"), DataError, "'nothing' is undefined"),
        (broken(test_split="absent"), DataError, "cannot be loaded"),
        (broken(output_type="paint"), DataError, "cannot be loaded .*'paint'"),
        (broken(dataset_kwargs={"data_files": {"test": "absent.jsonl"}}), DataError, "loaded .*absent.jsonl"),
        (broken(doc_to_image="text"), ConfigError, "shows pictures or sounds"),
        (broken(unsafe_code=True), ConfigError, "runs code that the model writes"),
    ],
)
def test_a_task_that_cannot_be_done_is_refused_in_a_sentence(
    task: Any, error: type[SoftpromptError], message: str, tmp_path: Path
) -> None:
    rows, settings = task
    name = asking.write_task(tmp_path, rows, **settings)
    with pytest.raises(error, match=message) as raised:
        evaluate(moods(tiny.base()), [name], include_path=tmp_path)
    assert "\n" not in str(raised.value)


def test_generation_options_and_chat_a_base_has_not_are_refused(tmp_path: Path) -> None:
    settings = {"output_type": "generate_until", "doc_to_text": "Q: {{text}}", "doc_to_target": "label"}
    options = {"until": ["e"], "max_gen_toks": 4, "num_beams": 3}
    asking.write_task(tmp_path, ROWS, "beams", **settings, generation_kwargs=options)
    with pytest.raises(ConfigError, match="num_beams"):
        evaluate(moods(tiny.base()), ["beams"], include_path=tmp_path)
    asking.write_task(tmp_path, ROWS, "mine", **CHOICE)
    with pytest.raises(BaseModelError, match="no chat template"):
        evaluate(moods(tiny.base()), ["mine"], include_path=tmp_path, apply_chat_template=True)


def test_an_error_of_lm_eval_becomes_a_sentence_and_one_of_ours_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = asking.write_task(tmp_path, ROWS, **CHOICE)
    with pytest.raises(DataError, match="could not be run by lm_eval"):
        evaluate(moods(tiny.base()), [name], include_path=tmp_path, num_fewshot=500)

    def fails(*args: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("softprompt.harness.model.log_likelihoods", fails)
    with pytest.raises(ZeroDivisionError):
        evaluate(moods(tiny.base()), [name], include_path=tmp_path)


def test_a_null_answer_is_no_answer_and_a_task_needs_rows(tmp_path: Path) -> None:
    """lm_eval would render the first as the word None and stop without a word at the second."""
    free = {"output_type": "generate_until", "doc_to_text": "{{text}}", "doc_to_target": "{{label}}"}
    asking.write_task(tmp_path, [ROWS[0], {**ROWS[1], "label": None}], "blank", **free)
    with pytest.raises(DataError, match="Row 2 of the task blank has no right answer"):
        evaluate(moods(tiny.base()), ["blank"], include_path=tmp_path)
    asking.write_task(tmp_path, [], "empty", **free)
    with pytest.raises(DataError, match=r"The task empty cannot be loaded.*put its file or its data right"):
        evaluate(moods(tiny.base()), ["empty"], include_path=tmp_path)


def test_unknown_tasks_get_the_nearest_name_or_what_there_is(tmp_path: Path) -> None:
    asking.write_task(tmp_path, ROWS, "moods", **CHOICE)
    prompt = moods(tiny.base())
    with pytest.raises(ConfigError, match="There is no task 'mods'; did you mean moods"):
        evaluate(prompt, ["mods"], include_path=tmp_path)
    with pytest.raises(ConfigError, match="There is no folder"):
        evaluate(prompt, ["moods"], include_path=tmp_path / "absent")
    with pytest.raises(ConfigError, match="No task was named"):
        evaluate(prompt, [], include_path=tmp_path)
    assert evaluate(prompt, [str(tmp_path / "moods.yaml")], include_path=tmp_path)["results"]


# From names --------------------------------------------------------------------------------------


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    """A library with the prompt ``topics`` beside a folder with its base."""
    tiny.model("llama").save_pretrained(tmp_path / "base")
    tiny.tokenizer().save_pretrained(tmp_path / "base")
    base = softprompt.load_base(str(tmp_path / "base"), dtype="float32")
    prompt = moods(base)
    named = prompt.card.base.model_copy(update={"name": str(tmp_path / "base")})
    replace(prompt, card=prompt.card.model_copy(update={"base": named})).save(tmp_path / "prompts")
    return tmp_path / "prompts"


def test_a_model_is_made_from_an_argument_string(shelf: Path) -> None:
    lm = SoftpromptLM.create_from_arg_string(
        f"prompt=topics,library={shelf},dtype=float32,seam=joined,max_length=64",
        {"batch_size": "auto", "max_batch_size": None, "device": None},
    )
    assert (lm.prefix.length, lm.seam, lm.max_length) == (samples.P, "joined", 64)
    saved = Library(shelf).load("topics").learnt.tensor
    with torch.no_grad():
        expected = lm.base.prefill(saved)
    torch.testing.assert_close(lm.prefix.keys, expected.keys)
    bare = SoftpromptLM.create_from_arg_obj({"base": str(shelf.parent / "base"), "dtype": "float32"})
    assert bare.prefix.length == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("promt=topics", "no model argument 'promt'; did you mean prompt"),
        ("", "Say what to evaluate"),
        ("prompt", "'prompt' has no value"),
        ("base=b,max_length=long", "max_length must be a whole number, got 'long'"),
        ("base=b,trust_remote_code=perhaps", "trust_remote_code must be true or false"),
        ("prompt=absent,library=nowhere", "absent"),
    ],
)
def test_wrong_argument_strings_are_refused_in_a_sentence(arguments: str, message: str) -> None:
    with pytest.raises(SoftpromptError, match=message):
        SoftpromptLM.create_from_arg_string(arguments)


def test_lm_evals_command_line_runs_with_the_model_in_it(shelf: Path, tmp_path: Path) -> None:
    name = asking.write_task(tmp_path, ROWS, **CHOICE)

    def command(*args: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "softprompt.harness", *args]
        cache = {**os.environ, "HF_DATASETS_CACHE": str(tmp_path / "datasets")}
        return subprocess.run(line, capture_output=True, text=True, check=False, cwd=tmp_path, env=cache)

    task = ("--tasks", str(tmp_path / f"{name}.yaml"))
    done = command(
        *task, "--model_args", f"prompt=topics,library={shelf},dtype=float32", "--output_path", "out"
    )
    assert done.returncode == 0, done.stderr
    (file,) = tmp_path.glob("out/**/results_*.json")
    base = softprompt.load_base(str(tmp_path / "base"), dtype="float32")
    expected = moods(base).evaluate(table()).accuracy
    results = json.loads(file.read_text(encoding="utf-8"))
    assert results["results"][name]["acc,none"] == expected
    assert results["config"]["softprompt"] == "topics"


def test_a_fault_ends_the_command_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run() -> None:
        assert sys.argv[1:] == [
            "run", "--tasks", "mine", "--batch_size=4", "--model", "softprompt", "--device", "auto"
        ]  # fmt: skip
        SoftpromptLM.create_from_arg_string("prompt=absent")

    monkeypatch.setattr("lm_eval.__main__.cli_evaluate", run)
    before = list(sys.argv)
    assert command_line(["--tasks", "mine", "--batch_size=4"]) == 2
    assert "absent" in capsys.readouterr().err
    assert sys.argv == before


def test_without_lm_eval_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("lm_eval", "lm_eval.__main__"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ResourceError, match=r"pip install 'softprompt\[harness\]'"):
        _ = softprompt.harness.evaluate
    assert command_line([]) == 2
