"""What is left of runs: each that counts is tested once and saved, and its card says what was tried.

It knows jobs, trials and the library; it trains nothing. Test rows are read here and nowhere else.
"""

from __future__ import annotations

import math
import platform
import statistics
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import torch
import transformers

import softprompt
from softprompt.data.rows import Scaling
from softprompt.errors import DivergedError
from softprompt.evaluation.doubts import all_alike
from softprompt.library.card import (
    BaseCard,
    Card,
    ScalingCard,
    SearchCard,
    SeedCard,
    TemplateCard,
    TrainingCard,
    TrialCard,
    kept_name,
)
from softprompt.library.folder import Library
from softprompt.library.prompt import Prompt
from softprompt.listener import SILENT, Listener
from softprompt.prefix import Prefix
from softprompt.training.job import Job
from softprompt.training.loop import Outcome
from softprompt.training.memory import largest
from softprompt.training.search import SearchOutcome, ranking
from softprompt.training.trial import TrialRun

__all__ = ["final_test", "save_results", "save_search"]


def final_test(job: Job, outcome: Outcome, listener: Listener = SILENT, *, baseline: bool = True) -> Prompt:
    """Score what was learnt beside the untuned base, and make the prompt with its card.

    Test rows are read only at the end of a whole run. ``baseline``: whether to score the untuned base too.
    """
    scaling = job.fitted_scaling() if job.config.data.scale_labels else None
    scaled = job if scaling is None else job.scaled(scaling)
    found = outcome.best if scaling is None else scaled.score("validation", listener.counting("validation"))
    learnt = {"validation": found}
    if "test" in job.encoded and outcome.ended in ("done", "early"):
        learnt["test"] = scaled.score("test", listener.counting("test"))
    for split, one in learnt.items():
        for doubt in all_alike(one.predictions, list(job.task.template.labels or ()), f"{split} row"):
            listener.note(doubt)
    scores = {split: one.summary() for split, one in learnt.items()}
    for split in learnt if baseline else ():
        untuned = f"{split}, untuned"
        scores[untuned] = job.score_untuned(split, listener.counting(untuned)).summary()
    with torch.no_grad():
        front = job.method.front()
    front = front.detached() if isinstance(front, Prefix) else front.detach()
    positions = front.length if isinstance(front, Prefix) else len(front)
    return Prompt(
        job.method.base, front, _card(job, outcome, positions, scores, scaling), job.method.change(), job.base
    )


def _card(
    job: Job, outcome: Outcome, positions: int, scores: dict[str, dict[str, Any]], scaling: Scaling | None
) -> Card:
    config, template = job.config, job.task.template
    return Card(
        format=1,
        name=config.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        kind=config.method.kind,
        base=BaseCard(
            name=kept_name(job.base.name),
            revision=config.base.revision,
            fingerprint=job.base.fingerprint,
            model_type=job.base.config.model_type,
            dtype=str(job.base.dtype).removeprefix("torch."),
            quantisation=config.base.quantisation,
        ),
        positions=positions,
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
            scaling=None if scaling is None else ScalingCard(scale=[*scaling.scale], shift=[*scaling.shift]),
            end_of_text=config.data.ends,
            max_tokens=config.data.max_tokens,
        ),
        data=job.data,
        scores=scores,
        training=TrainingCard(
            steps=outcome.steps,
            best_step=outcome.best_step,
            ended=outcome.ended,
            seconds=round(outcome.seconds, 2),
            peak_memory_bytes=largest(job.base.device),
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


def save_results(trial: TrialRun, library: Library, listener: Listener, *, overwrite: bool) -> Prompt:
    """Test what one run learnt and save it.

    Raises:
        DivergedError: the loss ran away; the best state was saved if there was one.
    """
    assert trial.outcome is not None
    prompt = final_test(trial.job, trial.outcome, listener)
    return _saved(prompt, trial.outcome, library, overwrite, trial.team.leads)


def _saved(prompt: Prompt, outcome: Outcome, library: Library, overwrite: bool, leads: bool) -> Prompt:
    """The prompt, saved; of a run that diverged the best state, with a complaint.

    leads: whether this process is the one of its team that writes files.
    """
    diverged = outcome.ended == "diverged"
    if diverged and outcome.best_step == 0:
        raise DivergedError(f"{outcome.error} Nothing had been learnt before it, so nothing was saved.")
    if leads:
        prompt.save(library, overwrite=overwrite)
    if diverged:
        raise DivergedError(
            f"{outcome.error} The best state, of step {outcome.best_step}, is saved in "
            f"{library.where(prompt.name)}."
        )
    return prompt


# Several runs -------------------------------------------------------------------------------------


def save_search(found: SearchOutcome, library: Library, listener: Listener, *, overwrite: bool) -> Prompt:
    """Test every seed, save them all, and return the one that validates best.

    That one takes the name of the configuration; the others are ``NAME-seedS``. If the search was
    stopped, what was ahead is saved without a test, to be replaced when the search is resumed.

    Raises:
        DivergedError: every seed's loss ran away; the best state was saved if there was one.
    """
    best, *others = sorted(found.learnt, key=ranking, reverse=True)
    assert best.outcome is not None
    leads = best.team.leads
    if found.stopped or best.error:
        outcome = replace(best.outcome, ended="interrupted") if found.stopped else best.outcome
        prompt = _with_search(final_test(best.job, outcome, listener), found, [])
        return _saved(prompt, outcome, library, overwrite, leads)
    cards = {}
    for trial in others:
        if trial.error:
            listener.note(f"Seed {trial.config.seed} is not kept. {trial.error}")
            cards[trial] = SeedCard(seed=trial.config.seed)
            continue
        prompt = _tested(trial, _name_of(trial), listener, baseline=False)
        if leads:
            prompt.save(library, overwrite=overwrite)
        cards[trial] = _seed_card(prompt, trial)
        trial.release()  # at once, for it may be a whole model
    prompt = _tested(best, best.config.name, listener, baseline=True)
    cards[best] = _seed_card(prompt, best)
    prompt = _with_search(prompt, found, [cards[trial] for trial in found.learnt])
    if leads:
        prompt.save(library, overwrite=overwrite)
    if leads and others and overwrite and library.taken(_name_of(best)):
        library.remove(_name_of(best))  # an earlier search's, when another seed was best
    return prompt


def _tested(trial: TrialRun, name: str, listener: Listener, *, baseline: bool) -> Prompt:
    assert trial.outcome is not None
    job = replace(trial.job, config=trial.config.model_copy(update={"name": name}))
    return final_test(job, trial.outcome, listener, baseline=baseline)


def _name_of(trial: TrialRun) -> str:
    return f"{trial.config.name}-seed{trial.config.seed}"


def _seed_card(prompt: Prompt, trial: TrialRun) -> SeedCard:
    scores = {split: s for split, s in prompt.card.scores.items() if not split.endswith(", untuned")}
    return SeedCard(seed=trial.config.seed, name=prompt.name, scores=scores)


def _with_search(prompt: Prompt, found: SearchOutcome, seeds: Sequence[SeedCard]) -> Prompt:
    """The prompt with all that was tried on its card, from validations alone.

    A candidate given up before a search was resumed has nothing else.
    """
    begun = [trial for trial in found.tried if trial.evals]
    trials = []
    for trial in begun:
        best, last = trial.best_eval, trial.evals[-1]
        summary: dict[str, Any] = best.scores.summary()
        numbers = {name: value if isinstance(value, tuple) else (value,) for name, value in summary.items()}
        card = TrialCard(
            settings=dict(trial.changes),  # what is not finite, a card cannot hold
            validation={name: summary[name] for name in summary if all(map(math.isfinite, numbers[name]))},
            steps=last.step if trial.outcome is None else trial.outcome.steps,
            best_step=best.step,
            ended=trial.ended,
        )
        trials.append(card)
    spread = {split: about for split in ("validation", "test") if (about := _over_seeds(seeds, split))}
    search = SearchCard(trials=trials, chosen=begun.index(found.chosen), seeds=list(seeds), over_seeds=spread)
    return replace(prompt, card=prompt.card.model_copy(update={"search": search}))


def _over_seeds(seeds: Sequence[SeedCard], split: str) -> dict[str, Any]:
    """Mean and standard deviation of the measure that counts, where there are two seeds or more."""
    summaries = [seed.scores[split] for seed in seeds if split in seed.scores]
    if len(summaries) < 2:
        return {}
    measure = "accuracy" if "accuracy" in summaries[0] else "nll"
    values = [float(summary[measure]) for summary in summaries]
    return {
        "measure": measure,
        "seeds": len(values),
        "mean": statistics.mean(values),
        "standard_deviation": statistics.stdev(values),
    }
