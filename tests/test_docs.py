"""The documents hold: links lead somewhere, code runs, commands exist, the reference is that of the code."""

from __future__ import annotations

import copy
import dataclasses
import re
import shlex
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import pytest

import softprompt
import tiny
from browser import browser, serious
from softprompt.cli.main import VERBS, group
from softprompt.comparison import run
from softprompt.comparison.settings import Comparison, load_comparison
from softprompt.comparison.suite import Suite, members
from softprompt.config import Config, parse
from softprompt.config_io import setting_paths

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
sys.path.insert(0, str(ROOT / "benchmarks"))

import docs_reference as reference  # noqa: E402 - the benchmarks are scripts, not a package
import notebooks  # noqa: E402

PAGES = sorted(DOCS.rglob("*.md"))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
RUN = [page for page in PAGES if page.parent.name in ("tutorials", "how-to") or page.name == "python.md"]


def blocks(page: Path, kind: str) -> list[str]:
    return [text for found, text in FENCE.findall(page.read_text(encoding="utf-8")) if found == kind]


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_to_files(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for link in re.findall(r"\]\(([^)#:\s]+)[)#]", text):
        assert (page.parent / link).exists(), link


@pytest.mark.parametrize("page", reference.pages())
def test_the_reference_is_that_of_the_code(page: str) -> None:
    """``python benchmarks/docs_reference.py`` writes it anew."""
    assert (DOCS / "reference" / page).read_text(encoding="utf-8") == reference.pages()[page]


def test_every_setting_says_what_it_is_and_its_example_is_allowed() -> None:
    text = (DOCS / "reference" / "settings.md").read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| `")]
    named = {row[0].strip("|` ") for row in rows}
    for schema in (Config, Comparison, Suite):
        for path in setting_paths(schema):
            assert path.rpartition(".")[2] in named | set(schema.model_fields), path
    assert all(row[3].strip() for row in rows)


@pytest.mark.parametrize(
    ("section", "model"),
    [(name, model) for name in ("base", "data", "method", "train", "output", "search")
     for model in reference.models(Config.model_fields[name])],
)  # fmt: skip
def test_the_example_of_a_setting_is_allowed(section: str, model: Any) -> None:
    needed = {"data": {"input": "{text}", "target": " {queue}"}}
    for setting, field in model.model_fields.items():
        lines = {setting: reference.example(section, setting, field)}
        if section == "method":
            lines["kind"] = reference.example(section, "kind", model.model_fields["kind"])
        if setting in ("label_aliases", "scale_labels"):
            lines["labels"] = 'labels = ["billing", "outage"]'
        if setting == "init":
            lines["init"] = 'init = "random"'
            lines["positions"] = "positions = 4" if "positions" in model.model_fields else ""
        given = tomllib.loads("\n".join(lines.values()))
        if setting in ("messages", "answers"):
            given["messages"], needed = "messages", {}
        if not (setting == "retrieve" and section == "data"):
            parse({**needed, section: {**needed.get(section, {}), **given}})


@pytest.mark.filterwarnings("ignore:Position ids are not supported:UserWarning")  # PEFT's own
@pytest.mark.parametrize("page", [page for page in RUN if blocks(page, "python")], ids=name)
def test_the_python_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order it stands in, on a tiny base instead of the bundled one, and on few of its rows."""
    monkeypatch.chdir(tmp_path)
    tokenizer = copy.deepcopy(tiny.tokenizer())
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }};{% endfor %}<assistant>"
    base = dataclasses.replace(tiny.base(), tokenizer=tokenizer)
    monkeypatch.setattr(softprompt, "load_base", lambda name: base)
    monkeypatch.setattr(run, "load_base", lambda *args, **options: tiny.base())
    train = softprompt.train

    def quickly(*args: Any, **settings: Any) -> Any:
        few = {"train_rows": 8, "validation_rows": 8, "test_rows": 8} if isinstance(args[1], str) else {}
        return train(*args, **settings | few | {"epochs": 1, "max_steps": 1})

    monkeypatch.setattr(softprompt, "train", quickly)
    distil, compare = softprompt.distil, softprompt.compare
    monkeypatch.setattr(softprompt, "distil", lambda *a, **kw: distil(*a, **kw | {"max_steps": 1}))
    plain = {"alternatives": False}  # an encoder would be fetched for them
    monkeypatch.setattr(softprompt, "compare", lambda *a, **kw: compare(*a, **kw | plain))
    names: dict[str, Any] = {}
    for block in blocks(page, "python"):
        exec(compile(block, page.name, "exec"), names)


@pytest.mark.parametrize("page", notebooks.PAGES, ids=name)
def test_the_notebook_of_a_page_is_that_page(page: Path) -> None:
    """``python benchmarks/notebooks.py`` writes it anew."""
    kept = notebooks.FOLDER / f"{page.stem}.ipynb"
    assert kept.read_text(encoding="utf-8") == notebooks.written(page)
    for link in re.findall(r"\]\(([^)#:\s]+)", kept.read_text(encoding="utf-8")):
        assert (kept.parent / link).exists(), link


def test_a_notebook_runs_in_a_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's Python runs in a test of its own; here a kernel takes the cells and shows a prompt."""
    kernels = pytest.importorskip("jupyter_client.kernelspec").KernelSpecManager().find_kernel_specs()
    if "python3" not in kernels:
        pytest.skip("needs a kernel for notebooks: pip install 'softprompt[docs]'")
    nbclient = pytest.importorskip("nbclient")
    for part in (tiny.model("llama"), tiny.tokenizer()):
        part.save_pretrained(tmp_path / "base")
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    made = notebooks.notebook(notebooks.PAGES[0])
    first = next(cell for cell in made.cells if "load_base" in cell.source and cell.cell_type == "code")
    first.source = first.source.replace("smollm2-135m", str(tmp_path / "base"))
    training = next(cell for cell in made.cells if "epochs=2" in cell.source)
    training.source = training.source.replace(
        "epochs=2", "epochs=1, train_rows=8, validation_rows=4, test_rows=4"
    )
    training.source += "\nprompt"
    nbclient.NotebookClient(made, timeout=240, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [output.get("data", {}) for output in training.outputs]
    assert any("first-quotes" in data.get("text/html", "") for data in shown)
    assert (tmp_path / "prompts" / "first-quotes").is_dir()


@pytest.mark.parametrize("page", [page for page in RUN if blocks(page, "toml")], ids=name)
def test_the_toml_of_a_page_is_a_configuration(page: Path) -> None:
    for block in blocks(page, "toml"):
        settings = tomllib.loads(block)
        if "tasks" in settings:
            assert len(members(settings)) == len(settings["tasks"]) * len(settings["bases"])
        elif "compare" in settings:
            load_comparison(settings)
        else:
            parse(settings)


@pytest.mark.parametrize(
    "page", [p for p in [ROOT / "README.md", *PAGES] if "softprompt " in p.read_text()], ids=name
)
def test_the_commands_of_a_page_exist(page: Path) -> None:
    """Every verb and option in a block of commands; nothing is run."""
    lines = [line for kind in ("console", "") for block in blocks(page, kind) for line in block.splitlines()]
    context = click.Context(group, info_name="softprompt")
    for line in lines:
        words = shlex.split(line.removeprefix("$ ").partition(" # ")[0].rstrip("\\& "), comments=True) if (
            line.startswith(("$ softprompt ", "softprompt "))
        ) else []  # fmt: skip
        if not words or not re.fullmatch(r"[a-z]+", words[1]):
            continue
        assert words[1] in VERBS, line
        command = group.get_command(context, words[1])
        assert command is not None
        rest = [word for word in words[2:] if word not in ("&",) and not word.startswith((">", "<"))]
        if isinstance(command, click.Group) and rest:
            command = command.get_command(context, rest[0]) or command
            rest = rest[1:]
        options = {name for param in command.params for name in param.opts}
        for word in rest:
            if word.startswith("--"):
                assert word.partition("=")[0] in options, line


def test_the_site_builds_without_a_warning_and_axe_finds_nothing_serious(tmp_path: Path) -> None:
    if find_spec("mkdocs") is None or find_spec("material") is None or find_spec("mkdocstrings") is None:
        pytest.skip("mkdocs-material and mkdocstrings are not installed: pip install '.[docs]'")
    site = str(tmp_path / "site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", site]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=280)
    assert built.returncode == 0, built.stderr
    python = (tmp_path / "site" / "reference" / "python.html").read_text(encoding="utf-8")
    for public in ("train", "compare", "load_base", "Engine", "Prompt", "push_to_hub"):
        assert f"{public}</" in python or f'{public}"' in python, public
    with browser() as made:
        for name in ("index", "tutorials/tickets", "reference/settings"):
            for width, dark in ((1280, False), (390, True)):
                page = (tmp_path / "site" / f"{name}.html").as_uri()
                assert serious(made, page, width=width, dark=dark) == [], name
