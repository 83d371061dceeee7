"""The shape of the source in figures, for any commit: how long, how cut up, how entangled, how ambiguous.

    python benchmarks/house.py              the working tree
    python benchmarks/house.py HEAD~20      a commit

It reads source, imports none of it and knows nothing of what it does.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import statistics
import subprocess
import tarfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PACKAGE = "softprompt"
ENGINE = "softprompt.serving.engine"

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class House:
    """What was counted.

    Attributes:
        files: lines of each.
        functions: lines of each, decorators left out.
        once: private functions that their file names once beside their definition, as ``module.name``.
        chain: modules that import one another when the first is imported, the longest such chain.
        pulled: modules that importing the engine brings in, itself included; empty where there is none.
        twice: the modules of each class name that stands for more than one thing.
    """

    files: list[int]
    functions: list[int]
    once: list[str]
    chain: list[str]
    pulled: set[str]
    twice: dict[str, list[str]]

    def __str__(self) -> str:
        return "\n".join(
            [
                f"lines of source       {sum(self.files):,}",
                f"lines of a file       {_spread(self.files)}",
                f"lines of a function   {_spread(self.functions)}",
                f"private and used once {len(self.once) / max(1, len(self.functions)):.1%} of the functions",
                f"longest import chain  {len(self.chain)} modules",
                f"the engine pulls in   {len(self.pulled)} modules",
                f"names of two classes  {len(self.twice)}",
            ]
        )


def measure(source: Mapping[str, str], engine: str = ENGINE) -> House:
    """Count the source, given as the text of each module by its dotted name."""
    trees = {module: ast.parse(text) for module, text in source.items()}
    functions, once, classes = [], [], dict[str, list[str]]()
    for module, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, Function):
                functions.append((node.end_lineno or node.lineno) - node.lineno + 1)
                private = node.name.startswith("_") and not node.name.startswith("__")
                if private and len(re.findall(rf"\b{node.name}\b", source[module])) == 2:
                    once.append(f"{module}.{node.name}")
            elif isinstance(node, ast.ClassDef):
                classes.setdefault(node.name, []).append(module)
    imports = {module: _imports(tree.body, source.keys()) - {module} for module, tree in trees.items()}
    chains: dict[str, list[str]] = {}
    return House(
        files=[len(text.splitlines()) for text in source.values()],
        functions=functions,
        once=once,
        chain=max((_chain(module, imports, chains, ()) for module in imports), key=len, default=[]),
        pulled=_reach(engine, imports) if engine in imports else set(),
        twice={name: modules for name, modules in classes.items() if len(modules) > 1},
    )


def _imports(body: Sequence[ast.stmt], known: Collection[str]) -> set[str]:
    """Modules of the package that are imported when a body runs, the ones for type checkers left out."""
    found: set[str] = set()
    for node in body:
        if isinstance(node, ast.ImportFrom) and node.module:
            names = (f"{node.module}.{alias.name}" for alias in node.names)
            found |= {name if name in known else node.module for name in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            found |= _imports(node.orelse, known)
        elif isinstance(node, ast.If | ast.Try | ast.With):
            found |= _imports(node.body, known)
    return {name for name in found if name in known and name != PACKAGE}


def _chain(
    module: str, imports: Mapping[str, set[str]], done: dict[str, list[str]], above: tuple[str, ...]
) -> list[str]:
    """The longest chain from a module down; one that comes back to where it was ends there."""
    if module in above:
        return []
    if module not in done:
        below = [_chain(each, imports, done, (*above, module)) for each in sorted(imports[module])]
        done[module] = [module, *max(below, key=len, default=[])]
    return done[module]


def _reach(module: str, imports: Mapping[str, set[str]]) -> set[str]:
    found, waiting = set[str](), [module]
    while waiting:
        each = waiting.pop()
        if each not in found:
            found.add(each)
            waiting += imports[each]
    return found


def _spread(lengths: Sequence[int]) -> str:
    ordered = sorted(lengths) or [0]
    tenth = ordered[int(0.9 * (len(ordered) - 1))]
    return f"median {statistics.median(ordered):.0f}, 90% up to {tenth}, longest {ordered[-1]}"


def read(commit: str | None) -> dict[str, str]:
    """The text of every module by its dotted name, of a commit or of the working tree."""
    root = Path(__file__).parent.parent
    if commit is None:
        paths = sorted((root / "src" / PACKAGE).rglob("*.py"))
        files = {path.relative_to(root).as_posix(): path.read_text(encoding="utf-8") for path in paths}
    else:
        done = subprocess.run(["git", "archive", commit, f"src/{PACKAGE}"], cwd=root, stdout=subprocess.PIPE)
        if done.returncode:
            raise SystemExit(f"There is no source to be had of {commit}; give a commit of this repository.")
        with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
            found = {each.name: archive.extractfile(each) for each in archive if each.name.endswith(".py")}
            files = {name: file.read().decode() for name, file in found.items() if file is not None}
    return {
        name.removeprefix("src/").removesuffix(".py").replace("/", ".").removesuffix(".__init__"): text
        for name, text in files.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("commit", nargs="?", help="default: the working tree")
    parser.add_argument("--names", action="store_true", help="print what was counted too")
    options = parser.parse_args()
    house = measure(read(options.commit))
    print(house)
    if options.names:
        print("\nchain:", " > ".join(house.chain), "\n\nused once:", *house.once, sep="\n  ")
        twice = (f"{name}: {', '.join(found)}" for name, found in house.twice.items())
        print("\ntwo classes:", *twice, sep="\n  ")


if __name__ == "__main__":
    main()
