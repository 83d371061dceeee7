"""Python as people write it: rows from memory, settings as keywords, one or many, sentences for faults."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import softprompt
import tiny
from softprompt.config import Config
from softprompt.config.keywords import settings_of
from softprompt.data.memory import as_table
from softprompt.errors import ConfigError, DataError
from softprompt.library.prompt import Prompt
from softprompt.report.notebook import grid_html

ROWS: list[dict[str, Any]] = [{"text": f"row {i}", "label": "ab"[i % 2], "n": i} for i in range(12)]
JOB: dict[str, Any] = {"input": "{text}:", "target": " {label}", "labels": "auto", "epochs": 1}


def pandas_frame(rows: list[dict[str, Any]]) -> Any:
    return pytest.importorskip("pandas").DataFrame(rows)


def polars_frame(rows: list[dict[str, Any]]) -> Any:
    return pytest.importorskip("polars").DataFrame(rows)


def data_set(rows: list[dict[str, Any]]) -> Any:
    return pytest.importorskip("datasets").Dataset.from_list(rows)


def arrow_table(rows: list[dict[str, Any]]) -> Any:
    return pytest.importorskip("pyarrow").Table.from_pylist(rows)


HELD: dict[str, Callable[[list[dict[str, Any]]], Any]] = {
    "list": list,
    "generator": iter,
    "pandas": pandas_frame,
    "polars": polars_frame,
    "datasets": data_set,
    "arrow": arrow_table,
}


@pytest.fixture
def prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Prompt:
    monkeypatch.chdir(tmp_path)
    return softprompt.train(tiny.base(), ROWS, name="letters", **JOB)


@pytest.mark.parametrize("held", HELD)
def test_rows_are_the_same_however_they_are_held(held: str) -> None:
    odd = [*ROWS, {"text": "", "label": None, "n": None}]
    assert [dict(row) for row in as_table(HELD[held](odd)).rows] == odd


def test_rows_in_memory_train_as_a_file_of_them_does(prompt: Prompt, tmp_path: Path) -> None:
    lines = "".join(f'{{"text": "row {i}", "label": "{"ab"[i % 2]}", "n": {i}}}\n' for i in range(12))
    (tmp_path / "rows.jsonl").write_text(lines, encoding="utf-8")
    other = softprompt.train(tiny.base(), "rows.jsonl", name="filed", **JOB)
    assert other.card.scores == prompt.card.scores
    assert {k: d.digest for k, d in other.card.data.items()} == {
        k: d.digest for k, d in prompt.card.data.items()
    }
    again = softprompt.train(tiny.base(), pandas_frame(ROWS), name="letters", resume=True, **JOB)
    assert again.card.scores == prompt.card.scores
    assert len(list((tmp_path / "runs" / "rows").iterdir())) == 1


def test_splits_come_as_keywords_or_as_a_mapping_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    base = tiny.base()
    apart = softprompt.train(base, ROWS[:8], validation=ROWS[8:10], test=ROWS[10:], name="apart", **JOB)
    datasets = pytest.importorskip("datasets")
    splits = datasets.DatasetDict({n: data_set(r) for n, r in
              {"train": ROWS[:8], "validation": ROWS[8:10], "test": ROWS[10:]}.items()})  # fmt: skip
    joined = softprompt.train(base, splits, name="joined", **JOB)
    assert apart.card.scores == joined.card.scores
    assert {name: about.rows for name, about in joined.card.data.items()} == {
        "train": 8,
        "validation": 2,
        "test": 2,
    }


def test_keywords_win_over_a_configuration(prompt: Prompt) -> None:
    written = {
        "data": {key: prompt.card.settings["data"][key] for key in ("train", "input", "target", "labels")},
        "train": {"epochs": 3},
    }
    changes: dict[str, Any] = {"max_steps": 1, "front": "{soft:3}", "validation": ROWS[:4]}
    found = softprompt.train(tiny.base(), written, name="w", **changes)
    assert found.card.positions == 3
    assert found.card.settings["train"]["epochs"] == 3
    assert (found.card.training and found.card.training.steps) == 1
    assert found.card.data["validation"].rows == 4


def test_keywords_are_settings_by_their_names() -> None:
    found = settings_of(
        {
            "epochs": 3,
            "labels": ["a"],
            "seeds": [1],
            "name": "n",
            "method": "lora",
            "rank": 4,
            "data": {"draw": 1},
        },
        Config,
    )
    assert found == {
        "train": {"epochs": 3},
        "data": {"labels": ["a"], "draw": 1},
        "search": {"seeds": [1]},
        "name": "n",
        "method": {"kind": "lora", "rank": 4},
    }
    with pytest.raises(ConfigError, match="no setting 'epoch'; did you mean epochs"):
        settings_of({"epoch": 3}, Config)


def test_one_or_many_are_answered(prompt: Prompt) -> None:
    one = prompt.classify("row 3")
    assert isinstance(one, dict)
    assert prompt.classify(["row 3", {"text": "row 4"}]) == [one, prompt.classify("row 4")]
    assert prompt.classify(pandas_frame(ROWS[3:4])) == [one]
    assert prompt.generate(polars_frame(ROWS[:2])) == prompt.generate([row["text"] for row in ROWS[:2]])
    ensemble = softprompt.Ensemble([prompt, prompt])
    assert ensemble.classify(["row 3"]) == [ensemble.classify("row 3")]
    assert ensemble.predict(ROWS) == ensemble.predict(pandas_frame(ROWS))
    assert prompt.evaluate(ROWS) == prompt.evaluate(data_set(ROWS))


def test_an_engine_takes_frames_for_one_prompt(prompt: Prompt) -> None:
    with softprompt.Engine(tiny.base(), "prompts", pack=False) as engine:
        frame = pandas_frame(ROWS[:3])
        answers = engine.generate(frame, prompt="letters")
        assert answers == engine.generate([("letters", row["text"]) for row in ROWS[:3]])
        assert engine.generate([row["text"] for row in ROWS[:3]], "letters") == answers
        shares = engine.classify(frame, "letters")
        each = engine.classify([("letters", row) for row in ROWS[:3]])
        assert [pytest.approx(share, abs=1e-5) for share in shares] == each  # batches round apart
        with pytest.raises(DataError, match="must be a list, also of one"):
            engine.generate("row 3")
        with pytest.raises(DataError, match="is a value of the type int"):
            engine.classify([3], "letters")


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (["a"], "row 1 is a text"),
        (3, "not a value of the type int"),
        ([], "There are no rows"),
        ({"text": "a"}, "not one dict"),
        (None, "not nothing"),
        ([{"txt": "a"}], "no column 'text'"),
    ],
)
def test_what_is_no_row_is_a_sentence(prompt: Prompt, rows: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        prompt.evaluate(rows)


def test_what_is_no_text_is_a_sentence(prompt: Prompt) -> None:
    for ask in (prompt.generate, prompt.classify):
        for wrong in (3, [3], None):
            with pytest.raises(DataError):
                ask(wrong)


def test_progress_is_shown_on_a_terminal_unless_quiet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    softprompt.train(tiny.base(), ROWS, name="piped", **JOB)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    softprompt.train(tiny.base(), ROWS, name="told", **JOB)
    assert capsys.readouterr().err != ""
    softprompt.train(tiny.base(), ROWS, name="quiet", quiet=True, **JOB)
    assert capsys.readouterr().err == ""


def test_methods_are_compared_on_rows_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("jinja2")
    from softprompt.comparison import run

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "load_base", lambda *args, **options: tiny.base())
    found = softprompt.compare(
        pandas_frame(ROWS), test=ROWS, name="two", seeds=[0], latency_requests=0, perturb=False, quiet=True,
        alternatives=False,
        methods=[{"name": "zero-shot", "method": {"kind": "text"}}], **JOB,
    )  # fmt: skip
    assert [method.name for method in found.methods] == ["zero-shot"]
    assert found.labels == ["a", "b"]
    assert "zero-shot" in found._repr_html_()


def test_a_notebook_gets_tables_in_which_strangers_do_nothing(prompt: Prompt) -> None:
    html = prompt._repr_html_()
    assert "<table>" in html
    assert "accuracy" in html
    assert "accuracy" in prompt.evaluate(ROWS)._repr_html_()
    assert "<script>" not in grid_html("<script>", ("<script>",), [("<script>",)], "<script>")
