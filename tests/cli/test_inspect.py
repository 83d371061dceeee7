"""``inspect`` and ``prune`` from the command line: what they print, write and refuse."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.shell import Shell

FLOAT = ("--dtype", "float32")
LORA = ("--set", "method.kind=lora", "--set", "method.rank=2")
KV = ("--set", "method.kind=prefix-tuning", "--front", "a good film")


def test_inspect_tells_and_makes_a_page(taught: Shell) -> None:
    done = taught("inspect", "moods", "--rows", "6", *FLOAT)
    assert done.code == 0, done.err
    for title in ("What it is near", "How far it travelled", "What each position does", "Where rows look"):
        assert title in done.out
    assert "6 of 8 validation rows" in done.out
    assert "Page: inspect.html" in done.out
    assert "<title>Inside moods</title>" in Path("inspect.html").read_text(encoding="utf-8")


def test_json_is_one_object_and_no_page(taught: Shell) -> None:
    done = taught("inspect", "moods", "--only", "near,ablation", "--rows", "4", "--json", *FLOAT)
    assert done.code == 0, done.err
    (prompt,) = done.json["prompts"]
    assert {"near", "ablation"} < set(prompt)
    assert "attention" not in prompt
    assert prompt["rows"]["count"] == 4
    assert not Path("inspect.html").exists()
    done = taught("inspect", "moods", "--only", "near", "--json", "--page", "near.html", *FLOAT)
    assert done.json["prompts"]
    assert Path("near.html").exists()


def test_several_names_are_compared(taught: Shell) -> None:
    assert taught.train("--epochs", "1", "--name", "kv", *KV).code == 0
    done = taught(
        "inspect", "moods", "kv", "--only", "relations", "--data", "test.jsonl", "--no-page", *FLOAT
    )
    assert done.code == 0, done.err
    assert "How the prompts relate" in done.out
    assert "agreement" in done.out
    assert not Path("inspect.html").exists()


def test_what_cannot_be_inspected_is_refused_before_a_base_is_loaded(taught: Shell) -> None:
    assert taught.train("--epochs", "1", "--name", "adapter", *LORA).code == 0
    Path("base").unlink()
    for verb in (("inspect", "adapter"), ("prune", "adapter", "--keep", "2", "--as", "new")):
        done = taught(*verb)
        assert done.code == 2
        assert done.err == (
            "Error: adapter changes the model; inspect shows what soft prompts and KV prefixes hold; "
            "try softprompt eval.\n"
        )


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("moods", "--only", "nearness"), "There is no section 'nearness'; choose among near, drift"),
        (("mods",), "There is no prompt called mods in prompts"),
        (("moods", "--model", "other", *FLOAT), "moods was learnt on base"),
        (("moods", "--data", "nothing.jsonl", *FLOAT), "There is no file nothing.jsonl"),
        ((), "Missing argument 'NAME...'"),
    ],
)
def test_faults_are_one_sentence(args: tuple[str, ...], said: str, taught: Shell) -> None:
    done = taught("inspect", *args)
    assert done.code == 2
    assert said in done.err
    assert not done.out


def test_rows_that_are_gone_are_told_with_a_way_out(taught: Shell) -> None:
    done = taught("inspect", "moods", *FLOAT)  # its rows lay in the folder it was trained in
    Path("prompts/moods/softprompt.json").write_text(
        Path("prompts/moods/softprompt.json").read_text(encoding="utf-8").replace("moods.jsonl", "gone.jsonl")
    )
    done = taught("inspect", "moods", *FLOAT)
    assert done.code == 2
    assert "give rows to try it on with --data, or ask for --only near,drift." in done.err
    assert taught("inspect", "moods", "--only", "near", "--no-page", *FLOAT).code == 0


def test_prune_saves_a_shorter_prompt(taught: Shell) -> None:
    done = taught("prune", "moods", "--keep", "4", "--as", "short", *FLOAT)
    assert done.code == 0, done.err
    assert "Kept 4 of 20 positions" in done.out
    assert "Saved: prompts/short" in done.out
    shown = taught("show", "short", "--json").json["card"]
    assert shown["positions"] == 4
    assert shown["template"]["front"] == "{soft:4}"
    assert shown["scores"]["validation"]["rows"] == 8
    assert taught("eval", "short", "test.jsonl", *FLOAT).code == 0
    again = taught("prune", "moods", "--keep", "4", "--as", "short", *FLOAT)
    assert again.code == 2
    assert "There is a prompt 'short' in prompts already" in again.err


def test_prune_by_tolerance_tells_the_curve(taught: Shell) -> None:
    done = taught(
        "prune", "moods", "--tolerance", "1", "--as", "short", "--data", "test.jsonl", "--json", *FLOAT
    )
    assert done.code == 0, done.err
    assert done.json["rows"] == "12 rows of test.jsonl"
    assert [len(length["kept"]) for length in done.json["curve"]] == list(range(20, 0, -1))
    assert len(done.json["chosen"]["kept"]) == 1
    card = taught("show", "short", "--json").json["card"]
    assert set(card["scores"]) == {"pruning"}


def test_prune_of_a_prefix_says_what_becomes_of_its_keys(taught: Shell) -> None:
    assert taught.train("--epochs", "1", "--name", "kv", *KV).code == 0
    done = taught("prune", "kv", "--keep", "5", "--as", "short", "--rows", "4", *FLOAT)
    assert done.code == 0, done.err
    assert "keep the rotation of the place they had" in done.err


@pytest.mark.parametrize(
    "args", [(), ("--keep", "3", "--tolerance", "0.1"), ("--keep", "99"), ("--keep", "0")]
)
def test_prune_refuses_what_it_cannot_do(args: tuple[str, ...], taught: Shell) -> None:
    done = taught("prune", "moods", "--as", "short", *args, *FLOAT)
    assert done.code == 2
    assert not Path("prompts/short").exists()
