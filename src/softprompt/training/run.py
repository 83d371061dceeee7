"""From a configuration to a saved prompt: prepares the job, trains it, scores it, keeps it.

It ties the layers below together; it knows nothing of screens or command lines.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
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
from softprompt.listener import SILENT, Listener
from softprompt.packages import require
from softprompt.team import join, refuse_company
from softprompt.training.job import identity_of
from softprompt.training.results import save_results, save_search
from softprompt.training.search import Search, Spread
from softprompt.training.threads import threads
from softprompt.training.trackers import refuse_unfollowable
from softprompt.training.trial import TrialRun, fit_trials, identities

__all__ = [
    "config_of",
    "folder_of",
    "may_overwrite",
    "open_folder",
    "refuse_alone",
    "tell_notes",
    "train",
    "train_many",
]

_SETTINGS = "config.toml"


def train(
    base: Base,
    config: Config | Mapping[str, Any] | str | Path,
    *,
    resume: bool = False,
    listener: Listener = SILENT,
    spread: Spread | None = None,
) -> Prompt:
    """Teach a base one job, keep the artifact, and return the prompt.

    With several candidates or seeds in ``config.search`` they train together; what is chosen on
    validation is returned, and its card tells of the others.

    Called in each of several processes that torchrun started, they train together: each reads its share of
    every batch, and the first alone writes files. All return the same prompt.

    Args:
        base: the frozen model; it is not changed and may serve other prompts meanwhile.
        config: a ``Config``, a mapping of settings, or the path of a TOML file.
        resume: go on from where an earlier run of the same configuration was stopped or killed.
        listener: told of every step (of runs that train together as if they were one), of the scoring of
            each split and, in plain sentences, about the data and the run; asked after every step whether
            to end now and keep the best so far.
        spread: carries the runs of a search out elsewhere, each in passes of its own; what was learnt is
            tested and saved here.

    Returns:
        The prompt in its best validated state, saved in the library under ``config.name``.

    Raises:
        ConfigError: a setting is wrong.
        DataError: a source, template, row or label is wrong.
        DivergedError: the loss ran away; the best state was saved if there was one.
        ResourceError: the disk refuses, or an artifact of that name exists.
    """
    wanted = config_of(config)
    if spread is not None:
        refuse_company("A search over a cluster")
        refuse_alone(wanted)
    require(*wanted.needs)
    refuse_unfollowable(wanted)
    refuse_retrieval(wanted.data)
    library = Library(wanted.output.library)
    team = join()
    overwrite = team.told(team.leads and may_overwrite(library, wanted, resume))
    with threads(wanted.train.threads):
        if _is_one_run(wanted):  # its log and checkpoint lie right in its name's folder
            chosen = candidates(wanted)[0][1].model_copy(update={"seed": wanted.seeds[0]})
            alone = wanted if wanted.search is None else chosen
            trial = TrialRun(base, alone, folder_of(alone), team=team)
            tell_notes(trial, listener)
            open_folder(alone, trial, resume)
            fit_trials([trial], [listener], resume=resume)
            with _keeping([trial]):
                return save_results(trial, library, listener, overwrite=overwrite)
        search = Search(base, wanted, folder_of(wanted), listener, team)
        tell_notes(search.tried[0], listener)
        with nullcontext() if spread is None else spread(base, wanted, search.heard) as carry:
            open_folder(wanted, search.tried[0], resume)
            found = search.run(carry)
        with _keeping(found.learnt):
            return save_search(found, library, listener, overwrite=overwrite)


def train_many(
    base: Base,
    configs: Sequence[Config | Mapping[str, Any] | str | Path],
    *,
    resume: bool = False,
    listener: Listener = SILENT,
) -> list[Prompt]:
    """Teach a base several jobs side by side: each learns what it would have learnt alone.

    Rows of all jobs are read in the same passes, each behind its own front; losses, rates and ends are apart.

    Args:
        base: the frozen model.
        configs: one a job, as for ``train``; each has a name of its own, and none a search.
        resume: each goes on from where it was stopped or killed.
        listener: as for ``train``; reports carry the name of their job.

    Returns:
        The prompts in the order of ``configs``, saved in their libraries.

    Raises:
        DivergedError: only when what the others learnt has been saved; all other errors as in ``train``.
    """
    refuse_company("Training several jobs side by side")
    wanted = [config_of(config) for config in configs]
    require(*(need for one in wanted for need in one.needs))
    names = [config.name for config in wanted]
    for number, config in enumerate(wanted):
        refuse_retrieval(config.data)
        refuse_unfollowable(config)
        if config.name in names[:number]:
            raise ConfigError(f"Two jobs are called {config.name!r}; give each a name of its own.")
        if config.search is not None:
            raise ConfigError(
                f"{config.name} has a search, which trains several runs itself; train it alone."
            )
    overwrite = [may_overwrite(Library(config.output.library), config, resume) for config in wanted]
    trials = [TrialRun(base, config, folder_of(config)) for config in wanted]
    for trial in trials:
        tell_notes(trial, listener, f"{trial.config.name}: ")
    for trial in trials:
        open_folder(trial.config, trial, resume)
    prompts, faults = list[Prompt](), list[DivergedError]()
    with threads(max((config.train.threads or 0 for config in wanted), default=0) or None):
        fit_trials(trials, [listener.of_run(name) for name in names], resume=resume)
        for trial, may in zip(trials, overwrite, strict=True):
            library = Library(trial.config.output.library)
            try:
                with _keeping(trials):
                    prompts.append(save_results(trial, library, listener, overwrite=may))
            except DivergedError as fault:
                faults.append(fault)
    if faults:
        raise faults[0]
    return prompts


@contextmanager
def _keeping(trials: Sequence[TrialRun]) -> Iterator[None]:
    """Say of a fault after training, while testing or saving, what is kept and how it is saved after all."""
    try:
        yield
    except DivergedError:
        raise
    except Exception as error:
        kept = [str(t.checkpoint) for t in trials if t.team.leads and t.checkpoint.exists()]
        if not kept:
            raise
        said = str(error).strip().rstrip(".") or type(error).__name__
        raise TrainingError(
            f"The training is done, but what was learnt could not be saved. {said}. It is kept in "
            f"{', '.join(kept)}: mend the fault and give the same command again with --resume, which "
            "saves it without training."
        ) from error


def _is_one_run(config: Config) -> bool:
    return len(candidates(config)) == len(config.seeds) == 1


def refuse_alone(config: Config) -> None:
    """Refuse one run where several are to be spread over a cluster.

    Raises:
        ConfigError: there is neither a search nor more than one seed.
    """
    if _is_one_run(config):
        raise ConfigError(
            f"{config.name} is one run, and a cluster takes the several runs of a search; give several "
            "learning rates, fronts or seeds, or train without --ray."
        )


def config_of(config: Config | Mapping[str, Any] | str | Path) -> Config:
    return load(config) if isinstance(config, str | Path) else parse(config)


def tell_notes(trial: TrialRun, listener: Listener, before: str = "") -> None:
    """What a reader of the results should know of the rows."""
    for sentence in trial.job.notes:
        listener.note(before + sentence)


def folder_of(config: Config) -> Path:
    return Path(config.output.runs) / config.name


def may_overwrite(library: Library, config: Config, resume: bool) -> bool:
    """Whether artifacts of these names may be replaced; a taken name is refused before any training."""
    taken = [name for name in config.names if library.taken(name)]
    if config.output.overwrite or not taken:
        return config.output.overwrite
    resumed = identities(folder_of(config)) if resume else set()
    for name in taken:
        if _saved_by(library, name, config) not in resumed:
            raise ConfigError(
                f"There is a prompt {name!r} in {library.address} already; choose another name, or allow "
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


def open_folder(config: Config, first: TrialRun, resume: bool) -> None:
    """Make the folder of logs, checkpoints and settings; an earlier run's is moved aside unless resumed.

    What is to be resumed must be the run of this configuration, of which ``first`` begins; otherwise nothing
    is written. Of a team the leader does it.
    """
    if not first.team.leads:
        return
    folder = folder_of(config)
    settings = folder / _SETTINGS
    if resume:
        if settings.exists() and _counting(parse(read_toml(settings))) != _counting(config):
            raise TrainingError(
                f"{folder} belongs to a run with other settings; give back the old ones, which are in "
                f"{_SETTINGS} there, or start again without --resume."
            )
        first.refuse_another()
    with plain_disk_errors(folder):
        if folder.exists() and not resume:
            aside = folder.with_name(f"{folder.name}.before-{datetime.now(UTC):%Y%m%d-%H%M%S-%f}")
            folder.rename(aside)
        folder.mkdir(parents=True, exist_ok=True)
    write_bytes(settings, dump_toml(config).encode())


def _counting(config: Config) -> dict[str, Any]:
    """All settings but where results go: what was given up in a search follows from all the rest."""
    return config.model_dump(mode="json", exclude={"output"})
