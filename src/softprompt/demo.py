"""The tutorials' story with the numbers they never gave: two soft prompts on one loaded base.

It knows which jobs are shown and what is measured; it does not know how results are drawn.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from softprompt import recipes
from softprompt.base.model import Base
from softprompt.config import Config, TextConfig, parse
from softprompt.evaluation.score import Scores
from softprompt.library.prompt import Prompt, answer_together
from softprompt.listener import Listener, Report
from softprompt.training.job import Job
from softprompt.training.run import train

__all__ = ["Answer", "Demo", "JobResult", "Stage", "run_demo"]

OPENINGS = (
    "I want you to act as a motivational coach. ",
    "There are two nice things that should matter to you:",
)
"""The test prompts of the tutorial this demo follows."""

HEADLINES = ("Rates on hold as bank waits for growth", "Striker out for six weeks after cup final knock")
DEMONSTRATIONS = 5
ANSWER = {"max_new_tokens": 40}


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
class JobResult:
    """One job: the scores of each row of the table on test rows, and the tuned prompt.

    Attributes:
        scores: row title -> scores on the same test rows.
        prompt: the tuned prompt.
        folder: where it was saved.
    """

    scores: dict[str, Scores]
    prompt: Prompt
    folder: Path

    @property
    def artifact_bytes(self) -> int:
        """Bytes of the learnt weights on disk."""
        return (self.folder / "adapter_model.safetensors").stat().st_size


@dataclass(frozen=True)
class Answer:
    """One text answered: by whom, and what came."""

    prompt: str
    text: str
    answer: str


@dataclass(frozen=True)
class Demo:
    """Everything the demo measured."""

    topics: JobResult
    quotes: JobResult
    before: tuple[Answer, ...]
    after: tuple[Answer, ...]
    together: tuple[Answer, ...]


def run_demo(base: Base, stage: Stage, *, library: str = "prompts", runs: str = "runs") -> Demo:
    """Train the two prompts, measure them on test rows, and answer rows of both and the bare base at once.

    Args:
        base: one loaded model, used for everything.
        stage: told what goes on.
        library: folder the two prompts are saved in, replacing those of an earlier demo.
        runs: folder of logs and checkpoints.
    """
    output = {"library": library, "runs": runs, "overwrite": True}
    topics = _run_job(base, stage, "bbc-topics", output, with_demonstrations=True)
    quotes = _run_job(base, stage, "quotes", output, with_demonstrations=False)
    with stage.counting("Answering"):
        before = _answers(base, [(None, text) for text in OPENINGS])
        after = _answers(base, [(quotes.prompt, text) for text in OPENINGS])
        together = _answers(
            base,
            [
                (topics.prompt, HEADLINES[0]),
                (quotes.prompt, "The best way to"),
                (None, "The capital of France is"),
                (topics.prompt, HEADLINES[1]),
            ],
            max_new_tokens=12,
        )
    return Demo(topics, quotes, before, after, together)


def _run_job(
    base: Base, stage: Stage, recipe: str, output: dict[str, Any], *, with_demonstrations: bool
) -> JobResult:
    config = parse({**tomllib.loads(recipes.text(recipe)), "output": output})
    with stage.training(f"{recipe}: training {config.method.front}") as watch:
        prompt = train(base, config, listener=Listener(step=watch.report, progress=watch.progress))
    scores = {"untuned": Scores.from_json(prompt.card.scores["test, untuned"])}
    if with_demonstrations:
        title = f"{DEMONSTRATIONS} demonstrations"
        scores[title] = _score(base, stage, config, f"{{demos:{DEMONSTRATIONS}}}", f"{recipe}: {title}")
    scores["soft prompt"] = Scores.from_json(prompt.card.scores["test"])
    return JobResult(scores, prompt, Path(output["library"]) / prompt.name)


def _score(base: Base, stage: Stage, config: Config, front: str, title: str) -> Scores:
    """Test scores of a front of plain text."""
    job = Job.prepare(base, config.model_copy(update={"method": TextConfig(front=front)}))
    with stage.counting(title) as progress:
        return job.score("test", progress)


def _answers(base: Base, requests: list[tuple[Prompt | None, str]], **sampling: Any) -> tuple[Answer, ...]:
    answers = answer_together(requests, base, **{**ANSWER, **sampling})
    names = [prompt.name if prompt is not None else "the bare base" for prompt, _ in requests]
    return tuple(Answer(n, t, a) for n, (_, t), a in zip(names, requests, answers, strict=True))
