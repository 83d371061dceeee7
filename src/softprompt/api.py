"""What is called from Python: rows as one has them, settings as keywords, and progress on the screen.

It turns these into a configuration and a listener for the layers below, which know neither.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from softprompt import recipes
from softprompt.config import Config, load, parse
from softprompt.config.data import SOURCES
from softprompt.config.keywords import settings_of
from softprompt.config_io import NONE, toml_value
from softprompt.data.memory import Rows, is_frame, kept_rows
from softprompt.errors import ConfigError
from softprompt.listener import SILENT, Listener

if TYPE_CHECKING:
    from softprompt.base.model import Base
    from softprompt.comparison.results import Results
    from softprompt.comparison.suite_results import SuiteResults
    from softprompt.library.prompt import Prompt
    from softprompt.listener import Report
    from softprompt.training.distil import Distilled

__all__ = ["compare", "distil", "train"]


def train(
    base: Base,
    source: Config | Mapping[str, Any] | str | Path | Rows,
    *,
    validation: Rows = None,
    test: Rows = None,
    resume: bool = False,
    listener: Listener | None = None,
    quiet: bool = False,
    **settings: Any,
) -> Prompt:
    r"""Teach a base one job, keep the artifact, and return the prompt.

        softprompt.train(base, rows, input="Ticket: {text}\nQueue:", target=" {queue}", labels="auto")
        softprompt.train(base, "tickets.csv", input="{text}", target=" {answer}", name="answers", epochs=5)
        softprompt.train(base, "tickets.toml", learning_rate=0.01)

    Args:
        base: the frozen model; it is not changed and may serve other prompts meanwhile.
        source: rows to learn from (a list of dicts, a pandas or polars data frame, a ``datasets.Dataset``,
            or a ``DatasetDict`` with its splits, a path, ``bundled:NAME/SPLIT``, ``hub:...``), or a
            configuration (a ``Config``, a mapping of settings, the path of a TOML file, the name of a
            recipe). Rows in memory are kept in ``output.runs``, so that a run can be resumed and looked
            into later.
        validation: rows to choose on; without them a fifth of the training rows.
        test: rows to score once, at the end.
        resume: go on from where an earlier run of the same configuration was stopped or killed.
        listener: told of every step and of what a reader should know; without one, progress is shown in
            terminals and notebooks.
        quiet: show nothing.
        settings: any setting by its own name, such as ``epochs=3`` or ``front="{soft:40}"``, or a section
            as a mapping; they win over those of ``source``.

    Returns:
        The prompt in its best validated state, saved in the library under its name.

    Raises:
        ConfigError: a setting is wrong.
        DataError: a source, template, row or label is wrong.
        DivergedError: the loss ran away; the best state was saved if there was one.
        ResourceError: the disk refuses, or an artifact of that name exists.
    """
    from softprompt.training.run import train as run

    config = _config(source, {"validation": validation, "test": test}, settings)
    with _heard(listener, quiet) as heard:
        return run(base, config, resume=resume, listener=heard)


def distil(
    base: Base,
    source: Config | Mapping[str, Any] | str | Path | Rows,
    *,
    validation: Rows = None,
    test: Rows = None,
    resume: bool = False,
    listener: Listener | None = None,
    quiet: bool = False,
    **settings: Any,
) -> Distilled:
    """Teach short prompts to answer as the base does with a long text before it, or like a saved prompt.

        teacher = {"file": "prompt.txt", "positions": [16, 32]}
        softprompt.distil(base, questions, teacher=teacher, input="{question}")
        softprompt.distil(base, "support.toml")

    The teacher answers every question once; each length then learns to expect, at every token of those
    answers, what the teacher expected. All lengths train together.

    Args:
        base: the frozen model; it is not changed.
        source: questions, as rows for ``train`` that need no answers, or a configuration with a
            ``[teacher]``.
        validation: questions to choose on; without them a fifth of all.
        test: questions for the figures; without them half of those to choose on.
        resume: as for ``train``.
        listener: as for ``train``; told of all lengths as if they were one run.
        quiet: show nothing.
        settings: as for ``train``.

    Raises:
        ConfigError: a setting is wrong, there is no teacher, or a search.
        DataError: rows or text are wrong, the text is too long, or it changes nothing in the answers.
        DivergedError: a loss ran away; what the others learnt was saved.
        ResourceError: the disk refuses, or a package is missing.
    """
    from softprompt.training.distil import distil as run

    config = _config(source, {"validation": validation, "test": test}, settings)
    with _heard(listener, quiet) as heard:
        return run(base, config, resume=resume, listener=heard)


def compare(
    source: Mapping[str, Any] | str | Path | Rows,
    overrides: Sequence[str] = (),
    *,
    validation: Rows = None,
    test: Rows = None,
    quiet: bool = False,
    notify: Callable[[str], None] | None = None,
    watch: Callable[[str, Report], None] = lambda what, report: None,
    stop: Callable[[], bool] = lambda: False,
    **settings: Any,
) -> Results:
    """Tune, train and test every method of a comparison, and write its results and report.

        softprompt.compare(rows, test=more, input="{text}", target=" {label}", labels="auto", seeds=[0, 1])

    Every trial of a method runs on the first seed; the settings that validate best run on all seeds, and only
    those read the test rows. What is done is kept, so a comparison that was stopped or killed goes on
    where it was. Files: ``FOLDER/NAME/results.json``, ``report.html``, ``cells/`` and ``prompts/``, the
    library of all chosen artifacts.

    Args:
        source: rows, as for ``train``, or the path of a TOML file or its content as a mapping.
        overrides: settings that win over it, as ``a.b=value`` each.
        validation: rows to choose on, where ``source`` is rows.
        test: rows the methods are compared on, where ``source`` is rows.
        quiet: tell nothing.
        notify: told plain sentences as results come in; without it they are shown in terminals and notebooks.
        watch: told (what is being trained, report) of every step.
        stop: asked after every step whether to end now; raises KeyboardInterrupt then.
        settings: any setting of a comparison by its own name, or a section as a mapping, such as
            ``base={"model": "smollm2-135m"}``.

    Raises:
        ConfigError: a setting is wrong; nothing has been trained yet.
        DataError: the rows are wrong.
    """
    from softprompt.comparison.run import compare as run
    from softprompt.comparison.settings import Comparison
    from softprompt.comparison.suite import members

    given = settings_of(settings, Comparison)
    wanted: Any = source
    changes = [*_assignments(given), *overrides]
    if not _is_config(source):
        folder = Path(str(given.get("compare", {}).get("folder", "comparisons"))) / "rows"
        wanted = _with_rows(given, source, {"validation": validation, "test": test}, folder)
        changes = list(overrides)
    elif validation is not None or test is not None:
        raise ConfigError("A comparison's file names its own rows; set data.validation and data.test there.")
    elif members(wanted, changes):
        raise ConfigError("There are several data sets or bases; softprompt.compare_all compares on each.")
    with _heard(None if notify is None else Listener(note=notify), quiet) as heard:
        return run(wanted, changes, notify=heard.note, watch=watch, stop=stop)


def compare_all(
    source: Mapping[str, Any] | str | Path,
    overrides: Sequence[str] = (),
    *,
    bases: Sequence[str] = (),
    quiet: bool = False,
    notify: Callable[[str], None] | None = None,
    watch: Callable[[str, Report], None] = lambda what, report: None,
    stop: Callable[[], bool] = lambda: False,
) -> SuiteResults:
    """Compare methods on every data set and every base of a file, and put what was found together.

        softprompt.compare_all("few_rows.toml", bases=["smollm2-135m", "Qwen/Qwen3-0.6B-Base"])

    Each is a comparison with results and a report of its own; above them stand their means, with intervals.
    Files: ``FOLDER/NAME/results.json``, ``report.html`` and a folder for each comparison.

    Args:
        source: the path of a TOML file, or its content as a mapping.
        overrides: settings that win over it, as ``a.b=value`` each.
        bases: models that all methods are compared on, instead of the file's own.
        quiet: tell nothing.
        notify: told plain sentences as results come in; without it they are shown in terminals and notebooks.
        watch: told (what is being trained, report) of every step.
        stop: asked after every step whether to end now; raises KeyboardInterrupt then.

    Raises:
        ConfigError: a setting is wrong, nothing has been trained yet; or there is one data set and one base.
        DataError: the rows of a comparison are wrong; those before it are kept.
    """
    from softprompt.comparison.suite import compare_all as run
    from softprompt.comparison.suite import members

    several = members(source, overrides, bases)
    if not several:
        raise ConfigError("There is one data set and one base; softprompt.compare does that.")
    with _heard(None if notify is None else Listener(note=notify), quiet) as heard:
        return run(several, notify=heard.note, watch=watch, stop=stop)


def _config(source: Any, splits: Mapping[str, Rows], settings: Mapping[str, Any]) -> Config:
    """The configuration of a run from what was called: rows or settings, further rows, keywords."""
    given = settings_of(settings, Config)
    folder = Path(_runs(given)) / "rows"
    if _is_config(source):
        return _changed(source, given, splits, folder)
    return parse(_with_rows(given, source, splits, folder), folder=Path.cwd())


def _is_config(source: object) -> bool:
    """Whether it says how to learn, and not only from what."""
    if isinstance(source, Config):
        return True
    if isinstance(source, Mapping):
        return not _is_splits(source)
    if not isinstance(source, str | os.PathLike):
        return False
    path = Path(source)
    return path.suffix.lower() == ".toml" or (str(source) in recipes.names() and not path.exists())


def _is_splits(source: Mapping[Any, Any]) -> bool:
    """Whether a mapping holds rows by split, as a ``DatasetDict`` does."""
    rows = all(isinstance(v, list | str | os.PathLike) or is_frame(v) for v in source.values())
    return "train" in source and source.keys() <= set(SOURCES) and rows


def _with_rows(
    given: dict[str, Any], source: Rows, splits: Mapping[str, Rows], folder: Path
) -> dict[str, Any]:
    """Settings with their rows: those in memory are kept in files in ``folder``."""
    found = dict(splits)
    if isinstance(source, Mapping):
        found |= {name: rows for name, rows in source.items() if found.get(name) is None}
    else:
        found["train"] = source
    specs = {
        name: kept_rows(rows, folder, f"{name} rows") for name, rows in found.items() if rows is not None
    }
    return {**given, "data": {**given.get("data", {}), **specs}}


def _changed(source: Any, given: Mapping[str, Any], splits: Mapping[str, Rows], folder: Path) -> Config:
    """A configuration under the settings that win over it."""
    rows = {
        name: kept_rows(rows, folder, f"{name} rows") for name, rows in splits.items() if rows is not None
    }
    changes = [*_assignments(given), *(f"data.{name}={toml_value(spec)}" for name, spec in rows.items())]
    return load(Path(source), changes) if isinstance(source, str | os.PathLike) else parse(source, changes)


def _assignments(given: Mapping[str, Any]) -> list[str]:
    """Settings by section as ``a.b=value``."""
    flat = {
        f"{name}.{key}" if isinstance(value, Mapping) else name: inner
        for name, value in given.items()
        for key, inner in (value.items() if isinstance(value, Mapping) else [("", value)])
    }
    return [f"{name}={toml_value(NONE if value is None else value)}" for name, value in flat.items()]


def _runs(given: Mapping[str, Any]) -> str:
    return str(given.get("output", {}).get("runs", "runs"))


@contextmanager
def _heard(listener: Listener | None, quiet: bool) -> Iterator[Listener]:
    """Who is told: the caller's listener, or the screen of a terminal or a notebook, or nobody."""
    from softprompt.cli.screen import err
    from softprompt.cli.watch import watcher

    console = err()
    if listener is not None or quiet or not (console.is_terminal or console.is_jupyter):
        yield SILENT if listener is None else listener
        return
    with watcher() as watch:
        yield Listener(watch.note, watch.report, watch.progress)
