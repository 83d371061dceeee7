"""Keeps a comparison's results for the repository, without the texts of its rows, which belong to others.

    python benchmarks/keep.py comparisons/sst2/results.json

Every prediction stays; what the rows said goes, and so do the folders they lay in. Writes
``results/compare/NAME.json``.
"""

from __future__ import annotations

import sys
from pathlib import Path

from softprompt.comparison.results import Results

FOLDER = Path(__file__).parent.parent / "results" / "compare"


def kept(results: Results) -> Results:
    """The results with the right label of every row, but neither its text nor an answer that is one."""
    without = {"input": ""} if results.labels else {"input": "", "answer": ""}
    rows = [row.model_copy(update=without) for row in results.test_rows]
    data = {split: {**about, "origin": _placeless(about["origin"])} for split, about in results.data.items()}
    return results.model_copy(update={"test_rows": rows, "data": data})


def _placeless(origin: str) -> str:
    """A file by its name and its folder's; what leads there means nothing on another machine."""
    path, space, note = origin.partition(" (")
    return "/".join(Path(path).parts[-2:]) + space + note


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for path in map(Path, sys.argv[1:]):
        results = kept(Results.load(path))
        results.save(FOLDER / f"{results.name}.json")


if __name__ == "__main__":
    main()
