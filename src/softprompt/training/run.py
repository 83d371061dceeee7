"""From a configuration to a saved prompt: prepares the job, trains it, scores it, keeps it.

It ties the layers below together; it knows nothing of screens or command lines.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from softprompt.atomic import plain_disk_errors, write_bytes
from softprompt.base.model import Base
from softprompt.config import Config, candidates, dump_toml, load, parse
from softprompt.config_io import read_toml
from softprompt.data.task import refuse_retrieval
from softprompt.errors import ArtifactError, ConfigError, DivergedError, TrainingError
from softprompt.library.folder import Library
from softprompt.library.prompt import Prompt
from softprompt.packages import require
from softprompt.training.job import identity_of
from softprompt.training.keep import keep, keep_found
from softprompt.training.loop import Report
from softprompt.training.search import Search
from softprompt.training.threads import threads
from softprompt.training.trial import Trial, fit_trials, identities

__all__ = ["train", "train_many"]

_SETTINGS = "config.toml"


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

    With several candidates or seeds in ``config.search`` they train together; what is chosen on
    validation is returned, and its card tells of the others.

    Args:
        base: the frozen model; it is not changed and may serve other prompts meanwhile.
        config: a ``Config``, a mapping of settings, or the path of a TOML file.
        resume: go on from where an earlier run of the same configuration was stopped or killed.
        watch: told of every step; of runs that train together as if they were one.
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
    require(*wanted.needs)
    refuse_retrieval(wanted.data)
    library = Library(wanted.output.library)
    overwrite = _may_overwrite(library, wanted, resume)
    with threads(wanted.train.threads):
        alone = _alone(wanted)
        if alone is not None:
            trial = _fit_one(base, alone, resume, watch, progress, stop, notify)
            return keep(trial, library, overwrite=overwrite, progress=progress)
        search = Search(
            base, wanted, _folder(wanted), watch=watch, progress=progress, stop=stop, notify=notify
        )
        for note in search.tried[0].job.notes:
            notify(note)
        _open_folder(wanted, search.tried[0], resume)
        return keep_found(search.found(), library, overwrite=overwrite, progress=progress, notify=notify)


def train_many(
    base: Base,
    configs: Sequence[Config | Mapping[str, Any] | str | Path],
    *,
    resume: bool = False,
    watch: Callable[[str, Report], None] = lambda name, report: None,
    progress: Callable[[str, int, int], None] = lambda split, done, total: None,
    stop: Callable[[], bool] = lambda: False,
    notify: Callable[[str], None] = lambda message: None,
) -> list[Prompt]:
    """Teach a base several jobs side by side: each learns what it would have learnt alone.

    Rows of all jobs are read in the same passes, each behind its own front; losses, rates and ends are apart.

    Args:
        base: the frozen model.
        configs: one a job, as for ``train``; each has a name of its own, and none a search.
        resume: each goes on from where it was stopped or killed.
        watch: told (name, report) of every step.
        progress: told (split, rows done, rows) while a split is scored.
        stop: asked after every step whether to end all now and keep the best of each so far.
        notify: told plain sentences about the data and the runs.

    Returns:
        The prompts in the order of ``configs``, saved in their libraries.

    Raises:
        As ``train``; DivergedError only when what the others learnt has been saved.
    """
    wanted = [_config(config) for config in configs]
    require(*(need for one in wanted for need in one.needs))
    _check_apart(wanted)
    overwrite = [_may_overwrite(Library(one.output.library), one, resume) for one in wanted]
    trials = [Trial(base, one, _folder(one)) for one in wanted]
    for trial in trials:
        for note in trial.job.notes:
            notify(f"{trial.config.name}: {note}")
    for trial in trials:
        _open_folder(trial.config, trial, resume)
    with threads(max((one.train.threads or 0 for one in wanted), default=0) or None):
        fit_trials(
            trials,
            resume=resume,
            watch=lambda trial, report: watch(trial.config.name, report),
            progress=progress,
            stop=lambda _: stop(),
        )
        return _keep_all(trials, overwrite, progress)


def _check_apart(configs: Sequence[Config]) -> None:
    """Jobs that train together are told apart by their names and choose nothing among themselves."""
    names = [config.name for config in configs]
    for number, config in enumerate(configs):
        refuse_retrieval(config.data)
        if config.name in names[:number]:
            raise ConfigError(f"Two jobs are called {config.name!r}; give each a name of its own.")
        if config.search is not None:
            raise ConfigError(
                f"{config.name} has a search, which trains several runs itself; train it alone."
            )


def _keep_all(
    trials: Sequence[Trial], overwrite: Sequence[bool], progress: Callable[[str, int, int], None]
) -> list[Prompt]:
    """Test and save what every job learnt; one that diverged is complained of when all are saved."""
    prompts, faults = list[Prompt](), list[DivergedError]()
    for trial, may in zip(trials, overwrite, strict=True):
        try:
            prompts.append(
                keep(trial, Library(trial.config.output.library), overwrite=may, progress=progress)
            )
        except DivergedError as fault:
            faults.append(fault)
    if faults:
        raise faults[0]
    return prompts


def _alone(config: Config) -> Config | None:
    """The configuration of the one run that is asked for; None if there are several."""
    if config.search is None:
        return config
    found = candidates(config)
    if len(found) > 1 or len(config.seeds) > 1:
        return None
    return found[0][1].model_copy(update={"seed": config.seeds[0]})


def _fit_one(
    base: Base,
    config: Config,
    resume: bool,
    watch: Callable[[Report], None],
    progress: Callable[[str, int, int], None],
    stop: Callable[[], bool],
    notify: Callable[[str], None],
) -> Trial:
    """One run, its log and checkpoint right in the folder of its name."""
    trial = Trial(base, config, _folder(config))
    for note in trial.job.notes:
        notify(note)
    _open_folder(config, trial, resume)
    fit_trials(
        [trial],
        resume=resume,
        watch=lambda _, report: watch(report),
        progress=progress,
        stop=lambda _: stop(),
    )
    return trial


def _config(config: Config | Mapping[str, Any] | str | Path) -> Config:
    return load(config) if isinstance(config, str | Path) else parse(config)


def _may_overwrite(library: Library, config: Config, resume: bool) -> bool:
    """Whether artifacts of these names may be replaced; a taken name is refused before any training."""
    taken = [name for name in config.names if (library.path / name).exists()]
    if config.output.overwrite or not taken:
        return config.output.overwrite
    resumed = identities(_folder(config)) if resume else set()
    for name in taken:
        if _saved_by(library, name, config) not in resumed:
            raise ConfigError(
                f"There is a prompt {name!r} in {library.path} already; choose another name, or allow "
                "replacing it with output.overwrite = true."
            )
    return True


def _saved_by(library: Library, name: str, config: Config) -> str | None:
    """The identity, by its card, of the run that saved an artifact for ``config``; None if there is no card.

    Of several seeds each but the best is saved under a name of its own, under which it was not trained.
    """
    try:
        card = library.card(name)
    except ArtifactError:
        return None
    digests = {split: about.digest for split, about in card.data.items()}
    return identity_of({**card.settings, "name": config.name}, digests, card.base.fingerprint)


def _folder(config: Config) -> Path:
    return Path(config.output.runs) / config.name


def _open_folder(config: Config, first: Trial, resume: bool) -> None:
    """Make the folder of logs, checkpoints and settings; an earlier run's is moved aside unless resumed.

    What is to be resumed must be the run of this configuration, of which ``first`` begins; otherwise nothing
    is written.
    """
    folder = _folder(config)
    if resume:
        _refuse_other_settings(config)
        first.refuse_another()
    with plain_disk_errors(folder):
        if folder.exists() and not resume:
            aside = folder.with_name(f"{folder.name}.before-{datetime.now(UTC):%Y%m%d-%H%M%S-%f}")
            folder.rename(aside)
        folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / _SETTINGS, dump_toml(config).encode())


def _refuse_other_settings(config: Config) -> None:
    """Only where results go may change: what was given up in a search follows from all the rest."""
    path = _folder(config) / _SETTINGS
    if path.exists() and _counting(parse(read_toml(path))) != _counting(config):
        raise TrainingError(
            f"{path.parent} belongs to a run with other settings; give back the old ones, which are in "
            f"{path.name} there, or start again without --resume."
        )


def _counting(config: Config) -> dict[str, Any]:
    return config.model_dump(mode="json", exclude={"output"})
