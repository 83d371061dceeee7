"""What the prompt moves equals what two plain passes say; free texts equal transformers' own."""

from __future__ import annotations

import json
import math

import pytest
import torch

import tiny
from softprompt.base.model import Base
from softprompt.data.rows import Encoded, Example
from softprompt.errors import BaseModelError
from softprompt.interpretation import says
from softprompt.interpretation.says import shift, speak
from softprompt.interpretation.vocabulary import Vocabulary
from softprompt.prefix import Prefix

INPUTS = [(5, 6, 7), (8,), (9, 10, 11, 12), (13, 14), (15, 16, 17, 18, 19)]


def encoded(inputs: list[tuple[int, ...]] = INPUTS) -> Encoded:
    return Encoded(tuple(Example(ids, (20,), None, i) for i, ids in enumerate(inputs)), 0, None, False, ())


def plain(base: Base, front: torch.Tensor, ids: tuple[int, ...]) -> torch.Tensor:
    """Probabilities [V] of the next word, from one row read the model's own way."""
    with torch.no_grad():
        embedded = torch.cat([front, base.embed(ids)])[None]
        probabilities: torch.Tensor = base.model(inputs_embeds=embedded).logits[0, -1].double().softmax(-1)
    return probabilities


@pytest.mark.parametrize("cells", [8_000_000, 97 * 4])
@pytest.mark.parametrize("architecture", ["llama", "bloom"])
def test_shift_equals_plain_passes(architecture: str, cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(says, "_CELLS", cells)  # all rows at once, or two at a time
    base = tiny.base(architecture)
    front, bare = base.embed([40, 41, 42]), base.embed([])
    found = shift(front, encoded(), Vocabulary.of(base), top=4)
    after, before = (torch.stack([plain(base, f, ids) for ids in INPUTS]) for f in (front, bare))
    kl = (after * (after / before).log()).sum(1)
    assert found.per_row == pytest.approx(kl.tolist(), rel=1e-4)
    assert found.kl == pytest.approx(float(kl.mean()), rel=1e-4)
    assert found.low <= found.kl <= found.high
    assert found.changed == float((after.argmax(1) != before.argmax(1)).double().mean())
    change = (after - before).mean(0)
    for moved, best in ((found.gained, change.topk(4)), (found.lost, (-change).topk(4))):
        assert [m.word.id for m in moved] == best.indices.tolist()
        for m in moved:
            assert m.change == pytest.approx(m.prompted - m.bare)
            assert m.prompted == pytest.approx(float(after.mean(0)[m.word.id]), rel=1e-4)
            assert m.bare == pytest.approx(float(before.mean(0)[m.word.id]), rel=1e-4)
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["rows"] == 5


def test_kl_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two words, 3/4 and 1/4 against halves: KL = 3/4 ln 3/2 + 1/4 ln 1/2; an impossible word adds 0."""
    base = tiny.base()
    logs = torch.full((2, 1, 97), -torch.inf, dtype=torch.float64)
    logs[0, 0, :2] = torch.tensor([0.75, 0.25]).double().log()
    logs[1, 0, :2] = math.log(0.5)
    monkeypatch.setattr(says, "distributions", lambda *_: iter([says.NextWords([0], logs)]))
    found = shift(base.embed([4]), encoded(INPUTS[:1]), Vocabulary.of(base))
    assert found.kl == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    ((up,), (down,)) = found.gained, found.lost
    assert (up.word.id, down.word.id) == (0, 1)
    assert (up.change, down.change) == pytest.approx((0.25, -0.25))


def test_a_front_against_itself_moves_nothing() -> None:
    base = tiny.base()
    found = shift(base.embed([4, 5]), encoded(), Vocabulary.of(base), bare=base.embed([4, 5]))
    assert (found.kl, found.changed, found.gained, found.lost) == (0, 0, (), ())


def test_rows_without_an_input_need_something_in_front() -> None:
    base = tiny.base()
    with pytest.raises(BaseModelError, match="no text to go on from"):
        shift(base.embed([4]), encoded([()]), Vocabulary.of(base))


def test_greedy_speech_equals_transformers() -> None:
    base = tiny.base()
    front = base.embed([40, 41, 42])
    found = speak(base, front, samples=2, max_new_tokens=8, seed=3)
    with torch.no_grad():
        told = base.model.generate(inputs_embeds=front[None], max_new_tokens=8, do_sample=False)
    assert found.greedy == base.decode(told[0])
    assert found.opening == ""
    assert found == speak(base, front, samples=2, max_new_tokens=8, seed=3)
    assert found.samples != speak(base, front, samples=2, max_new_tokens=8, seed=4).samples
    assert len(set(found.samples)) == 2


def test_a_trained_prefix_speaks_behind_an_opening() -> None:
    base = tiny.base()
    start = base.prefill(base.embed([40, 41])).detached()
    prefix = Prefix(start.keys, start.values, None, start.base)
    found = speak(base, prefix, samples=0, max_new_tokens=4, opening="a")
    assert found.greedy == speak(base, base.embed([40, 41]), samples=0, max_new_tokens=4, opening="a").greedy
    assert (found.opening, found.samples) == ("a", ())
    assert speak(base, prefix, samples=1, max_new_tokens=2).opening == "\n"
