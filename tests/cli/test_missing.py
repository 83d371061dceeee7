"""Without the extras: a verb says what it will need before it loads a base, in one sentence."""

from __future__ import annotations

import sys

import pytest

from cli.shell import Shell
from softprompt.packages import EXTRAS

COMPARISON = """
[base]
model = "base"
[data]
train = "moods.jsonl"
test = "test.jsonl"
input = "{text}"
target = " {label}"
METRIC
[[methods]]
name = "adapters"
method = {kind = "lora"}
trials = [{}]
"""
LABELS = 'labels = ["pos", "neg"]'
WRITES = '[compare]\nmetric = "rougeL"'


@pytest.fixture
def bare(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> Shell:
    """A shell without extras, in which loading a base is a fault."""
    monkeypatch.setattr("softprompt.checkpoints.freeze.load_base", _loaded_too_early)
    monkeypatch.setattr("softprompt.comparison.run.load_base", _loaded_too_early)
    _without_extras(monkeypatch)
    return shell


def _loaded_too_early(*_: object, **__: object) -> None:
    pytest.fail("a base was loaded first")


def _without_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in {module for modules in EXTRAS.values() for module in modules}:
        monkeypatch.setitem(sys.modules, module, None)


@pytest.mark.parametrize(
    ("setting", "extra"),
    [
        ("method.kind=lora", "lora"),
        ("base.quantisation=nf4", "quantised"),
        ("output.tensorboard=true", "tensorboard"),
        ("data.test=rows.parquet", "data"),
    ],
)
def test_train(bare: Shell, setting: str, extra: str) -> None:
    done = bare.train("--set", setting)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert f"run pip install 'softprompt[{extra}]'." in done.err


@pytest.mark.parametrize(
    ("metric", "named"),
    [(LABELS, ("peft", "scipy", "matplotlib", "jinja2")), (WRITES, ("peft", "rouge-score", "sacrebleu"))],
)
def test_compare(bare: Shell, metric: str, named: tuple[str, ...]) -> None:
    (bare.folder / "c.toml").write_text(COMPARISON.replace("METRIC", metric), encoding="utf-8")
    done = bare("compare", "c.toml")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert all(package in done.err for package in named)
    assert "run pip install 'softprompt[compare]'." in done.err


@pytest.mark.parametrize(
    ("line", "extra"),
    [
        ("serve", "serve"),
        ("plan --shape llama-7b --method lora", "lora"),
        ("eval moods test.jsonl --write 4", "compare"),
        ("eval moods --harness anything", "harness"),
        ("inspect moods", "report"),
        ("inspect moods --no-page --umap", "umap"),
    ],
)
def test_other_verbs(bare: Shell, line: str, extra: str) -> None:
    done = bare(*line.split())
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert f"run pip install 'softprompt[{extra}]'" in done.err


def test_a_saved_adapter(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("peft", reason="peft is not installed")
    assert shell.train("--epochs", "1", "--set", "method.kind=lora", "--set", "train.max_steps=1").code == 0
    assert shell("export", "moods", "folder").code == 0
    monkeypatch.setattr("softprompt.checkpoints.freeze.load_base", _loaded_too_early)
    _without_extras(monkeypatch)
    lines = ("generate moods text", "eval moods test.jsonl", "import folder --name other --model base")
    for line in lines:
        done = shell(*line.split())
        assert done.code == 2
        assert "run pip install 'softprompt[lora]'" in done.err
