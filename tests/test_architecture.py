"""The house stands as drawn: imports go one way, each library has one home, files say what they know."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import softprompt

ROOT = Path(softprompt.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))

LAYERS = [
    {"errors", "harmless"},
    {"packages", "recipes"},
    {"config_io", "atomic", "numbers", "prefix", "report", "team"},
    {"config", "wheels"},
    {"base"},
    {"checkpoints"},
    {"generation"},
    {"data", "methods"},
    {"evaluation"},
    {"library", "listener"},
    {"distillation"},
    {"training"},
    {"comparison", "harness", "planning", "interpretation", "serving"},
    {"demo", "vllm", "cluster"},
    {"cli"},
    {"api", "__main__"},
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}

HOMES = {
    "transformers": {"base", "checkpoints", "planning/blueprint.py", "training/results.py"},
    "torch.distributed": {"team.py"},
    "peft": {"methods/lora.py", "library/lora_format.py"},
    "bitsandbytes": {"checkpoints"},
    "rouge_score": {"evaluation/text_metrics.py"},
    "sacrebleu": {"evaluation/text_metrics.py"},
    "scipy": {"evaluation/paired.py", "interpretation/relations.py"},
    "matplotlib": {"report/board.py"},
    "jinja2": {"report/page.py"},
    "umap": {"interpretation/drift.py"},
    "lm_eval": {"harness"},
    "gguf": {"checkpoints/convert.py"},
    "datasets": {"data/sources.py"},
    "pyarrow": {"data/sources.py"},
    "tensorboard": {"training/log.py"},
    "accelerate": {"training/trackers.py", "checkpoints/spread.py"},
    "llguidance": {"generation/grammar.py"},
    "fastapi": {"serving/api"},
    "starlette": {"serving/api"},
    "uvicorn": {"serving/api"},
    "prometheus_client": {"serving/api"},
    "vllm": {"vllm"},
    "ray": {"cluster"},
    "fsspec": {"library/bucket.py"},
    "click": {"cli"},
    "rich": {"cli"},
    "huggingface_hub": {"checkpoints", "planning/blueprint.py"},
}


def imports(path: Path) -> list[str]:
    """Dotted names a module imports, wherever in it."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.append(node.module or "")
    return found


def part(dotted: str) -> str | None:
    """The layer part a softprompt import belongs to; None for the package itself and for others."""
    names = dotted.split(".")
    return names[1] if names[0] == "softprompt" and len(names) > 1 else None


def home(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", [m for m in MODULES if m.parent != ROOT or m.name != "__init__.py"], ids=str)
def test_imports_go_one_way(path: Path) -> None:
    own = RANK[home(path)]
    for dotted in imports(path):
        used = part(dotted)
        if used is not None and used != home(path):
            assert RANK[used] < own, f"{path} imports {dotted}"


@pytest.mark.parametrize("library", HOMES)
def test_each_third_party_library_has_one_home(library: str) -> None:
    for path in MODULES:
        where = path.relative_to(ROOT).as_posix()
        if any(f"{dotted}.".startswith(f"{library}.") for dotted in imports(path)):
            assert any(where == h or where.startswith(f"{h}/") for h in HOMES[library]), path


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_a_file_says_what_it_knows(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), f"{path} has no docstring"


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_nothing_unpickles_by_hand(path: Path) -> None:
    """A pickle can run any code when it is opened; what Ray sends between its nodes is Ray's."""
    banned = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
    assert not banned & {dotted.partition(".")[0] for dotted in imports(path)}


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, softprompt; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_public_name_is_there() -> None:
    for name in softprompt.__all__:
        assert getattr(softprompt, name) is not None
