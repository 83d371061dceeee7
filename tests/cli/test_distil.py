"""``softprompt distil`` from a shell: flags, a file, what is printed, what is refused."""

from __future__ import annotations

import json

import pytest

from cli.shell import Shell

FLAGS = ("--model", "base", "--set", "base.dtype=float32", "--set", "teacher.max_new_tokens=5")


def ask(shell: Shell) -> tuple[str, ...]:
    """A text and questions about it, and the flags that name them."""
    (shell.folder / "text.txt").write_text("a long text {with braces} that says what is to be said\n")
    rows = [{"question": f"what is {i}?"} for i in range(24)]
    (shell.folder / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ("--text", "text.txt", "--questions", "asked.jsonl", "--input", "Q: {question}", *FLAGS)


def test_flags_alone_make_a_prompt_and_tell_what_it_keeps(shell: Shell) -> None:
    done = shell("distil", *ask(shell), "--positions", "4,8", "--as", "short", "--epochs", "2")
    assert done.code == 0, done.err
    assert "short-4" in done.out
    assert "short-8, untrained" in done.out
    assert "the whole teacher" in done.out
    assert shell("generate", "short-8", "what is 3?").code == 0
    assert shell("eval", "short-8", "asked.jsonl").code == 2  # questions have no answers
    shown = shell("show", "short-8", "--json")
    assert shown.json["card"]["scores"]["test"]["kept"] <= 1


def test_a_file_says_the_same(shell: Shell) -> None:
    ask(shell)
    (shell.folder / "short.toml").write_text(
        '[base]\nmodel = "base"\ndtype = "float32"\n[teacher]\nfile = "text.txt"\npositions = 6\n'
        'max_new_tokens = 5\n[data]\ntrain = "asked.jsonl"\ninput = "Q: {question}"\n[train]\nepochs = 1\n'
    )
    done = shell("distil", "short.toml", "--json")
    assert done.code == 0, done.err
    assert done.json["prompts"][0]["name"] == "short"
    assert {row["role"] for row in done.json["figures"]["rows"]} == {"learnt", "start", "cut", "bare", "text"}
    again = shell("distil", "short.toml")
    assert (again.code, again.err.count("--overwrite")) == (2, 1)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ((), "There is nothing to learn"),
        (("--text", "none.txt", "--questions", "asked.jsonl", *FLAGS), "cannot be read"),
        (("--text", "text.txt", *FLAGS), "data.train is missing"),
        (("--prompt", "none", "--questions", "asked.jsonl", *FLAGS), "no prompt"),
        (
            ("--text", "text.txt", "--prompt", "x", "--questions", "asked.jsonl"),
            "one of text, file and prompt",
        ),
        (("--text", "text.txt", "--questions", "asked.jsonl", "--positions", "many"), "expected numbers"),
    ],
)
def test_what_cannot_work_is_one_sentence(shell: Shell, flags: tuple[str, ...], said: str) -> None:
    ask(shell)
    done = shell("distil", *flags)
    assert done.code == 2
    assert said in done.err


def test_what_was_learnt_is_a_cartridge_for_peft_and_comes_back(shell: Shell) -> None:
    assert shell("distil", *ask(shell), "--positions", "4", "--as", "short", "--epochs", "1").code == 0
    done = shell("export", "short", "out", "--cartridge")
    assert done.code == 0, done.err
    config = json.loads((shell.folder / "out/adapter_config.json").read_text())
    assert (config["peft_type"], config["num_frozen_tokens"]) == ("CARTRIDGE", 1)
    back = shell(
        "import", "out", "--name", "again", "--model", "base", "--input", "Q: {question}", "--target", "x"
    )
    assert back.code == 0, back.err
    assert shell("show", "again", "--json").json["card"]["kind"] == "prefix-tuning"


def test_only_a_prefix_is_a_cartridge(taught: Shell) -> None:
    done = taught("export", "moods", "out", "--cartridge")
    assert (done.code, "is no KV prefix" in done.err) == (2, True)


def test_the_base_can_be_asked_for_questions(shell: Shell) -> None:
    ask(shell)
    flags = (
        "--text",
        "text.txt",
        "--study",
        "12",
        "--epochs",
        "1",
        "--positions",
        "4",
        "--as",
        "own",
        *FLAGS,
    )
    done = shell("distil", *flags)
    assert done.code == 0, done.err
    assert "The base made 12 questions" in done.err
