"""What the README says is so: its figures come from results, its recipes and its Python work."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import pytest

import softprompt
import tiny
from softprompt import recipes
from softprompt.config import parse

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import figures  # noqa: E402 - the benchmarks are scripts, not a package

README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", figures.DOCUMENTS)
def test_the_figures_are_those_of_the_committed_results(page: str) -> None:
    assert figures.rendered(page) == (ROOT / page).read_text(encoding="utf-8")


def test_the_readme_is_read_in_a_minute() -> None:
    assert len(README.splitlines()) <= 120


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_is_a_valid_configuration(name: str) -> None:
    assert parse(tomllib.loads(recipes.text(name))).name == name


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "SECURITY.md", *figures.DOCUMENTS])
def test_files_a_page_names_exist(page: str) -> None:
    path = ROOT / page
    for link in re.findall(r"\]\(([^)#:]+)\)", path.read_text(encoding="utf-8")):
        assert (path.parent / link).exists(), link


def test_the_tree_is_the_tree() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    tree = text.split("## Where things are")[1].split("```")[1]
    named = {name.rstrip("/") for name in re.findall(r"^  (\S+)", tree, re.MULTILINE)}
    there = {path.name for path in (ROOT / "src" / "softprompt").iterdir() if (path / "__init__.py").exists()}
    assert there <= named, there - named
    for name in named:
        assert (ROOT / "src" / "softprompt" / name).exists(), name
    order = text.split("## Read in this order")[1].split("##")[0]
    path = [ROOT / "src" / "softprompt" / name for name in re.findall(r"`([\w/]+\.py)`", order)]
    assert path
    assert sum(len(file.read_text(encoding="utf-8").splitlines()) for file in path) <= 1_500, "an hour"


def test_the_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its very lines, on a tiny base and a handful of rows."""
    monkeypatch.chdir(tmp_path)
    code = README.split("```python\n")[1].split("```")[0].replace('"src/', f'"{ROOT.as_posix()}/src/')
    recipe = tomllib.loads(recipes.text("bbc-topics"))
    small = {"train_rows": 10, "validation_rows": 10, "test_rows": 10}
    quick = parse(recipe | {"data": recipe["data"] | small, "train": {"epochs": 1}})
    monkeypatch.setattr(softprompt, "load_base", lambda name: tiny.base())
    train = softprompt.train

    def train_quickly(base: object, config: str) -> object:
        assert softprompt.load_config(config).name == "bbc-topics"
        return train(tiny.base(), quick)

    monkeypatch.setattr(softprompt, "train", train_quickly)
    exec(compile(code, "README.md", "exec"), {})
