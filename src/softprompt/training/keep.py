"""What is left of runs: each that counts is tested once, kept under a name, and its card says what was tried.

It knows trials and the library; it trains nothing.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from softprompt.errors import DivergedError
from softprompt.evaluation.score import Scores
from softprompt.library.card import SearchCard, SeedCard, TrialCard
from softprompt.library.folder import Library
from softprompt.library.prompt import Prompt
from softprompt.training.finish import finish
from softprompt.training.loop import Outcome
from softprompt.training.search import Found, merit
from softprompt.training.trial import Trial

__all__ = ["keep", "keep_found"]

Progress = Callable[[str, int, int], None]


def keep(trial: Trial, library: Library, *, overwrite: bool, progress: Progress) -> Prompt:
    """Test what one run learnt and save it.

    Raises:
        DivergedError: the loss ran away; the best state was saved if there was one.
    """
    assert trial.outcome is not None
    return _saved(finish(trial.job, trial.outcome, progress), trial.outcome, library, overwrite)


def keep_found(
    found: Found, library: Library, *, overwrite: bool, progress: Progress, notify: Callable[[str], None]
) -> Prompt:
    """Test every seed, save them all, and return the one that validates best.

    That one takes the name of the configuration; the others are ``NAME-seedS``. If the search was
    stopped, what was ahead is saved without a test, to be replaced when the search is resumed.

    Raises:
        DivergedError: every seed's loss ran away; the best state was saved if there was one.
    """
    best, *others = sorted(found.learnt, key=merit, reverse=True)
    if found.stopped or _trouble(best):
        return _keep_unfinished(found, best, library, overwrite, progress)
    cards = {trial: _keep_other(trial, library, overwrite, progress, notify) for trial in others}
    prompt = _tested(best, best.config.name, progress, baseline=True)
    cards[best] = _seed_card(prompt, best)
    prompt = _with_search(prompt, found, [cards[trial] for trial in found.learnt])
    prompt.save(library, overwrite=overwrite)
    if others and overwrite and (library.path / _name_of(best)).exists():
        library.remove(_name_of(best))  # an earlier search's, when another seed was best
    return prompt


def _keep_unfinished(
    found: Found, best: Trial, library: Library, overwrite: bool, progress: Progress
) -> Prompt:
    """What was ahead when a search was stopped, or of seeds that all diverged."""
    assert best.outcome is not None
    outcome = replace(best.outcome, ended="interrupted") if found.stopped else best.outcome
    prompt = _with_search(finish(best.job, outcome, progress), found, [])
    return _saved(prompt, outcome, library, overwrite)


def _keep_other(
    trial: Trial, library: Library, overwrite: bool, progress: Progress, notify: Callable[[str], None]
) -> SeedCard:
    """A seed that is not the best, under its own name; let go of at once, for it may be a whole model."""
    if trouble := _trouble(trial):
        notify(f"Seed {trial.config.seed} is not kept. {trouble}")
        return SeedCard(seed=trial.config.seed)
    prompt = _tested(trial, _name_of(trial), progress, baseline=False)
    prompt.save(library, overwrite=overwrite)
    trial.release()
    return _seed_card(prompt, trial)


def _saved(prompt: Prompt, outcome: Outcome, library: Library, overwrite: bool) -> Prompt:
    """The prompt, saved; of a run that diverged the best state, with a complaint."""
    diverged = outcome.ended == "diverged"
    if diverged and outcome.best_step == 0:
        raise DivergedError(f"{outcome.trouble} Nothing had been learnt before it, so nothing was saved.")
    folder = prompt.save(library, overwrite=overwrite)
    if diverged:
        raise DivergedError(
            f"{outcome.trouble} The best state, of step {outcome.best_step}, is saved in {folder}."
        )
    return prompt


def _tested(trial: Trial, name: str, progress: Progress, *, baseline: bool) -> Prompt:
    assert trial.outcome is not None
    job = replace(trial.job, config=trial.config.model_copy(update={"name": name}))
    return finish(job, trial.outcome, progress, baseline=baseline)


def _name_of(trial: Trial) -> str:
    return f"{trial.config.name}-seed{trial.config.seed}"


def _trouble(trial: Trial) -> str:
    """What went wrong, if it diverged."""
    assert trial.outcome is not None
    return trial.outcome.trouble if trial.outcome.ended == "diverged" else ""


# The card ----------------------------------------------------------------------------------------


def _with_search(prompt: Prompt, found: Found, seeds: Sequence[SeedCard]) -> Prompt:
    begun = [trial for trial in found.tried if trial.marks]
    card = SearchCard(
        trials=[_trial_card(trial) for trial in begun],
        chosen=begun.index(found.chosen),
        seeds=list(seeds),
        over_seeds=_over_seeds(seeds),
    )
    return replace(prompt, card=prompt.card.model_copy(update={"search": card}))


def _seed_card(prompt: Prompt, trial: Trial) -> SeedCard:
    scores = {split: s for split, s in prompt.card.scores.items() if not split.endswith(", untuned")}
    return SeedCard(seed=trial.config.seed, name=prompt.name, scores=scores)


def _trial_card(trial: Trial) -> TrialCard:
    """From its validations: one given up before a search was resumed has nothing else."""
    best, last = trial.best_mark, trial.marks[-1]
    return TrialCard(
        settings=dict(trial.changes),
        validation=_finite(best.scores),
        steps=last.step if trial.outcome is None else trial.outcome.steps,
        best_step=best.step,
        ended=trial.ended,
    )


def _finite(scores: Scores) -> dict[str, Any]:
    """The scores that a card can hold."""

    def holds(value: Any) -> bool:
        parts = value if isinstance(value, tuple | list) else (value,)
        return all(math.isfinite(part) for part in parts)

    return {name: value for name, value in scores.summary().items() if holds(value)}


def _over_seeds(seeds: Sequence[SeedCard]) -> dict[str, dict[str, Any]]:
    """Mean and standard deviation of the measure that counts, where there are two seeds or more."""
    found: dict[str, dict[str, Any]] = {}
    for split in ("validation", "test"):
        summaries: list[Mapping[str, Any]] = [seed.scores[split] for seed in seeds if split in seed.scores]
        if len(summaries) < 2:
            continue
        measure = "accuracy" if "accuracy" in summaries[0] else "nll"
        values = [float(summary[measure]) for summary in summaries]
        found[split] = {
            "measure": measure,
            "seeds": len(values),
            "mean": statistics.mean(values),
            "standard_deviation": statistics.stdev(values),
        }
    return found
