"""From a long text, or a saved prompt, to short prompts that answer like it: taught, measured, kept.

It ties the layers below together; it knows nothing of screens or command lines.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from softprompt.atomic import write_bytes
from softprompt.base.model import Base
from softprompt.config import ANSWER, Config
from softprompt.data.sources import read
from softprompt.data.template import Template
from softprompt.distillation.figures import Contestant, Figures, Kept, measure
from softprompt.distillation.page import write_page
from softprompt.distillation.study import study
from softprompt.distillation.teacher import text_of
from softprompt.errors import ConfigError, DataError, DivergedError
from softprompt.evaluation.intervals import Value
from softprompt.evaluation.score import score
from softprompt.library.card import Card
from softprompt.library.folder import Library
from softprompt.library.prefix_format import PromptPayload
from softprompt.library.prompt import Prompt
from softprompt.listener import SILENT, Listener
from softprompt.methods.front import Words, parse_front
from softprompt.packages import require
from softprompt.prefix import Front
from softprompt.report.notebook import grid_html
from softprompt.team import refuse_company
from softprompt.training.job import Job
from softprompt.training.results import final_test
from softprompt.training.run import config_of, folder_of, may_overwrite, open_folder
from softprompt.training.search import Combined
from softprompt.training.threads import threads
from softprompt.training.trial import TrialRun, fit_trials

__all__ = ["FIGURES", "LEAST", "REPORT", "Distilled", "distil", "lengths"]

FIGURES, REPORT = "distilled.json", "report.html"

LEAST = 0.01
"""Nats a token by which a text has to change the answers, or there is nothing to learn."""


@dataclass(frozen=True)
class Distilled:
    """What came of it.

    Attributes:
        prompts: one for each length, shortest first, saved in the library.
        figures: what they and the cheap alternatives keep, on held-out questions; None where training was
            stopped.
        folder: where the figures lie, as ``distilled.json`` and ``report.html``.
    """

    prompts: tuple[Prompt, ...]
    figures: Figures | None
    folder: Path

    def __repr__(self) -> str:
        if self.figures is None:
            return f"<Distilled {self.prompt.name}, stopped before its figures>"
        rows = self.figures.of("learnt")
        kept = ", ".join(f"{row.positions} positions keep {_share(row.kept)}" for row in rows)
        return f"<Distilled {self.figures.name}: {kept} of {self.figures.teacher}>"

    def _repr_html_(self) -> str:
        found = self.figures
        if found is None:
            return grid_html(self.prompt.name, (), (), repr(self)[1:-1])
        rows = [[row.name, str(row.positions), _share(row.kept), _share(row.likeliest)] for row in found.rows]
        note = f"Of {found.teacher}, on {found.questions} held-out questions; 95% intervals in brackets."
        return grid_html(found.name, ("", "positions", "kept", "same next token"), rows, note)

    @property
    def prompt(self) -> Prompt:
        """The longest, or the only one."""
        return self.prompts[-1]


def _share(value: Value) -> str:
    return f"{value.value:.0%} ({value.low:.0%} to {value.high:.0%})"


def distil(
    base: Base,
    config: Config | Mapping[str, Any] | str | Path,
    *,
    resume: bool = False,
    listener: Listener = SILENT,
) -> Distilled:
    """Teach short prompts to answer as the base does with a long text before it, or like a saved prompt.

    The teacher answers every question once; each length then learns to expect, at every token of those
    answers, what the teacher expected. All lengths train together.

    Args:
        base: the frozen model; it is not changed.
        config: as for ``train``, with a ``[teacher]``; the rows of ``[data]`` are the questions and need no
            answers. Without test rows half of the held-back ones are kept for the figures.
        resume: go on from where an earlier run of the same configuration was stopped or killed.
        listener: as for ``train``; told of all lengths as if they were one run.

    Raises:
        ConfigError: a setting is wrong, there is no teacher, or a search.
        DataError: rows or text are wrong, the text is too long, or it changes nothing in the answers.
        DivergedError: a loss ran away; what the others learnt was saved.
        ResourceError: the disk refuses, or a package is missing.
    """
    refuse_company("Distilling")
    wanted = lengths(config_of(config))
    require("an HTML page", *(need for one in wanted for need in one.needs))
    overwrite = [may_overwrite(Library(one.output.library), one, resume) for one in wanted]
    with threads(wanted[0].train.threads):
        began = time.monotonic()
        wanted = _with_questions(base, wanted, listener)
        first = Job.prepare(base, wanted[0], listener, reserve=True)
        assert first.lessons is not None
        for note in first.notes:
            listener.note(note)
        _say_whether_it_helps(first, listener)
        jobs = [first, *(first.with_method(one) for one in wanted[1:])]
        trials = [TrialRun(base, job.config, folder_of(job.config), _job=job) for job in jobs]
        with torch.no_grad():
            starts = [job.method.front() for job in jobs]
        for trial in trials:
            open_folder(trial.config, trial, resume)
        spent = time.monotonic() - began
        _fit(trials, listener, resume)
        spent += max(trial.outcome.seconds for trial in trials if trial.outcome is not None)
        return _kept(config_of(config).name, trials, starts, spent, overwrite, listener)


def lengths(config: Config) -> list[Config]:
    """A configuration for each length that is to be learnt, shortest first.

    Raises:
        ConfigError: there is no teacher, a search, or a method that has no length.
    """
    if config.teacher is None:
        raise ConfigError("There is nobody to learn from; give [teacher] a text, a file or a prompt.")
    if config.search is not None:
        raise ConfigError(f"{config.name} has a search, which softprompt train runs; leave [search] out.")
    if getattr(config.method, "of_length", None) is None:
        raise ConfigError(
            f'method.kind "{config.method.kind}" has no length to choose; set it to "prefix-tuning" or '
            '"prompt-tuning".'
        )
    several = sorted(config.teacher.positions)
    method: Any = _with_a_start(config).method
    names = [config.name if len(several) == 1 else f"{config.name}-{length}" for length in several]
    return [
        config.model_copy(update={"name": name, "method": method.of_length(length)})
        for name, length in zip(names, several, strict=True)
    ]


def _fit(trials: Sequence[TrialRun], listener: Listener, resume: bool) -> None:
    """Train all lengths at once, told of as one run."""
    combined = Combined(listener.step, len(trials), trials[0].config.train.select)

    def stop() -> bool:  # asked of each run after all have taken a step
        combined.flush()
        return listener.stop()

    heard = [replace(listener, step=partial(combined.add, trial.config.name), stop=stop) for trial in trials]
    fit_trials(trials, heard, resume=resume)


def _with_a_start(config: Config) -> Config:
    """An adapter has no positions to start from, so questions it solved stand in for them."""
    source = getattr(config.method, "init_artifact", None)
    if source is None or isinstance(Library(config.output.library).load(source).payload, PromptPayload):
        return config
    method = config.method.model_copy(update={"init": "text", "init_artifact": None, "front": "{demos:8}"})
    return config.model_copy(update={"method": method})


def _with_questions(base: Base, configs: Sequence[Config], listener: Listener) -> list[Config]:
    """Configurations whose training rows have the questions the base made up among them, if it is to."""
    config = configs[0]
    teacher = config.teacher
    assert teacher is not None
    if not teacher.study:
        return list(configs)
    if config.data.messages is not None:
        raise ConfigError(
            "teacher.study makes up single questions, but data.messages reads conversations; leave one out."
        )
    text = text_of(teacher)
    fields = Template(config.data.input, ANSWER).input_fields
    if text is None or len(fields) != 1:
        raise ConfigError(
            "teacher.study needs a text to ask about, and a data.input with one field for the questions."
        )
    words = "".join(part.text for part in parse_front(text) if isinstance(part, Words))
    ids = base.encode(words)
    rows = config.data.train
    own = [] if rows is None else list(read(rows, separator=config.data.separator).rows)
    about = [ids, own, teacher.study, fields, config.seed, base.fingerprint]
    name = hashlib.sha256(json.dumps(about, default=str).encode()).hexdigest()[:16]
    folder = Path(config.output.runs) / "questions"
    made = folder / f"{name}.jsonl"
    count = study(base, ids, teacher.study, fields[0], made, seed=config.seed, progress=listener.progress)
    listener.note(
        f"The base made {count} questions about the text; they lie in {made}, to be read and mended."
    )
    source = made
    if own:
        source = folder / f"{name}-and-yours.jsonl"
        lines = [made.read_text(encoding="utf-8"), *(json.dumps(row) + "\n" for row in own)]
        write_bytes(source, "".join(lines).encode())
    return [
        one.model_copy(update={"data": one.data.model_copy(update={"train": str(source)})}) for one in configs
    ]


def _say_whether_it_helps(job: Job, listener: Listener) -> None:
    """Refuse a text that changes nothing; say so where answers are known and get no better."""
    assert job.lessons is not None
    encoded = job.encoded["validation"]
    if all(example.label is not None for example in encoded.examples):
        pairs = list(zip(encoded.examples, job.lessons.answers["validation"], strict=True))
        right = sum(
            any(a.ids == encoded.candidates(e)[n] for n in e.right or (e.label,) if n is not None)
            for e, a in pairs
        )
        bare = score(job.base, job.lessons.bare, encoded).accuracy or 0.0
        if right <= bare * len(pairs):
            listener.note(
                f"The text does not help: {right / len(pairs):.1%} of the validation rows are answered right "
                f"with it and {bare:.1%} without, so its answers may not be worth learning."
            )
    found = job.score_untuned("validation", listener.counting("validation, untuned"))
    if found.nll < LEAST:
        raise DataError(
            f"The text changes hardly anything in the answers ({found.nll:.4f} nats a token), so there is "
            "nothing to learn from it; take other questions, or another text."
        )


def _kept(
    name: str,
    trials: Sequence[TrialRun],
    starts: Sequence[Front],
    spent: float,
    overwrite: Sequence[bool],
    listener: Listener,
) -> Distilled:
    """Every length measured on held-out questions and saved, with the page beside the first one's log."""
    prompts = [final_test(t.job, t.outcome, listener) for t in trials if t.outcome is not None]
    ran_away = [f"{t.config.name}: {t.error} Its best state was saved." for t in trials if t.error]
    stopped = any(trial.ended == "interrupted" for trial in trials)
    figures = None if stopped else _figures(name, trials[0].job, prompts, starts, spent, listener)
    if figures is not None:
        prompts = [replace(one, card=_with_figures(one.card, figures)) for one in prompts]
    for prompt, trial, may in zip(prompts, trials, overwrite, strict=True):
        prompt.save(Library(trial.config.output.library), overwrite=may)
    folder = folder_of(trials[0].config)
    if figures is not None:
        write_bytes(folder / FIGURES, json.dumps(figures.to_json(), indent=1).encode())
        write_page(figures, folder / REPORT)
    for row in () if figures is None else figures.of("learnt"):
        if row.kept.value <= 0:
            listener.note(
                f"{row.name} keeps nothing: its answers are no nearer to the teacher's than the base's own."
            )
    if ran_away:
        raise DivergedError(ran_away[0])
    return Distilled(tuple(prompts), figures, folder)


def _figures(
    name: str, job: Job, prompts: Sequence[Prompt], starts: Sequence[Front], spent: float, listener: Listener
) -> Figures:
    assert job.lessons is not None
    assert job.config.teacher is not None
    return measure(
        name,
        job.lessons,
        job.encoded["test"],
        "test",
        _contestants(job, prompts, starts),
        spent=spent,
        max_new_tokens=job.config.teacher.max_new_tokens,
        stop=job.config.teacher.stop,
        progress=listener.progress,
    )


def _contestants(job: Job, prompts: Sequence[Prompt], starts: Sequence[Front]) -> list[Contestant]:
    """What was learnt, what it was before, the text cut to each length, nothing, and the teacher."""
    assert job.lessons is not None
    teacher, base = job.lessons.teacher, job.base
    found = [Contestant(prompt.name, "learnt", prompt.front, prompt.base) for prompt in prompts]
    for prompt, start in zip(prompts, starts, strict=True):
        found.append(Contestant(f"{prompt.name}, untrained", "start", start, prompt.base))
        if teacher.ids[prompt.card.positions :]:
            cut = base.embed(teacher.ids[: prompt.card.positions])
            found.append(Contestant(f"the text's first {prompt.card.positions} tokens", "cut", cut, base))
    found.append(Contestant("nothing", "bare", job.lessons.bare, base))
    return [*found, Contestant("the whole teacher", "text", teacher.prefix, teacher.base)]


def _with_figures(card: Card, figures: Figures) -> Card:
    """A card with what its prompt keeps on test questions, what its start kept, and what it costs."""
    own, costs = figures.row(card.name), figures.costs
    cost: dict[str, Any] = {
        "kilobytes": own.kilobytes,
        "seconds_to_first_token": costs.prompts[card.name],
        "seconds_reading_the_text": costs.read,
        "seconds_text_kept_in_memory": costs.stored,
    }
    if (even := costs.break_even(card.name)) is not None:
        cost["requests_to_break_even"] = even
    scores = dict(card.scores)
    scores["test"] = scores["test"] | _in_numbers(own)
    scores["test, untrained"] = _in_numbers(figures.row(f"{card.name}, untrained"))
    scores["test, teacher"] = _in_numbers(figures.row("the whole teacher"))
    return card.model_copy(update={"scores": scores | {"cost": cost}})


def _in_numbers(row: Kept) -> dict[str, Any]:
    """The values of a row and their intervals."""
    names = ("nats", "kept", "likeliest", "same", "rouge", "numbers", "accuracy")
    found: dict[str, Any] = {}
    for name in names:
        value = getattr(row, name)
        if value is not None:
            found |= {name: value.value, f"{name}_interval": (value.low, value.high)}
    return found
