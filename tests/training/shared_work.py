"""What the processes of a team do in tests: importable by them, which the tests are not."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

import softprompt
import tiny
from softprompt.base.packing import TokenRow
from softprompt.cli.main import run as command_line
from softprompt.config import Config, LoraConfig, TrainConfig
from softprompt.data.rows import Encoded
from softprompt.evaluation.score import Scores, score, target_rows
from softprompt.listener import Listener, Report
from softprompt.methods.build import Material, build_method
from softprompt.methods.full import Full
from softprompt.methods.method import Method
from softprompt.prefix import Prefix
from softprompt.team import ALONE, Team, join
from softprompt.training import loop
from softprompt.training.loop import TrainingRun, fit_many
from training.toy import KeysAndValues, examples, soft_prompt

TRAIN, VALIDATION = target_rows(examples(30, 0).examples), examples(15, 60)


def method(kind: str) -> Method:
    base = tiny.base()
    if kind == "soft":
        return soft_prompt()
    if kind == "key-value":
        return KeysAndValues(base, [40, 41, 42, 9, 7])
    if kind == "lora":
        material = Material(lambda k: "", lambda name: torch.empty(0), seed=0)
        return build_method(LoraConfig(rank=4), base, material)
    return Full(base, base.embed([5, 6]))


def learn(
    kinds: list[str], folder: str | None, steps: int | None, resume: bool, nudge: float = 0.0
) -> dict[str, Any]:
    """Train runs of these kinds at once; all one would want to compare. ``nudge`` moves where they start."""
    team = join()
    if folder is not None:
        torch.manual_seed(team.rank)  # nothing may hang on it
    reports: list[Report] = []
    gradients: list[list[float]] = []
    taken = loop._step

    def step(state: Any) -> bool:
        learnt = state.run.method.trainable_parameters()
        gradients.append(torch.cat([p.grad.flatten()[:50] for p in learnt if p.grad is not None]).tolist())
        return taken(state)

    loop._step = step
    listener = Listener(step=reports.append, stop=lambda: steps is not None and reports[-1].step >= steps)
    runs = []
    for number, kind in enumerate(kinds):
        rate = {"full": 1e-3, "lora": 1e-2}.get(kind, 0.05)
        # Batches of 7 and 5 rows in two micro-batches: shares are uneven, and the last batch is of 2 rows.
        about = {
            "learning_rate": rate,
            "batch_size": 7 - 2 * number,
            "accumulation": 2,
            "checkpoint_every": 2,
        }
        config = TrainConfig().model_copy(update={"epochs": 2, "evaluate_every": 3, **about})
        path = None if folder is None else Path(folder, f"{kind}.safetensors")
        learner = method(kind)
        if nudge:
            noise = torch.Generator().manual_seed(number)
            start = learner.state().items()
            learner.load_state({n: t * (1 + nudge * torch.randn(t.shape, generator=noise)) for n, t in start})
        runs.append(TrainingRun(learner, TRAIN, config, number, path, kind, listener))

    def evaluate(numbers: Any) -> list[Scores]:
        return [score(runs[n].method.base, runs[n].method.front(), VALIDATION, team=team) for n in numbers]

    outcomes = fit_many(runs, evaluate, resume=resume, team=team)
    loop._step = taken
    return {
        "losses": [report.loss for report in reports if report.step],
        "norms": [report.gradient_norm for report in reports if report.step],
        "gradients": gradients,
        "learnt": {run.identity: {n: t.clone() for n, t in run.method.state().items()} for run in runs},
        "scores": [outcome.best for outcome in outcomes],
        "outcomes": [(outcome.steps, outcome.best_step, outcome.ended) for outcome in outcomes],
    }


def scored(encoded: Encoded) -> Scores:
    """Scores of a soft prompt on rows that the team shares."""
    found = soft_prompt()
    return score(found.base, found.front(), encoded, team=join())


def first_gradient(config: Config) -> torch.Tensor:
    """What a run from a configuration would take its first step by."""
    found: list[torch.Tensor] = []
    taken = loop._step

    def step(state: Any) -> bool:
        learnt = state.run.method.trainable_parameters()
        found.append(torch.cat([p.grad.flatten() for p in learnt if p.grad is not None]))
        return taken(state)

    loop._step = step
    softprompt.train(tiny.base(), config, quiet=True)
    loop._step = taken
    return found[0]


def train(config: Config, resume: bool, stop_at: int | None = None) -> tuple[dict[str, Any], torch.Tensor]:
    """A whole run from a configuration, of which the first process alone may ask to stop."""
    reports: list[Report] = []

    def stop() -> bool:
        return stop_at is not None and join().leads and reports[-1].step >= stop_at

    prompt = softprompt.train(
        tiny.base(), config, resume=resume, listener=Listener(step=reports.append, stop=stop)
    )
    front = prompt.front
    if isinstance(front, Prefix):
        front = torch.cat([side.flatten() for side in (*front.keys, *front.values)])
    return prompt.card.model_dump(), front


def typed(args: list[str], folders: list[str]) -> int:
    """A command line in a folder of each process's own."""
    os.chdir(folders[join().rank])
    return command_line(args)


def told() -> dict[str, Any]:
    """Everything a team can tell."""
    team = join()
    tensors = [torch.full((3, 2), float(team.rank + 1)), torch.arange(4.0) * (team.rank + 1)]
    team.add(tensors)
    handed = team.handed({"a": torch.tensor([1, 2]), "b": torch.zeros(0, 3)} if team.leads else None)
    return {
        "rank": team.rank,
        "sums": tensors,
        "handed": handed,
        "told": team.told({"from": team.rank, "text": "ä"}),
        "any": team.any([False, team.rank == 1]),
        "first": team.first_to_fail(),
    }


def unlike() -> None:
    team = join()
    team.refuse_unlike(min(team.rank, 1), "other rows")


def fails_in_one() -> None:
    """The second process fails before the first gets an answer from it."""
    team: Team = join()
    assert team is not ALONE
    if team.rank == 1:
        raise ValueError("this one is broken")
    team.told(1)


def rows_of(count: int) -> list[TokenRow]:
    return target_rows(examples(count, 0).examples)
