"""Makes notebooks of the tutorials that are Python, so that they can be run as well as read.

    python benchmarks/notebooks.py        # writes examples/notebooks/*.ipynb

A page is the source: its Python becomes cells, everything else is text. Nothing is run here.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jupytext

ROOT = Path(__file__).parent.parent
PAGES = tuple(ROOT / "docs" / "tutorials" / f"{name}.md" for name in ("first-prompt", "compare", "shorten"))
FOLDER = ROOT / "examples" / "notebooks"

_LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")


def notebook(page: Path) -> Any:
    """A page as a notebook; its links lead from the folder of notebooks to where they led before."""

    def from_there(link: re.Match[str]) -> str:
        target = (page.parent / link[1]).resolve().relative_to(ROOT)
        return f"](../../{target.as_posix()}"

    made = jupytext.reads(_LINK.sub(from_there, page.read_text(encoding="utf-8")), fmt="md")
    made.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    for number, cell in enumerate(made.cells):
        cell["id"] = f"cell-{number}"  # drawn at random otherwise
    return made


def written(page: Path) -> str:
    text: str = jupytext.writes(notebook(page), fmt="ipynb")
    return f"{text}\n"


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for page in PAGES:
        (FOLDER / f"{page.stem}.ipynb").write_text(written(page), encoding="utf-8")
