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


@pytest.mark.parametrize("name", figures.DOCUMENTS)
def test_tables_and_figures_are_those_of_the_committed_results(name: str) -> None:
    assert figures.rendered(name) == (ROOT / name).read_text(encoding="utf-8")


def test_a_figure_changed_by_hand_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(figures, "ROOT", tmp_path)
    (tmp_path / "README.md").write_text(README.replace("| prefix tuning |", "| prefix tuning | 99.9", 1))
    assert figures.rendered("README.md") == README


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_is_a_valid_configuration(name: str) -> None:
    assert parse(tomllib.loads(recipes.text(name))).name == name


def test_files_the_readme_names_exist() -> None:
    for link in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / link).exists(), link
    tree = README.split("## The tree")[1].split("```")[1]
    for name in re.findall(r"^  ([\w./]+)", tree, re.MULTILINE):
        assert (ROOT / "src" / "softprompt" / name.rstrip(",")).exists(), name


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
