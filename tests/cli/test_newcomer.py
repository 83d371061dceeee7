"""What a newcomer types wrongly about rows ends in one plain sentence, before any base is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli.shell import Shell
from softprompt.checkpoints import freeze

HEAD = "text,label\n"
GOOD = "".join(f"a good film {i},pos\na bad film {i},neg\n" for i in range(10))
FILES: dict[str, str | bytes] = {
    "empty.csv": "",
    "header.csv": HEAD,
    "one.csv": HEAD + "a film,pos\n",
    "utf16.csv": (HEAD + GOOD).encode("utf-16"),
    "latin.csv": (HEAD + "caf\xe9,pos\n" + GOOD).encode("latin-1"),
    "binary.csv": bytes(range(256)) * 20,
    "zeros.csv": b"\0" * 300,
    "quotes.csv": HEAD + GOOD + '"never closed,pos\n' + GOOD,
    "twice.csv": "text,label,text\na,pos,b\n",
    "nameless.csv": "text,,label\na,b,pos\n",
    "comma.csv": HEAD + GOOD + "well, well,pos\n",
    "short.csv": HEAD + GOOD + "only text\n",
    "label.csv": HEAD + GOOD + "a film,positive\n" + GOOD,
    "blank.csv": HEAD + GOOD + "a film,\n" + GOOD,
    "header-missing.csv": GOOD,
    "capital.csv": (HEAD + GOOD).replace("text,label", "Text,Label"),
    "lines.json": "".join(f"{json.dumps({'text': 'a', 'label': 'pos'})}\n" for _ in range(4)),
    "object.json": json.dumps({"text": "a", "label": "pos"}),
    "nested.jsonl": "".join(f"{json.dumps({'text': ['a'], 'label': 'pos'})}\n" for _ in range(9)),
    "null.jsonl": "".join(f"{json.dumps({'text': None, 'label': 'pos'})}\n" for _ in range(9)),
    "strings.jsonl": '"a"\n"b"\n',
    "broken.jsonl": '{"text": "a", "label": "pos"}\n{"text": "b", "label": \n',
    "fake.parquet": "text,label\na,pos\n",
    "rows.txt": HEAD + GOOD,
    "good.csv": HEAD + GOOD,
}
INPUT = ("--input", r"{text}\nMood:")
LABELS = ("--target", " {label}", "--labels", "pos,neg")

ON_ROWS = {
    "nowhere.csv": "nowhere.csv: give a path, bundled:",
    "folder": "folder is a folder: name one of the files in it",
    "rows.txt": "rows.txt ends in '.txt'",
    "empty.csv": "empty.csv is empty",
    "header.csv": "header.csv is empty: it has no rows",
    "utf16.csv": "utf16.csv is not UTF-8 (line 1)",
    "latin.csv": "latin.csv is not UTF-8 (line 2)",
    "binary.csv": "binary.csv is not UTF-8",
    "zeros.csv": "zeros.csv",
    "quotes.csv": "quotes.csv, line 22 is not well quoted",
    "twice.csv": "the column 'text' twice",
    "nameless.csv": "without a name for column 2",
    "comma.csv": "comma.csv, line 22 has 3 fields where the header has 2",
    "short.csv": "short.csv, line 22 has 1 field where the header has 2",
    "label.csv": "label.csv, line 22: the label 'positive' in column 'label' is not one of",
    "blank.csv": "blank.csv, line 22: the label '' in column 'label' is not one of",
    "header-missing.csv": "there is no column 'text'",
    "capital.csv": "there is no column 'text', the columns are Text, Label; did you mean 'Text'?",
    "lines.json": "name it .jsonl",
    "object.json": "holds an object, not a list",
    "nested.jsonl": "nested.jsonl, line 1 and 8 more with a fault: the column 'text' holds a list",
    "null.jsonl": "null.jsonl, line 1 and 8 more with a fault: the column 'text' has no value",
    "strings.jsonl": "strings.jsonl, line 1 is a string",
    "broken.jsonl": "broken.jsonl, line 2 is not JSON",
    "fake.parquet": "fake.parquet is damaged or is not a parquet file",
}


@pytest.fixture
def newcomer(taught: Shell, monkeypatch: pytest.MonkeyPatch) -> Shell:
    for name, held in FILES.items():
        Path(name).write_bytes(held if isinstance(held, bytes) else held.encode("utf-8"))
    Path("folder").mkdir()

    def load(*_: object, **__: object) -> None:
        raise AssertionError("the base was loaded")

    monkeypatch.setattr(freeze, "load_base", load)
    return taught


def refused(shell: Shell, words: str, *args: str) -> None:
    done = shell(*args)
    assert words in done.err
    assert done.code == 2
    assert done.err.startswith("Error: ")
    assert len(done.err.strip().splitlines()) == 1


@pytest.mark.parametrize(("file", "words"), ON_ROWS.items(), ids=ON_ROWS)
def test_rows_that_are_wrong_end_training_and_scoring_in_a_sentence(
    newcomer: Shell, file: str, words: str
) -> None:
    refused(newcomer, words, "eval", "moods", file)
    refused(newcomer, words, "train", "--data", file, "--model", "base", *INPUT, *LABELS)


@pytest.mark.parametrize(
    ("words", "args"),
    [
        ("too few rows (1)", ("one.csv", *INPUT, *LABELS)),
        ("no column 'txt'", ("good.csv", "--input", "{txt}", *LABELS)),
        (
            "expected at least two labels, got 1",
            ("good.csv", *INPUT, "--target", " {label}", "--labels", "pos"),
        ),
        ("must hold one field", ("good.csv", *INPUT, "--target", " x", "--labels", "pos,neg")),
        ("a { without its }", ("good.csv", "--input", "{text", *LABELS)),
        ("no column 'mood'", ("good.csv", *INPUT, "--target", " {mood}")),
        ("fewer than the 500 asked for", ("good.csv", *INPUT, *LABELS, "--set", "data.train_rows=500")),
        ("gone.csv: give a path, bundled:", ("good.csv", *INPUT, *LABELS, "--test", "gone.csv")),
    ],
)
def test_wrong_words_about_rows_end_training_in_a_sentence(
    newcomer: Shell, words: str, args: tuple[str, ...]
) -> None:
    refused(newcomer, words, "train", "--model", "base", "--data", *args)


@pytest.mark.parametrize(
    "args",
    [("serve",), ("list",), ("show", "moods"), ("generate", "moods", "hi"), ("inspect", "moods"),
     ("eval", "moods", "good.csv"), ("export", "moods", "out")],
)  # fmt: skip
def test_a_library_that_is_not_there_is_said_by_every_verb(newcomer: Shell, args: tuple[str, ...]) -> None:
    refused(newcomer, "is not there; check", *args, "--library", "nowhere")


def test_a_mark_before_the_header_and_windows_line_ends_are_no_fault(newcomer: Shell) -> None:
    Path("bom.csv").write_bytes(b"\xef\xbb\xbf" + (HEAD + GOOD).replace("\n", "\r\n").encode())
    done = newcomer("eval", "moods", "bom.csv")
    assert "the base was loaded" in done.err


def test_the_line_is_that_of_the_editor_where_fields_have_several(newcomer: Shell) -> None:
    Path("tall.csv").write_text(f'{HEAD}"two\nlines",pos\n\n{GOOD}a film,good\n', encoding="utf-8")
    refused(newcomer, "tall.csv, line 25: the label 'good'", "eval", "moods", "tall.csv")


def test_a_text_that_is_cut_is_said(shell: Shell) -> None:
    assert shell.train("--name", "moods", "--epochs", "0", "--set", "data.max_tokens=60").code == 0
    long = "a good film " * 20
    done = shell("generate", "moods", long, "short")
    assert done.code == 0
    assert "1 of 2 texts had more than the 60 tokens that moods reads" in done.err
    assert "texts had" not in shell("generate", "moods", "short").err
    Path("long.csv").write_text(f"{HEAD}{long},pos\nshort,neg\n", encoding="utf-8")
    scored = shell("eval", "moods", "long.csv", "--untuned")
    assert scored.err.count("1 of 2 rows was longer than 60 tokens") == 1
