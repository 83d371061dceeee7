"""A comparison from its file to its results: which cells it needs, in which order, what is done already.

It knows files and order; training and scoring a cell is ``cell``'s, numbers are ``summary``'s. Where a cell
is carried out it is told (``Carry``): here, one after the other, or on other machines, many at once.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from softprompt.base.model import Base
from softprompt.checkpoints.freeze import load_base
from softprompt.comparison import classifier
from softprompt.comparison.cell import (
    Tested,
    Trained,
    has_artifact,
    identity,
    kept,
    test,
    tested_identity,
    train,
)
from softprompt.comparison.measure import Measurement
from softprompt.comparison.page import write_report
from softprompt.comparison.results import Results
from softprompt.comparison.settings import Comparison, Contender, load_comparison
from softprompt.comparison.summary import Findings, Setting, summarise
from softprompt.config import BaseConfig, Config
from softprompt.config_io import shown
from softprompt.data.task import Task
from softprompt.errors import ConfigError, SoftpromptError
from softprompt.library.folder import Library
from softprompt.packages import require
from softprompt.team import refuse_company
from softprompt.training.job import read_task
from softprompt.training.loop import Report

__all__ = ["REPORT", "RESULTS", "Bench", "Carry", "CellOrder", "Spread", "carried", "compare", "folder_of"]

REPORT, RESULTS = "report.html", "results.json"


def folder_of(results: Results) -> Path:
    """Where a comparison keeps its files."""
    return Path(results.settings["compare"]["folder"]) / results.name


class CellOrder(NamedTuple):
    """One cell that is wanted: plain values, which may travel.

    Attributes:
        contender: the method's name.
        trial: which of its settings.
        seed: of the draw.
        chosen: whether its artifact must be there.
        tested: the trained cell that is to be tested instead.
    """

    contender: str
    trial: int
    seed: int
    chosen: bool = False
    tested: Trained | None = None


Carry = Callable[[Sequence[CellOrder]], Sequence[Any]]
"""Carries cells out, ``Trained`` or ``Tested`` for each, in their order; may be called in several threads."""


@dataclass
class Bench:
    """What all cells of a comparison share."""

    comparison: Comparison
    folder: Path
    library: Library
    measurement: Measurement
    notify: Callable[[str], None]
    watch: Callable[[str, Report], None]
    stop: Callable[[], bool]
    contenders: Mapping[str, Contender]
    bases: dict[BaseConfig, Base] = field(default_factory=dict)
    tasks: dict[str, Task] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        comparison: Comparison,
        contenders: Sequence[Contender],
        notify: Callable[[str], None],
        watch: Callable[[str, Report], None],
        stop: Callable[[], bool],
    ) -> Bench:
        """What a comparison's file says."""
        folder = Path(comparison.compare.folder) / comparison.name
        return cls(
            comparison,
            folder,
            Library(folder / "prompts"),
            _measurement(comparison),
            notify,
            watch,
            stop,
            {contender.name: contender for contender in contenders},
        )

    def rows(self, base: Base) -> Task:
        """The rows all methods share, as the first seed draws them."""
        comparison = self.comparison
        data = comparison.data.model_copy(update={"draw": comparison.compare.seeds[0]})
        return self.task(base, Config(base=comparison.base, data=data))

    def task(self, base: Base, config: Config) -> Task:
        """The rows a configuration names, read once."""
        key = f"{config.data.model_dump_json()}{base.name if config.data.chat else ''}"
        if key not in self.tasks:
            self.tasks[key] = read_task(base, config)[0]
        return self.tasks[key]

    def base(self, about: BaseConfig) -> Base:
        """A base in one form (number format, quantisation); one at a time, for memory is measured."""
        if about not in self.bases:
            self.bases.clear()
            gc.collect()  # modules refer to each other in circles
            self.bases[about] = load_base(
                about.model,
                revision=about.revision,
                dtype=about.dtype,
                device=about.device,
                quantisation=about.quantisation,
                trust_remote_code=about.trust_remote_code,
                notify=self.notify,
            )
        return self.bases[about]


Spread = Callable[[Bench], AbstractContextManager[Carry]]
"""Begins to carry out the cells of a comparison elsewhere; what it began ends with the block."""


def compare(
    source: str | Path | Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    notify: Callable[[str], None] = lambda message: None,
    watch: Callable[[str, Report], None] = lambda what, report: None,
    stop: Callable[[], bool] = lambda: False,
    spread: Spread | None = None,
) -> Results:
    """Tune, train and test every method of a comparison, and write its results and report.

    Every trial of a method runs on the first seed; the settings that validate best run on all seeds, and
    only those read the test rows. What is done is kept, so a comparison that was stopped or killed goes on
    where it was. Files: ``FOLDER/NAME/results.json``, ``report.html``, ``cells/`` and ``prompts/``, the
    library of all chosen artifacts.

    Args:
        source: the path of a TOML file, or its content as a mapping.
        overrides: settings that win over it, as ``a.b=value`` each.
        notify: told plain sentences as results come in.
        watch: told (what is being trained, report) of every step.
        stop: asked after every step whether to end now; raises KeyboardInterrupt then.
        spread: carries cells out elsewhere, those of all methods at once.

    Raises:
        ConfigError: a setting is wrong; nothing has been trained yet.
        DataError: the rows are wrong.
    """
    refuse_company("A comparison")
    comparison, contenders = load_comparison(source, overrides)
    bench = Bench.of(comparison, contenders, notify, watch, stop)
    require("an HTML page", *bench.measurement.needs, *(need for one in contenders for need in one.needs))
    setting, task = _described(bench)
    for note in task.notes:
        notify(note)
    findings: dict[str, Findings] = {}
    results = summarise(comparison, contenders, findings, bench.measurement, setting, task)
    bench.folder.mkdir(parents=True, exist_ok=True)
    with nullcontext() if spread is None else spread(bench) as carry:
        for contender, found in _found(bench, contenders, carry):
            findings[contender.name] = found or _votes(contender, findings)
            results = summarise(comparison, contenders, findings, bench.measurement, setting, task)
            results.save(bench.folder / RESULTS)
            write_report(results, bench.folder / REPORT)
    return results


def _found(
    bench: Bench, contenders: Sequence[Contender], carry: Carry | None
) -> Iterator[tuple[Contender, Findings | None]]:
    """Every method with what was found, in the file's order; None for one that only counts votes."""
    if carry is None:
        for one in contenders:
            yield one, None if one.votes_of else _run(bench, one, lambda orders: carried(bench, orders))
        return
    with ThreadPoolExecutor(len(contenders), "softprompt-method") as pool:
        runs = [None if one.votes_of else pool.submit(_run, bench, one, carry) for one in contenders]
        try:
            for one, run in zip(contenders, runs, strict=True):
                yield one, None if run is None else run.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _votes(contender: Contender, findings: Mapping[str, Findings]) -> Findings:
    assert contender.votes_of is not None
    return Findings(votes_of=contender.votes_of, trouble=findings[contender.votes_of].trouble)


def carried(bench: Bench, orders: Sequence[CellOrder]) -> list[Any]:
    """The cells of some orders, made here or found on disk, one after the other."""
    found: list[Any] = []
    for order in orders:
        contender = bench.contenders[order.contender]
        if order.tested is None:
            found.append(_train(bench, contender, order.trial, order.seed, chosen=order.chosen))
        else:
            found.append(_test(bench, contender, order.trial, order.seed, order.tested))
    return found


def _described(bench: Bench) -> tuple[Setting, Task]:
    """What is needed of the comparison's base all along, which is not held for it."""
    base = bench.base(bench.comparison.base)
    return Setting.of(base), bench.rows(base)


def _run(bench: Bench, contender: Contender, carry: Carry) -> Findings:
    """All trials of one method, then its chosen settings on every seed."""
    seeds, name = bench.comparison.compare.seeds, contender.name
    try:
        trials = carry([CellOrder(name, trial, seeds[0]) for trial in range(len(contender.trials))])
        chosen = max(range(len(trials)), key=lambda t: bench.measurement.merit(trials[t].validation))
        ready = [trials[chosen]] if has_artifact(trials[chosen], bench.library) else []
        runs = [
            *ready,
            *carry([CellOrder(name, chosen, seed, chosen=True) for seed in seeds[len(ready) :]]),
        ]
        tests = carry(
            [CellOrder(name, chosen, seed, tested=cell) for seed, cell in zip(seeds, runs, strict=True)]
        )
    except SoftpromptError as error:
        bench.notify(f"{contender.name}: {error}")
        return Findings(trouble=str(error))
    _tidy(bench, contender, trials, chosen, runs)
    return Findings(trials, chosen, runs, tests)


def _tidy(
    bench: Bench, contender: Contender, trials: Sequence[Trained], chosen: int, runs: Sequence[Trained]
) -> None:
    """Remove the artifacts of trials that were not chosen, and those that would need the training rows."""
    unwanted = [cell for trial, cell in enumerate(trials) if trial != chosen]
    if contender.config(chosen, seed=0).data.retrieve is not None:
        unwanted += runs
    for cell in unwanted:
        if cell.name and bench.library.taken(cell.name):
            bench.library.remove(cell.name)


@dataclass(frozen=True)
class _CellPlace:
    """One cell: what is to be trained, on what, what people call it and where it is kept."""

    config: Config
    base: Base
    title: str
    path: Path
    identity: str


def _place(bench: Bench, contender: Contender, trial: int, seed: int) -> _CellPlace:
    settings = contender.config(trial, seed)
    data = settings.data.model_copy(update={"draw": bench.comparison.compare.seeds[0]})
    slug = re.sub(r"[^A-Za-z0-9]+", "-", contender.name).strip("-").lower()[:60] or "method"
    number = 1 + list(bench.contenders).index(contender.name)
    name = f"{number}-{slug}-trial{trial + 1}-seed{seed}"
    output = settings.output.model_copy(update={"runs": str(bench.folder)})  # where a teacher's answers lie
    config = settings.model_copy(update={"name": name, "data": data, "output": output})
    base = bench.base(config.base)
    rules = bench.measurement.rules
    title = f"{contender.name}, {_changes(contender.trials[trial])}seed {seed}"
    key = identity(config, base, bench.task(base, config), rules)
    return _CellPlace(config, base, title, bench.folder / "cells" / f"{name}.json", key)


def _changes(trial: Mapping[str, Any]) -> str:
    """What a trial sets, in words: ``learning_rate 0.001, ``."""
    return "".join(f"{dotted.rpartition('.')[2]} {shown(value)}, " for dotted, value in trial.items())


def _train(bench: Bench, contender: Contender, trial: int, seed: int, *, chosen: bool = False) -> Trained:
    """The cell of one trial on one seed, from disk if it is there; a chosen one with its artifact."""
    place = _place(bench, contender, trial, seed)
    found = kept(Trained, place.path, place.identity)
    if found is None or (chosen and not has_artifact(found, bench.library)):
        found = _MAKERS.get(contender.kind, (train, test))[0](
            place.base,
            place.config,
            bench.measurement,
            bench.library,
            place.identity,
            lambda report: bench.watch(place.title, report),
            bench.stop,
        )
        found.save(place.path)
    value = found.validation.metrics[bench.measurement.metric].value
    took = f" in {found.costs.train_seconds:.0f} s" if found.costs.train_seconds else ""
    bench.notify(f"{place.title}: {bench.measurement.metric} {value:.3f} on validation{took}")
    return found


def _test(bench: Bench, contender: Contender, trial: int, seed: int, cell: Trained) -> Tested:
    """The test of one chosen run, from disk if it is there."""
    place = _place(bench, contender, trial, seed)
    rules = bench.comparison.compare
    first = seed == rules.seeds[0]
    more: dict[str, Any] = {
        "changes": rules.perturb and first and bench.measurement.metric == "accuracy",
        "requests": rules.latency_requests if first else 0,
    }
    path = place.path.with_suffix(".test.json")
    key = tested_identity(cell, bench.task(place.base, place.config), more)
    found = kept(Tested, path, key)
    if found is None:
        made = _MAKERS.get(contender.kind, (train, test))[1]
        found = made(place.base, place.config, cell, bench.measurement, bench.library, key, **more)
        found.save(path)
    value = found.test.metrics[bench.measurement.metric].value
    bench.notify(f"{place.title}: {bench.measurement.metric} {value:.3f} on test")
    return found


_MAKERS = {"classifier": (classifier.train, classifier.test)}
"""What makes and tests the cells of methods that are no prompts."""


def _measurement(comparison: Comparison) -> Measurement:
    data, rules = comparison.data, comparison.compare
    compares = data.labels is not None or data.choices is not None
    metric = rules.metric
    if metric == "auto":
        metric = "accuracy" if compares else "nll"
    if metric == "accuracy" and not compares:
        raise ConfigError(
            "compare.metric is accuracy, but data has neither labels nor choices; give it labels, or choose "
            "a metric of texts such as rougeL."
        )
    if metric == "macro_f1" and data.labels is None:
        raise ConfigError(
            "compare.metric is macro_f1, but data has no labels; give it labels, or choose another metric."
        )
    task = data.task.partition(":")[2] if data.task and data.task.startswith("superglue:") else None
    return Measurement(metric, metric not in ("accuracy", "macro_f1", "nll"), task, rules.max_new_tokens)
