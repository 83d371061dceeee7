"""The end of a run: test rows scored once, and everything worth knowing written on a card."""

from __future__ import annotations

import platform
import resource
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any

import torch
import transformers

import softprompt
from softprompt.base.model import Base
from softprompt.library.card import BaseCard, Card, DataCard, TemplateCard, TrainingCard
from softprompt.library.prompt import Prompt
from softprompt.prefix import Front, Prefix
from softprompt.training.job import Job
from softprompt.training.loop import Outcome

__all__ = ["finish"]

Progress = Callable[[str, int, int], None]


def finish(
    job: Job,
    outcome: Outcome,
    progress: Progress = lambda split, done, total: None,
    *,
    baseline: bool = True,
) -> Prompt:
    """Score what was learnt beside the untuned base, and make the prompt with its card.

    Test rows are read here and nowhere else, and only at the end of a whole run. ``baseline`` says
    whether to score the untuned base too.
    """
    scores = {"validation": outcome.best.summary()}
    splits = ["validation"]
    if "test" in job.encoded and outcome.ended in ("done", "early"):
        scores["test"] = job.score("test", partial(progress, "test")).summary()
        splits.append("test")
    for split in splits if baseline else ():
        untuned = job.score_untuned(split, partial(progress, f"{split}, untuned"))
        scores[f"{split}, untuned"] = untuned.summary()
    with torch.no_grad():
        front = job.method.front()
    front = front.detached() if isinstance(front, Prefix) else front.detach()
    card = _card(job, outcome, front, scores)
    return Prompt(job.method.base, front, card, job.method.change(), job.base)


def _card(job: Job, outcome: Outcome, front: Front, scores: dict[str, dict[str, Any]]) -> Card:
    config, template = job.config, job.task.template
    return Card(
        format=1,
        name=config.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        kind=config.method.kind,
        base=BaseCard(
            name=job.base.name,
            revision=config.base.revision,
            fingerprint=job.base.fingerprint,
            model_type=job.base.config.model_type,
            dtype=str(job.base.dtype).removeprefix("torch."),
            quantisation=config.base.quantisation,
        ),
        positions=front.length if isinstance(front, Prefix) else len(front),
        trained_parameters=sum(p.numel() for p in job.method.trainable_parameters()),
        template=TemplateCard(
            front=job.front_template,
            input=template.input,
            target=template.target,
            labels=dict(template.labels) if template.labels is not None else None,
            label_column=template.label_column,
            choices=config.data.choices,
            normalise=config.data.normalise,
            calibrate=config.data.calibrate,
            end_of_text=config.data.ends,
            max_tokens=config.data.max_tokens,
        ),
        data={
            name: DataCard(origin=table.origin, rows=len(table), digest=table.digest)
            for name, table in job.task.tables.items()
        },
        scores=scores,
        training=TrainingCard(
            steps=outcome.steps,
            best_step=outcome.best_step,
            ended=outcome.ended,
            seconds=round(outcome.seconds, 2),
            peak_memory_bytes=_peak_memory(job.base),
        ),
        settings=config.model_dump(mode="json"),
        versions={
            "softprompt": softprompt.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
        weights_sha256="",
    )


def _peak_memory(base: Base) -> int:
    """The most memory the process (on a GPU: the device) has held, in bytes."""
    if base.device.type == "cuda":
        return torch.cuda.max_memory_allocated(base.device)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
