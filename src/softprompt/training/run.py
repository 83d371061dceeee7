"""From a configuration to a saved prompt: prepares the job, trains it, scores it, keeps it.

It ties the layers below together; it knows nothing of screens or command lines.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch

from softprompt.atomic import plain_disk_errors, write_bytes
from softprompt.base.model import Base
from softprompt.config import Config, dump_toml, load, parse
from softprompt.data.task import refuse_retrieval
from softprompt.errors import ArtifactError, ConfigError, DivergedError
from softprompt.evaluation.score import target_rows
from softprompt.library.folder import Library
from softprompt.library.prompt import Prompt
from softprompt.training.checkpoint import Checkpoint
from softprompt.training.finish import finish
from softprompt.training.job import Job
from softprompt.training.log import Diary
from softprompt.training.loop import Outcome, Report, fit

__all__ = ["train"]


def train(
    base: Base,
    config: Config | Mapping[str, Any] | str | Path,
    *,
    resume: bool = False,
    watch: Callable[[Report], None] = lambda report: None,
    progress: Callable[[str, int, int], None] = lambda split, done, total: None,
    stop: Callable[[], bool] = lambda: False,
    notify: Callable[[str], None] = lambda message: None,
) -> Prompt:
    """Teach a base one job, keep the artifact, and return the prompt.

    Args:
        base: the frozen model; it is not changed and may serve other prompts meanwhile.
        config: a ``Config``, a mapping of settings, or the path of a TOML file.
        resume: go on from where an earlier run of the same configuration was stopped or killed.
        watch: told of every step.
        progress: told (split, rows done, rows) while a split is scored.
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
    wanted = _config(config)
    refuse_retrieval(wanted.data)
    library = Library(wanted.output.library)
    overwrite = _may_overwrite(library, wanted, resume)
    job = Job.prepare(base, wanted)
    for note in job.notes:
        notify(note)
    if wanted.train.threads is not None:
        torch.set_num_threads(wanted.train.threads)
    outcome = _fit(job, resume, watch, progress, stop)
    prompt = finish(job, outcome, progress)
    if outcome.ended != "diverged":
        prompt.save(library, overwrite=overwrite)
        return prompt
    if outcome.best_step == 0:
        raise DivergedError(f"{outcome.trouble} Nothing had been learnt before it, so nothing was saved.")
    folder = prompt.save(library, overwrite=overwrite)
    raise DivergedError(
        f"{outcome.trouble} The best state, of step {outcome.best_step}, is saved in {folder}."
    )


def _fit(
    job: Job,
    resume: bool,
    watch: Callable[[Report], None],
    progress: Callable[[str, int, int], None],
    stop: Callable[[], bool],
) -> Outcome:
    """Run the loop with its diary."""
    folder = _run_folder(job, resume)
    checkpoint = folder / "checkpoint.safetensors"
    done = int(Checkpoint.load(checkpoint).numbers["step"]) if resume and checkpoint.exists() else None
    diary = Diary(folder, tensorboard=job.config.output.tensorboard, keep_to=done)

    def told(report: Report) -> None:
        diary.write(report)
        watch(report)

    try:
        return fit(
            job.method,
            target_rows(job.encoded["train"].examples, whole_text=job.config.data.loss_on == "text"),
            lambda: job.score("validation", partial(progress, "validation")),
            job.config.train,
            seed=job.config.seed,
            checkpoint=checkpoint,
            identity=job.identity,
            resume=resume,
            watch=told,
            stop=stop,
        )
    finally:
        diary.close()


def _config(config: Config | Mapping[str, Any] | str | Path) -> Config:
    return load(config) if isinstance(config, str | Path) else parse(config)


def _may_overwrite(library: Library, config: Config, resume: bool) -> bool:
    """Whether an artifact of this name may be replaced; a taken name is refused before any training."""
    if config.output.overwrite or not (library.path / config.name).exists():
        return config.output.overwrite
    if resume and _was_interrupted(library, config.name):
        return True
    raise ConfigError(
        f"There is a prompt {config.name!r} in {library.path} already; choose another name, or allow "
        "replacing it with output.overwrite = true."
    )


def _was_interrupted(library: Library, name: str) -> bool:
    """Whether what stands there is the unfinished state of a run that is now being resumed."""
    try:
        card = library.load_named(name).card
    except ArtifactError:
        return False
    return card is not None and card.training is not None and card.training.ended == "interrupted"


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
