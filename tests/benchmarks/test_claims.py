"""The rules by which claims about soft prompts are judged, on findings made by hand."""

from __future__ import annotations

from typing import Any, cast

import pytest

import claims
from softprompt.interpretation.ablation import Ablation, Hidden
from softprompt.interpretation.inspect import PromptInspection
from softprompt.interpretation.neighbours import Chance, Near, Nearest, Nearness, Neighbours, Position
from softprompt.interpretation.scored import PairedDifference, ScoreDifference
from softprompt.interpretation.vocabulary import Word


def findings(**parts: Any) -> PromptInspection:
    return PromptInspection(cast(Any, None), **parts)


def ablation(losses: list[float]) -> Ablation:
    each = tuple(Hidden((place,), PairedDifference(loss, 0, 0, 1), None) for place, loss in enumerate(losses))
    return Ablation(10, 1.0, 0.5, each, (), (), False)


def nearness(word: str, cosine: float) -> Nearness:
    near = (Near(Word(len(word), word), cosine, 1.0),)
    return Nearness(1.0, near, near)


def position(place: int, now: str, before: str, cosine: float, moved: float) -> Position:
    chance = Nearest(Chance(moved, moved, moved), Chance(1, 1, 1))
    return Position(place, nearness(now, cosine), nearness(before, 1.0), chance, chance)


def near(*positions: Position) -> Neighbours:
    return Neighbours(positions, 100, 50, 0)


def test_falling_losses_say_that_later_positions_matter_less_and_no_others() -> None:
    falling = claims.later_matter_less(findings(ablation=ablation([0.9, 0.7, 0.6, 0.3, 0.2, 0.1, 0.0])), ())
    rising = claims.later_matter_less(findings(ablation=ablation([0.0, 0.1, 0.2, 0.3, 0.6, 0.7, 0.9])), ())
    neither = claims.later_matter_less(findings(ablation=ablation([0.1, 0.9, 0.0, 0.7, 0.2, 0.6, 0.3])), ())
    assert falling is not None
    assert falling.holds
    assert "rank correlation -1.00" in falling.figures
    assert "most: 0 (+0.90 nats)" in falling.figures
    assert rising is not None
    assert not rising.holds
    assert "rank correlation +1.00" in rising.figures
    assert neither is not None
    assert not neither.holds


def test_class_words_must_come_nearer_than_they_were() -> None:
    came = near(position(0, " Good", " film", 0.9, 0.9), position(1, " film", " film", 0.9, 0.9))
    stayed = near(position(0, " Good", " good", 0.9, 0.9), position(1, " film", " film", 0.9, 0.9))
    found = claims.class_words_near(findings(near=came), ["good", "bad"])
    assert found == claims.Found(True, "1 positions, 0 before training")
    found = claims.class_words_near(findings(near=stayed), ["good", "bad"])
    assert found == claims.Found(False, "1 positions, 1 before training")


@pytest.mark.parametrize(("cosine", "holds"), [(0.95, True), (0.85, False)])
def test_near_means_nearer_than_a_random_step_of_that_length(cosine: float, holds: bool) -> None:
    places = near(*(position(place, " film", " film", cosine, 0.9) for place in range(3)))
    found = claims.nearer_than_moved(findings(near=places), ())
    assert found is not None
    assert found.holds is holds
    assert found.figures.endswith("3 still nearest to the word they began as")


def test_a_prompt_without_what_a_claim_needs_is_not_judged() -> None:
    assert [claim.test(findings(), ["good"]) for claim in claims.CLAIMS] == [None] * len(claims.CLAIMS)


def test_a_gap_is_told_in_points() -> None:
    gap = PairedDifference(-0.125, -0.2, -0.05, 0.01)
    assert claims._gap(ScoreDifference(gap, gap, 40, 0)) == "-12.5 (-20.0 to -5.0)"
