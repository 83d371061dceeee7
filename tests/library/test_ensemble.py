"""Prompts that vote: counted by hand, alike alone and together, and refused where a vote means nothing."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch

import tiny
from library import samples
from softprompt.data.table import Table
from softprompt.errors import ConfigError
from softprompt.library.ensemble import Ensemble, majority
from softprompt.library.prompt import Prompt


def voter(seed: int) -> Prompt:
    base = tiny.base()
    front = torch.randn(3, base.width, generator=torch.Generator().manual_seed(seed))
    card = samples.bound(base, "prompt-tuning", 3, name=f"voter-{seed}")
    return Prompt(base, front, card)


def test_most_votes_win_and_the_likelier_of_a_tie() -> None:
    votes = torch.tensor([[[0.6, 0.4, 0.0]], [[0.1, 0.9, 0.0]], [[0.5, 0.3, 0.2]], [[0.2, 0.6, 0.2]]])
    shares = majority(votes)
    assert shares.argmax(1).tolist() == [1]  # two against two, and 2.2 against 1.4 together
    assert shares[0, 2] < shares[0, 0] < shares[0, 1]
    clear = majority(torch.tensor([[[0.51, 0.49]], [[0.51, 0.49]], [[0.0, 1.0]]]))
    assert clear.argmax(1).tolist() == [0]


def test_an_ensemble_says_what_most_of_its_prompts_say() -> None:
    prompts = [voter(seed) for seed in range(5)]
    ensemble = Ensemble(prompts)
    rows = [{"text": text} for text in ("a", "more text", "zz top", "1 2 3", "why not", "Q", "end.")]
    told = []
    for row in rows:
        said = Counter(next(iter(prompt.classify(row))) for prompt in prompts)
        found = ensemble.classify(row)
        winner = next(iter(found))
        assert said[winner] == max(said.values())
        assert sum(found.values()) == pytest.approx(1)
        told.append(winner)
    labels = list(prompts[0].template.labels or ())
    table = Table(tuple({**row, "label": labels[0]} for row in rows), "rows")
    assert [labels[n] for n in ensemble.predict(table)] == told


def test_what_cannot_vote_is_refused() -> None:
    first = voter(0)
    other = replace(first, base=tiny.base(seed=1))
    with pytest.raises(ConfigError, match="do not stand before the same model"):
        Ensemble([first, other])
    about = first.card.template.model_copy(update={"input": "Other: {text}"})
    with pytest.raises(ConfigError, match="different templates"):
        Ensemble([first, replace(first, card=first.card.model_copy(update={"template": about}))])
    with pytest.raises(ConfigError, match="at least one"):
        Ensemble([])


@pytest.mark.parametrize(
    ("name", "theirs", "said"),
    [
        ("normalise", "length", "normalise 'length' and voter-0 'none'"),
        ("calibrate", True, "calibrate true and voter-0 false"),
        ("end_of_text", True, "end_of_text true and voter-0 false"),
        ("max_tokens", 32, "max_tokens 32 and voter-0 64"),
    ],
)
def test_prompts_that_read_rows_otherwise_are_refused(name: str, theirs: Any, said: str) -> None:
    first, second = voter(0), voter(1)
    about = second.card.template.model_copy(update={name: theirs})
    second = replace(second, card=second.card.model_copy(update={"template": about}))
    with pytest.raises(ConfigError, match=f"voter-1 has {said}, so they cannot vote; .* data.{name}"):
        Ensemble([first, second])
