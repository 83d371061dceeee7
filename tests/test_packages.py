"""What only some work needs is asked for in one place, by names that pyproject.toml knows."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path
from typing import get_args

import pytest

import softprompt
from configs import settings
from softprompt.comparison.settings import load_comparison
from softprompt.config import parse
from softprompt.errors import ResourceError
from softprompt.packages import EXTRAS, Need, require

ROOT = Path(__file__).parent.parent
NOT_ASKED_FOR = {"dev", "docs"}


def without(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)


def test_extras_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = {
        extra: {re.split(r"[<>=[]", package)[0] for package in packages}
        for extra, packages in project["optional-dependencies"].items()
        if extra not in NOT_ASKED_FOR
    }
    assert named == {
        extra: {
            {"umap": "umap-learn", "sklearn": "scikit-learn"}.get(m, re.sub("[._]", "-", m)) for m in modules
        }
        for extra, modules in EXTRAS.items()
    }


@pytest.mark.parametrize("need", get_args(Need))
def test_every_need_has_an_extra(need: Need, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is installed here, what a need lacks has an extra that brings it."""
    without(monkeypatch, *{module for modules in EXTRAS.values() for module in modules})
    with pytest.raises(
        ResourceError, match=rf"(?i)^{need} needs the package.* run pip install 'softprompt\["
    ):
        require(need)


def test_one_sentence_names_all_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    require("LoRA", "an HTML page")
    without(monkeypatch, "peft")
    with pytest.raises(ResourceError) as one:
        require("LoRA", "an HTML page", "LoRA", otherwise="do without")
    assert str(one.value) == (
        "LoRA needs the package peft, which is not installed; run pip install 'softprompt[lora]', or do "
        "without."
    )
    without(monkeypatch, "jinja2", "matplotlib", "scipy")
    with pytest.raises(ResourceError) as several:
        require("LoRA", "an HTML page", "McNemar's test")
    assert str(several.value) == (
        "LoRA needs the package peft, an HTML page needs the packages jinja2 and matplotlib and McNemar's "
        "test needs the package scipy, which are not installed; run pip install 'softprompt[compare]'."
    )
    without(monkeypatch, "bitsandbytes", "tensorboard")
    with pytest.raises(ResourceError, match=r"softprompt\[tensorboard,quantised\]"):
        require("a quantised base", "TensorBoard's log")


@pytest.mark.parametrize(
    ("sections", "needs"),
    [
        ({}, set()),
        ({"method": {"kind": "lora"}}, {"LoRA"}),
        ({"base": {"quantisation": "nf4"}}, {"a quantised base"}),
        ({"output": {"tensorboard": True}}, {"TensorBoard's log"}),
        ({"data": {"train": "rows.parquet"}}, {"a parquet file"}),
        ({"data": {"train": "hub:a/b/train"}}, {"a data set of the hub"}),
        ({"data": {"train": "superglue:cb/train"}}, {"a data set of the hub"}),
        ({"data": {"train": "superglue:cb/train@folder"}}, set()),
    ],
    ids=str,
)
def test_a_configuration_says_what_it_needs(sections: dict[str, object], needs: set[str]) -> None:
    assert set(parse(settings(**sections)).needs) == needs


def test_a_comparison_needs_what_any_method_needs() -> None:
    methods = [
        {"name": "LoRA", "method": {"kind": "lora"}},
        {"name": "QLoRA", "method": {"kind": "lora"}, "base": {"quantisation": "nf4"}},
    ]
    data = settings(data={"train": "a.csv", "test": "b.csv"})["data"]
    _, contenders = load_comparison({"data": data, "methods": methods})
    assert {need for one in contenders for need in one.needs} == {"LoRA", "a quantised base"}


def test_nobody_else_tells_what_to_install() -> None:
    for path in Path(softprompt.__file__).parent.rglob("*.py"):
        if path.name != "packages.py":
            assert "pip install" not in path.read_text(encoding="utf-8").replace("pip install --", ""), path
