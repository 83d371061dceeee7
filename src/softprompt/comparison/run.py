"""A comparison from its file to its results: which cells it needs, in which order, what is done already.

It knows files and order; training and scoring a cell is ``cell``'s, numbers are ``summary``'s. Where a cell
is carried out it is told (``Carry``): here, one after the other, or on other machines, many at once.
"""

from __future__ import annotations

import gc
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from softprompt.base.model import Base
from softprompt.checkpoints.freeze import load_base
from softprompt.comparison import classifier
from softprompt.comparison.budget import Budget, Cost, Cut, kept_plan, planned
from softprompt.comparison.cell import (
    KINDS_OF_CHANGE,
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
from softprompt.training.job import Job, read_task, tokens
from softprompt.training.loop import Report
from softprompt.training.pace import timed
from softprompt.training.schedule import Steps

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
        share: of its steps that are taken; of less than all, it is a look at the setting and no result.
        chosen: whether its artifact must be there.
        tested: the trained cell that is to be tested instead.
    """

    contender: str
    trial: int
    seed: int
    share: float = 1.0
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
    share: float = 1.0
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
        share: float = 1.0,
    ) -> Bench:
        """What a comparison's file says; ``share``: of its steps after which a trial is judged."""
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
            share,
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
    plan = within_hours(bench)
    if plan is not None:
        comparison, contenders = load_comparison(source, [*overrides, *plan.overrides])
        bench = Bench.of(comparison, contenders, notify, watch, stop, plan.share)
    setting, task = _described(bench)
    task = replace(task, notes=(*task.notes, *(plan.notes if plan else ())))
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


# Hours -------------------------------------------------------------------------------------------


def within_hours(bench: Bench) -> Budget | None:
    """What is given up to fit into the hours that are set, made once and kept; None where none are."""
    rules = bench.comparison.compare
    if rules.hours is None:
        return None
    about = bench.comparison.model_dump(mode="json")
    return kept_plan(bench.folder / "budget.json", about, lambda identity: _planned(bench, identity))


def _planned(bench: Bench, identity: str) -> Budget:
    rules = bench.comparison.compare
    assert rules.hours is not None
    rows = bench.rows(bench.base(bench.comparison.base)).tables
    whole = Cut(1.0, len(rules.seeds), len(rows["test"]), len(rows["train"]))
    costs = [
        _cost(bench, one)
        for one in bench.contenders.values()
        if one.votes_of is None and one.kind not in _MAKERS
    ]
    changes = len(KINDS_OF_CHANGE) if rules.perturb and bench.measurement.metric == "accuracy" else 0
    return planned(rules.hours, costs, whole, rules.seeds, identity, changes)


def _cost(bench: Bench, contender: Contender) -> Cost:
    """A few steps of a method's first trial, timed."""
    bench.notify(f"{contender.name}: timing a few steps")
    place = _place(bench, contender, 0, bench.comparison.compare.seeds[0])
    data = place.config.data.model_copy(update={"test": None})
    found = timed(Job.prepare(place.base, place.config.model_copy(update={"data": data})))
    task = bench.task(place.base, place.config)
    read = sum(
        len(one.input_ids) + len(one.target_ids)
        for one in tokens(task, "test", place.base, place.config).examples
    )
    return Cost(contender.name, len(contender.trials), found.training, found.scoring, found.token * read)


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
            found.append(_train(bench, contender, order))
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
    short = bench.share < 1 and contender.learns and len(contender.trials) > 1
    share = bench.share if short else 1.0
    try:
        trials = carry([CellOrder(name, trial, seeds[0], share) for trial in range(len(contender.trials))])
        chosen = max(range(len(trials)), key=lambda t: bench.measurement.merit(trials[t].validation))
        whole = not short and has_artifact(trials[chosen], bench.library)
        ready = [trials[chosen]] if whole else []
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
    """Remove the artifacts of trials that are no runs, and those that would need the training rows."""
    unwanted = [cell for cell in trials if cell.name not in {run.name for run in runs}]
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


def _place(bench: Bench, contender: Contender, trial: int, seed: int, share: float = 1.0) -> _CellPlace:
    settings = contender.config(trial, seed)
    data = settings.data.model_copy(update={"draw": bench.comparison.compare.seeds[0]})
    slug = re.sub(r"[^A-Za-z0-9]+", "-", contender.name).strip("-").lower()[:60] or "method"
    number = 1 + list(bench.contenders).index(contender.name)
    name = f"{number}-{slug}-trial{trial + 1}-seed{seed}"
    output = settings.output.model_copy(update={"runs": str(bench.folder)})  # where a teacher's answers lie
    config = settings.model_copy(update={"name": name, "data": data, "output": output})
    base = bench.base(config.base)
    if share < 1:
        config = _shortened(config, len(bench.task(base, config).tables["train"]), share)
    rules = bench.measurement.rules
    title = f"{contender.name}, {_changes(contender.trials[trial])}seed {seed}"
    key = identity(config, base, bench.task(base, config), rules)
    return _CellPlace(config, base, title, bench.folder / "cells" / f"{config.name}.json", key)


def _shortened(config: Config, rows: int, share: float) -> Config:
    """A look at a run: a share of its steps, under a name of its own."""
    train = config.train
    steps = Steps(rows, train.batch_size, train.epochs, config.seed, train.max_steps, train.min_steps).total
    few = train.model_copy(update={"max_steps": math.ceil(share * steps)})
    return config.model_copy(update={"name": f"{config.name}-short", "train": few})


def _changes(trial: Mapping[str, Any]) -> str:
    """What a trial sets, in words: ``learning_rate 0.001, ``."""
    return "".join(f"{dotted.rpartition('.')[2]} {shown(value)}, " for dotted, value in trial.items())


def _train(bench: Bench, contender: Contender, order: CellOrder) -> Trained:
    """The cell of one trial on one seed, from disk if it is there; a chosen one with its artifact."""
    place = _place(bench, contender, order.trial, order.seed, order.share)
    found = kept(Trained, place.path, place.identity)
    if found is None or (order.chosen and not has_artifact(found, bench.library)):
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
