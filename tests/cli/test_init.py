"""``softprompt init``: rows as people have them become a configuration that trains."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from cli.shell import Shell, write_rows
from softprompt.config import load
from softprompt.data.guess import guess
from softprompt.data.table import Table
from softprompt.errors import DataError

TICKETS = Path(__file__).parents[2] / "examples" / "tickets"


def table(**columns: list[object]) -> Table:
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return Table(tuple(rows), "t.csv")


def test_it_writes_what_it_found_and_that_trains(shell: Shell) -> None:
    write_rows(Path("moods.jsonl"), 40)
    done = shell("init", "moods.jsonl", "--model", "base")
    assert done.code == 0
    assert "label, one of 2 labels: neg (20), pos (20)" in done.out
    assert "softprompt train moods.toml" in done.out
    written = load("moods.toml")
    assert (written.data.input, written.data.target) == ("Text: {text}\nLabel:", " {label}")
    assert written.data.train == str(Path.cwd() / "moods.jsonl")
    assert shell("train", "moods.toml", "--epochs", "1", "--dtype", "float32").code == 0


def test_a_file_that_is_there_stays(shell: Shell) -> None:
    Path("moods.toml").write_text("mine", encoding="utf-8")
    refused = shell("init", "moods.jsonl")
    assert refused.code == 2
    assert "There is a file moods.toml already" in refused.err
    assert Path("moods.toml").read_text(encoding="utf-8") == "mine"
    assert shell("init", "moods.jsonl", "--overwrite", "--json").json["target"] == "label"


@pytest.mark.parametrize("column", ['say "it"', "what's new", "über-Größe", "a  b", "a.b"])
def test_columns_with_odd_names_make_a_configuration_too(shell: Shell, column: str) -> None:
    with Path("odd.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([[column, "k"], *([f"some words of {i}", "ab"[i % 2]] for i in range(12))])
    assert shell("init", "odd.csv").code == 0
    assert f"{{{column}}}" in load("odd.toml").data.input


def test_a_column_name_that_no_template_can_hold_is_named(shell: Shell) -> None:
    rows = [{"a[0]": f"some words of {i}", "k": "ab"[i % 2]} for i in range(12)]
    Path("odd.json").write_text(json.dumps(rows), encoding="utf-8")
    done = shell("init", "odd.json")
    assert done.code == 2
    assert "'{a[0]}'" in done.err
    assert not Path("odd.toml").exists()


def test_what_columns_are_for() -> None:
    texts: list[object] = [f"the number {i} of them all" for i in range(12)]
    kinds: list[object] = ["a", "b", "c"] * 4
    found = guess(table(id=list(range(12)), body=texts, kind=kinds, stars=[1, 2] * 6))
    assert (found.inputs, found.target, found.left_out) == (("body",), "stars", ("id", "kind"))
    assert guess(table(category=kinds, body=texts, stars=[1, 2] * 6)).target == "category"
    chosen = guess(table(body=texts, kind=kinds, stars=[1, 2] * 6), label="kind")
    assert (chosen.target, chosen.labels) == ("kind", {"a": 4, "b": 4, "c": 4})
    free = guess(table(question=texts, answer=[f"it is the {i}th word" for i in range(12)]))
    assert (free.inputs, free.target, free.labels) == (("question",), "answer", None)
    alone = guess(table(quote=texts))
    assert (alone.inputs, alone.target) == ((), "quote")
    with pytest.raises(DataError, match="no column with texts"):
        guess(table(id=list(range(12))))
    with pytest.raises(DataError, match="no column 'bdy'"):
        guess(table(body=texts), text=["bdy"])


def test_the_tickets_are_made_by_their_script() -> None:
    code = (TICKETS / "make_tickets.py").read_text(encoding="utf-8")
    made: dict[str, object] = {"__name__": "made", "__file__": ""}
    exec(compile(code, "make_tickets.py", "exec"), made)
    assert made["text"]().encode() == (TICKETS / "tickets.csv").read_bytes()  # type: ignore[operator]


def test_messy_tickets_are_understood(shell: Shell) -> None:
    done = shell("init", str(TICKETS / "tickets.csv"), "--json")
    queues = ["access", "billing", "cancellation", "feature", "outage", "shipping"]
    assert list(done.json["labels"]) == queues
    assert sum(done.json["labels"].values()) == done.json["rows"] == 297
    assert done.json["aliases"] == {
        "Billing": "billing",
        "Outage": "outage",
        "access ": "access",
        "biling": "billing",
    }
    assert (done.json["inputs"], done.json["left_out"]) == (["text"], ["id", "created"])


def test_few_rows_are_enough_where_a_column_is_called_after_labels() -> None:
    texts: list[object] = [f"some words of row {i}" for i in range(4)]
    assert guess(table(text=texts, label=["a", "b", "a", "b"])).labels == {"a": 2, "b": 2}
    assert guess(table(text=texts, colour=["a", "b", "a", "b"])).labels is None


def test_conversations_are_told_from_columns_without_text() -> None:
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    with pytest.raises(DataError, match=r"conversations in 'talk'.* --set data\.messages=talk"):
        guess(table(talk=[said, said], id=["x", "y"]))
