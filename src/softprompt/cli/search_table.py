"""What a search tried and what came of each seed, in tables: knows the card, not how it was made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from softprompt.cli.scores import headline, with_interval
from softprompt.cli.screen import out, print_grid

if TYPE_CHECKING:
    from softprompt.library.card import SearchCard, TrialCard

__all__ = ["print_search"]


def print_search(search: SearchCard) -> None:
    """The candidates, if there were several, then the seeds with their mean and spread."""
    if len(search.trials) > 1:
        rows = [_row(search, number) for number in range(len(search.trials))]
        print_grid(("tried", "validation", "steps", ""), rows, right=(1, 2))
    if len(search.seeds) > 1:
        if len(search.trials) > 1:
            out().print()
        _print_seeds(search)


def _row(search: SearchCard, number: int) -> tuple[str, ...]:
    trial = search.trials[number]
    said = "chosen" if number == search.chosen else {"done": ""}.get(trial.ended, trial.ended)
    measure = "accuracy" if "accuracy" in trial.validation else "nll"
    return _changes(trial), with_interval(trial.validation, measure), f"{trial.steps:,}", said


def _changes(trial: TrialCard) -> str:
    from softprompt.training.trial import changes_in_words

    return changes_in_words(trial.settings)


def _print_seeds(search: SearchCard) -> None:
    splits = list(dict.fromkeys(split for seed in search.seeds for split in seed.scores))
    rows = [
        (
            str(seed.seed),
            seed.name or "diverged, not kept",
            *(headline(seed.scores.get(split, {})) for split in splits),
        )
        for seed in search.seeds
    ]
    print_grid(("seed", "saved as", *splits), rows, right=(0, *range(2, 2 + len(splits))))
    said = (
        f"{split} {headline({about['measure']: about['mean']})} "
        f"± {headline({about['measure']: about['standard_deviation']})}"
        for split, about in search.over_seeds.items()
    )
    if search.over_seeds:
        out().print(f"Mean ± standard deviation over seeds: {', '.join(said)}.", soft_wrap=True)
