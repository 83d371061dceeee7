"""The tutorials' story with the numbers they never gave: three soft prompts on one loaded base.

It knows which jobs are shown, what is asked and what is measured; it does not know how results are drawn.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from softprompt import recipes
from softprompt.base.model import Base
from softprompt.config import Config, TextConfig, parse
from softprompt.data.table import Table
from softprompt.evaluation.intervals import Interval, sampled_ratio, wilson
from softprompt.evaluation.paired import Difference, paired_difference
from softprompt.evaluation.score import Scores
from softprompt.generation.offline import generate
from softprompt.generation.request import Event, Finished, GenerateRequest
from softprompt.generation.sampler import Sampling
from softprompt.library.folder import Library
from softprompt.library.prompt import Prompt
from softprompt.listener import Listener, Report
from softprompt.training.job import Job
from softprompt.training.run import train

__all__ = [
    "Answer",
    "Demo",
    "JobResult",
    "Stage",
    "WholeSentences",
    "openings",
    "run_demo",
    "whole_sentences",
]

OPENINGS = {
    "roles": (
        "I want you to act as a motivational coach.",
        "I want you to act as a travel guide.",
        "I want you to act as a chef.",
    ),
    "quotes": (
        "There are two nice things that should matter to you:",
        "Life",
        "The best way to",
        "Friendship",
    ),
}
"""What each prompt is asked: the test prompt of the tutorials, then openings fixed before any was answered.

The tutorials' first text ends in a space there. That space would be a token of its own, which no training row
has, so it is left out.
"""

HEADLINES = ("Rates on hold as bank waits for growth", "Striker out for six weeks after cup final knock")
DEMONSTRATIONS = 5
NEW_TOKENS = 40

_OPENING_WORDS = 3
_ONE_SENTENCE = re.compile(r"[^.!?\n]+[.!?]+[\"'”’)]*")


class Watch(Protocol):
    """Told of every step, and of (split, rows done, rows) while a split is scored."""

    def report(self, report: Report) -> None: ...

    def progress(self, split: str, done: int, total: int) -> None: ...


class Stage(Protocol):
    """Where the demo says what it is doing."""

    def training(self, title: str) -> AbstractContextManager[Watch]:
        """A stage with steps and, between them, rows that are scored."""
        ...

    def counting(self, title: str) -> AbstractContextManager[Callable[[int, int], None]]:
        """A stage of (done, total)."""
        ...


@dataclass(frozen=True)
class WholeSentences:
    """How many of some answers end as one sentence, see ``finished``."""

    hits: int
    rows: int

    @property
    def share(self) -> float:
        return self.hits / self.rows

    @property
    def interval(self) -> Interval:
        """Wilson's, of 95%."""
        return wilson(self.hits, self.rows)


@dataclass(frozen=True)
class Answer:
    """One text answered: by whom, what came, and whether it ended by itself before the most tokens."""

    prompt: str
    text: str
    answer: str
    whole: bool


@dataclass(frozen=True)
class JobResult:
    """One job: the scores of each way on the same test rows, and the tuned prompt.

    Attributes:
        scores: title of a way -> its scores; "untuned" and "soft prompt" are among them.
        finished: the same for how many answers end as one sentence; empty where that says nothing.
        prompt: the tuned prompt.
        folder: where it was saved.
        before: what the bare base answered to the job's openings.
        after: what the tuned prompt answered to them.
        change: nats a token, after less before, on the same test rows resampled together; None where
            nothing was written.
    """

    scores: dict[str, Scores]
    finished: dict[str, WholeSentences]
    prompt: Prompt
    folder: Path
    before: tuple[Answer, ...] = ()
    after: tuple[Answer, ...] = ()
    change: Difference | None = None

    @property
    def artifact_bytes(self) -> int:
        """Bytes of the learnt weights on disk."""
        return (self.folder / "adapter_model.safetensors").stat().st_size


@dataclass(frozen=True)
class Demo:
    """Everything the demo measured."""

    roles: JobResult
    quotes: JobResult
    topics: JobResult
    together: tuple[Answer, ...]

    @property
    def jobs(self) -> tuple[JobResult, ...]:
        """The three jobs, in the order they were learnt."""
        return self.roles, self.quotes, self.topics


def run_demo(base: Base, stage: Stage, *, library: str = "prompts", runs: str = "runs") -> Demo:
    """Train the three prompts, measure them on test rows, and answer rows of all and the bare base at once.

    Args:
        base: one loaded model, used for everything.
        stage: told what goes on.
        library: folder the prompts are saved in, replacing those of an earlier demo.
        runs: folder of logs and checkpoints.
    """
    output = {"library": library, "runs": runs, "overwrite": True}
    roles = _run_job(base, stage, _config("roles", output))
    quotes = _run_job(base, stage, _config("quotes", output), sentences=True)
    topics = _run_job(base, stage, _config("bbc-topics", output), demonstrations=DEMONSTRATIONS)
    with stage.counting("Answering one batch with all of them"):
        together = _answers(
            base,
            [
                (topics.prompt, HEADLINES[0]),
                (quotes.prompt, "The best way to"),
                (None, "The capital of France is"),
                (roles.prompt, "I want you to act as a"),
                (topics.prompt, HEADLINES[1]),
            ],
            tokens=12,
        )
    return Demo(roles, quotes, topics, together)


def _config(recipe: str, output: dict[str, Any]) -> Config:
    return parse({**tomllib.loads(recipes.text(recipe)), "output": output})


def _run_job(
    base: Base, stage: Stage, config: Config, *, demonstrations: int = 0, sentences: bool = False
) -> JobResult:
    """Train one prompt and hold it against the bare base: by score, by sentences, by what both write."""
    name = config.name
    with stage.training(f"{name}: training {config.method.front}") as watch:
        prompt = train(base, config, listener=Listener(step=watch.report, progress=watch.progress))
    scores = {"untuned": Scores.from_json(prompt.card.scores["test, untuned"])}
    if demonstrations:
        title = f"{demonstrations} demonstrations"
        scores[title] = _score(base, stage, config, f"{{demos:{demonstrations}}}", f"{name}: {title}")
    scores["soft prompt"] = Scores.from_json(prompt.card.scores["test"])
    texts, ended, change = OPENINGS.get(name, ()), dict[str, WholeSentences](), None
    tested = Job.prepare(base, config).task.tables["test"]
    starts = openings(tested) if sentences else ()
    with stage.counting(f"{name}: answering"):
        asked = [(p, text) for p in (None, prompt) for text in texts]
        asked += [(p, start) for p in (prompt.bare(), prompt) for start in starts]
        answers = _answers(base, asked)
    if sentences:
        untuned, tuned = answers[2 * len(texts) : -len(starts)], answers[-len(starts) :]
        ended = {"untuned": whole_sentences(untuned), "soft prompt": whole_sentences(tuned)}
    if texts:
        with stage.counting(f"{name}: before and after, row by row"):
            after, before = (
                [sampled_ratio(found.losses, found.tokens)]
                for found in (p.evaluate(tested) for p in (prompt, prompt.bare()))
            )
        change = paired_difference(after, before)
    return JobResult(
        scores,
        ended,
        prompt,
        Library(config.output.library).find(name),
        answers[: len(texts)],
        answers[len(texts) : 2 * len(texts)],
        change,
    )


def _score(base: Base, stage: Stage, config: Config, front: str, title: str) -> Scores:
    """Test scores of a front of plain text."""
    job = Job.prepare(base, config.model_copy(update={"method": TextConfig(front=front)}))
    with stage.counting(title) as progress:
        return job.score("test", progress)


def openings(rows: Table) -> tuple[str, ...]:
    """The first three words of each row's ``text``."""
    return tuple(" ".join(str(row["text"]).split()[:_OPENING_WORDS]) for row in rows.rows)


def whole_sentences(answers: Iterable[Answer]) -> WholeSentences:
    """How many openings were gone on with to the end of one sentence.

    One counts when its answer ended by itself before the most tokens, and opening and answer together are one
    sentence: they end in a full stop, an exclamation or a question mark (closing quotes or brackets may
    follow) and hold neither another of these marks nor a line break before.
    """
    hits = [a.whole and _ONE_SENTENCE.fullmatch((a.text + a.answer).strip()) is not None for a in answers]
    return WholeSentences(sum(hits), len(hits))


def _answers(
    base: Base, asked: Iterable[tuple[Prompt | None, str]], tokens: int = NEW_TOKENS
) -> tuple[Answer, ...]:
    """Greedy answers of prompts, or of the bare base, all in one batch."""
    asked, bare, sampling = list(asked), base.prefill_text(""), Sampling(max_new_tokens=tokens)
    requests = [
        p.request(text, sampling)
        if p is not None
        else GenerateRequest(model=base, prefix=bare, ids=tuple(base.encode(text)), sampling=sampling)
        for p, text in asked
    ]
    whole = set[int]()

    def hear(number: int, event: Event) -> None:
        if isinstance(event, Finished) and event.reason == "stop":
            whole.add(number)

    answers = generate(requests, on_event=hear)
    return tuple(
        Answer(prompt.name if prompt is not None else "the bare base", text, answer, row in whole)
        for row, ((prompt, text), answer) in enumerate(zip(asked, answers, strict=True))
    )
