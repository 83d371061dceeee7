"""One job from its configuration to a prompt: rows, method, training, scores, card.

It ties the layers below together; it knows nothing of screens or command lines.
"""

from __future__ import annotations

import hashlib
import json
import platform
import resource
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

import softprompt
from softprompt.atomic import plain_disk_errors, write_bytes
from softprompt.base.model import Base
from softprompt.config import Config, dump_toml, load, parse
from softprompt.data.chat import in_chat
from softprompt.data.rows import Encoded
from softprompt.data.task import Task, load_task
from softprompt.errors import ArtifactError, ConfigError, DivergedError
from softprompt.evaluation.score import Scores, score, target_rows
from softprompt.library.card import BaseCard, Card, DataCard, TemplateCard, TrainingCard
from softprompt.library.folder import Library, check_base
from softprompt.library.peft_format import to_front
from softprompt.library.prompt import Prompt
from softprompt.methods.build import Material, build_method
from softprompt.methods.method import Method
from softprompt.prefix import Prefix
from softprompt.training.checkpoint import Checkpoint
from softprompt.training.log import Diary
from softprompt.training.loop import Outcome, Report, fit

__all__ = ["Job", "train"]

UNTUNED = "untuned"


@dataclass(frozen=True, eq=False)
class Job:
    """A configuration met with a base: everything that is needed to train, nothing yet trained.

    Attributes:
        config: resolved.
        base: the frozen model.
        task: rows and template.
        encoded: rows in tokens, by split.
        method: what will be trained.
        front_template: the front as it will be shown, chat marks included.
    """

    config: Config
    base: Base
    task: Task
    encoded: Mapping[str, Encoded]
    method: Method
    front_template: str

    @classmethod
    def prepare(cls, base: Base, config: Config) -> Job:
        """Read the rows and build the method; every fault of the data shows here, before any training."""
        front, task_input = config.method.front, config.data.input
        if config.data.chat:
            front, task_input = in_chat(front, task_input, base.render_chat)
        task = load_task(config.data, config.seed, input=task_input)
        end = (base.end_id,) if config.data.ends and base.end_id is not None else ()
        encoded = {
            name: task.encode(name, base.encode, max_tokens=config.data.max_tokens, end=end)
            for name in task.tables
        }
        material = Material(
            demonstrations=lambda count: task.demonstrations(count, config.seed),
            artifact=lambda name: _saved_vectors(name, base, config.output.library),
            label_words=task.template.candidates() if task.template.labels else (),
            seed=config.seed,
        )
        method = build_method(config.method.model_copy(update={"front": front}), base, material)
        return cls(config, base, task, encoded, method, front)

    @property
    def notes(self) -> tuple[str, ...]:
        """Plain sentences a reader of the results should know."""
        return tuple(dict.fromkeys((*self.task.notes, *(n for e in self.encoded.values() for n in e.notes))))

    @property
    def identity(self) -> str:
        """Names settings, rows and base: what a checkpoint must share to be resumed."""
        settings = self.config.model_dump(mode="json", exclude={"output"})
        digests = {name: table.digest for name, table in self.task.tables.items()}
        whole = json.dumps([settings, digests, self.base.fingerprint], sort_keys=True)
        return hashlib.sha256(whole.encode()).hexdigest()

    def score(self, split: str, progress: Callable[[int, int], None] | None = None) -> Scores:
        """Scores of the method as it stands."""
        return score(self.base, self.method.front(), self.encoded[split], progress)

    def score_untuned(self, split: str) -> Scores:
        """Scores of the bare base behind the same template."""
        return score(self.base, self.base.embed(self.base.start_ids), self.encoded[split])


def train(
    base: Base,
    config: Config | Mapping[str, Any] | str | Path,
    *,
    resume: bool = False,
    watch: Callable[[Report], None] = lambda report: None,
    stop: Callable[[], bool] = lambda: False,
    notify: Callable[[str], None] = lambda message: None,
) -> Prompt:
    """Teach a base one job, keep the artifact, and return the prompt.

    Args:
        base: the frozen model; it is not changed and may serve other prompts meanwhile.
        config: a ``Config``, a mapping of settings, or the path of a TOML file.
        resume: go on from where an earlier run of the same configuration was stopped or killed.
        watch: told of every step.
        stop: asked after every step whether to end now and keep the best so far.
        notify: told plain sentences about the data and the run.

    Returns:
        The prompt in its best validated state, saved in the library under ``config.name``.

    Raises:
        ConfigError: a setting is wrong.
        DataError: a source, template, row or label is wrong.
        DivergedError: the loss ran away; the best state was saved if there was one.
        ResourceError: the disk refuses, or an artifact of that name exists.
    """
    job = Job.prepare(base, _config(config))
    for note in job.notes:
        notify(note)
    library = Library(job.config.output.library)
    _refuse_overwriting(library, job.config)
    if job.config.train.threads is not None:
        torch.set_num_threads(job.config.train.threads)
    folder = _run_folder(job, resume)
    checkpoint = folder / "checkpoint.safetensors"
    done = int(Checkpoint.load(checkpoint).numbers["step"]) if resume and checkpoint.exists() else None
    diary = Diary(folder, tensorboard=job.config.output.tensorboard, keep_to=done)

    def told(report: Report) -> None:
        diary.write(report)
        watch(report)

    try:
        outcome = fit(
            job.method,
            target_rows(job.encoded["train"].examples, whole_text=job.config.data.loss_on == "text"),
            lambda: job.score("validation"),
            job.config.train,
            seed=job.config.seed,
            checkpoint=checkpoint,
            identity=job.identity,
            resume=resume,
            watch=told,
            stop=stop,
        )
    except DivergedError as error:
        raise DivergedError(f"{error} See {folder}.") from None
    finally:
        diary.close()
    prompt = _finish(job, outcome)
    prompt.save(library, overwrite=job.config.output.overwrite)
    return prompt


def _config(config: Config | Mapping[str, Any] | str | Path) -> Config:
    return load(config) if isinstance(config, str | Path) else parse(config)


def _refuse_overwriting(library: Library, config: Config) -> None:
    """Before any training, not after it."""
    if (library.path / config.name).exists() and not config.output.overwrite:
        raise ConfigError(
            f"There is a prompt {config.name!r} in {library.path} already; choose another name, or allow "
            "replacing it with output.overwrite = true."
        )


def _run_folder(job: Job, resume: bool) -> Path:
    """The folder of log, checkpoint and resolved settings; an earlier run's is moved aside unless resumed."""
    folder = Path(job.config.output.runs) / job.config.name
    with plain_disk_errors(folder):
        if folder.exists() and not resume:
            aside = folder.with_name(f"{folder.name}.before-{datetime.now(UTC):%Y%m%d-%H%M%S-%f}")
            folder.rename(aside)
        folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / "config.toml", dump_toml(job.config).encode())
    return folder


def _finish(job: Job, outcome: Outcome) -> Prompt:
    """Score the test rows once, and write the card."""
    scores = {"validation": outcome.best.summary(), f"validation, {UNTUNED}": _untuned(job, "validation")}
    if "test" in job.encoded and outcome.ended != "interrupted":
        scores["test"] = job.score("test").summary()
        scores[f"test, {UNTUNED}"] = _untuned(job, "test")
    with torch.no_grad():
        front = job.method.front()
    front = front.detached() if isinstance(front, Prefix) else front.detach()
    positions = front.length if isinstance(front, Prefix) else len(front)
    config, template = job.config, job.task.template
    card = Card(
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
        ),
        positions=positions,
        trained_parameters=sum(p.numel() for p in job.method.trainable_parameters()),
        template=TemplateCard(
            front=job.front_template,
            input=template.input,
            target=template.target,
            labels=dict(template.labels) if template.labels is not None else None,
            label_column=template.label_column,
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
    return Prompt(job.base, front, card)


def _untuned(job: Job, split: str) -> dict[str, object]:
    return job.score_untuned(split).summary()


def _peak_memory(base: Base) -> int:
    """The most memory the process (on a GPU: the device) has held, in bytes."""
    if base.device.type == "cuda":
        return torch.cuda.max_memory_allocated(base.device)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _saved_vectors(name: str, base: Base, library: str) -> Tensor:
    """The learnt front of another prompt, to start from."""
    artifact = Library(library).load(name)
    if artifact.card is not None:
        check_base(artifact, base)
    front = to_front(artifact.learnt, base)
    if isinstance(front, Prefix):
        raise ArtifactError(f"{name} is a KV prefix; a soft prompt can only start from another soft prompt.")
    return front
