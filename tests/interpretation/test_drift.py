"""Distances worked by hand, axes equal to numpy's, and what a map leaves out."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch

import tiny
from softprompt.errors import ResourceError
from softprompt.interpretation.drift import chart, drift, prefix_drift, umap_chart
from softprompt.interpretation.vocabulary import Vocabulary
from softprompt.prefix import Prefix


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def words() -> Vocabulary:
    return Vocabulary.of(tiny.base())


def test_drift_by_hand(words: Vocabulary) -> None:
    start = words.base.embed([20, 21, 22])
    from_mean = start - words.centre
    front = torch.stack([start[0], words.centre + 3 * from_mean[1], words.centre - from_mean[2]])
    found = drift(front, words, start).positions
    lengths = from_mean.norm(dim=1).tolist()
    assert [t.distance for t in found] == pytest.approx([0, 2 * lengths[1], 2 * lengths[2]], abs=1e-6)
    assert [t.relative for t in found] == pytest.approx([0, 2, 2], abs=1e-5)
    assert [t.cosine for t in found] == pytest.approx([1, 1, -1])
    norms = np.linalg.norm(words.table.numpy(), axis=1)
    assert [t.norm for t in found] == pytest.approx(front.norm(dim=1).tolist())
    assert [t.start_norm for t in found] == pytest.approx(norms[[20, 21, 22]].tolist())
    for t in found:
        assert t.percentile == pytest.approx(100 * np.mean(norms <= t.norm), abs=1.1)
        assert t.start_percentile == pytest.approx(100 * np.mean(norms <= t.start_norm), abs=1.1)


def test_norms_of_the_vocabulary_are_numpys_percentiles(words: Vocabulary) -> None:
    found = drift(noise(1, 32), words)
    norms = np.linalg.norm(words.table.numpy().astype(float), axis=1)
    for percentile, norm in found.vocabulary_norms.items():
        assert norm == pytest.approx(np.percentile(norms, percentile), rel=1e-5)
    (only,) = found.positions
    assert (only.distance, only.relative, only.cosine, only.start_norm) == (None,) * 4
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["words"] == len(words)


def test_a_huge_vector_is_beyond_every_word_and_0_below(words: Vocabulary) -> None:
    huge, zero = drift(torch.stack([noise(32) * 1e3, torch.zeros(32)]), words).positions
    nothing = 100 * float((words.norms == 0).double().mean())  # the padding token's row is 0
    assert (huge.percentile, zero.percentile) == pytest.approx((100, nothing))


def test_the_axes_are_numpys(words: Vocabulary) -> None:
    table = words.table.double().numpy()
    centred = table - table.mean(0)
    _, values, axes = np.linalg.svd(centred, full_matrices=False)
    variances = values**2 / len(table)
    front, start = noise(4, 32), noise(4, 32, seed=1)
    found = chart(front, words, start, shown=1000)
    assert found.explained == pytest.approx(tuple(variances[:2] / variances.sum()), rel=1e-5)
    for points, vectors in ((found.prompt, front), (found.start, start)):
        expected = (vectors.numpy() - table.mean(0)) @ axes[:2].T
        assert np.abs(np.array(points)) == pytest.approx(np.abs(expected), abs=1e-4)
    ids = [word.id for word in found.words]
    assert ids == [i for i in range(len(table)) if i not in tiny.tokenizer().all_special_ids]
    assert np.abs(np.array(found.word_points)) == pytest.approx(np.abs(centred[ids] @ axes[:2].T), abs=1e-4)
    assert words.spread == pytest.approx(np.sqrt((centred**2).sum(1).mean()), rel=1e-5)
    axes_found = words.axes.directions
    largest = axes_found.gather(1, axes_found.abs().argmax(1, keepdim=True))
    assert bool((largest > 0).all())  # the same on every machine


def test_a_map_says_how_much_of_the_prompt_it_leaves_out(words: Vocabulary) -> None:
    directions = words.axes.directions
    inside = words.centre + 2 * directions[:1]
    outside = words.centre + 2 * directions[20:21]
    half = words.centre + directions[:1] + directions[20:21]
    for front, kept in ((inside, 1), (outside, 0), (half, 0.5)):
        assert chart(front, words).kept == pytest.approx(kept, abs=1e-5)


def test_the_words_shown_are_a_sample_by_seed(words: Vocabulary) -> None:
    first, again, other = (chart(noise(1, 32), words, shown=10, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert len(first.words) == 10
    assert first.words != other.words
    assert first.prompt == other.prompt
    json.dumps(first.to_json(), allow_nan=False)


def test_prefix_drift_by_hand() -> None:
    base = tiny.base()
    start = base.prefill(base.embed([20, 21, 22])).detached()
    keys = [t.clone() for t in start.keys]
    keys[1][:, 2] *= -1  # one position of one layer's keys is turned round
    values = [2 * t if layer == 0 else t for layer, t in enumerate(start.values)]
    found = prefix_drift(Prefix(tuple(keys), tuple(values), None, base.fingerprint), start)
    assert [(d.layer, d.side) for d in found.layers[:3]] == [(0, "keys"), (0, "values"), (1, "keys")]
    sides = {(d.layer, d.side): d for d in found.layers}
    whole, turned = start.keys[1].norm(), start.keys[1][:, 2].norm()
    for place, side in sides.items():
        expected = {(1, "keys"): (2 * float(turned / whole), 1 / 3, 1), (0, "values"): (1, 1, 2)}
        numbers = (side.relative, side.cosine, side.norm_ratio)
        assert numbers == pytest.approx(expected.get(place, (0, 1, 1)), abs=1e-6)
    size = sum(t[:, 0].square().sum() for t in (*start.keys, *start.values))
    assert found.positions[0] == pytest.approx(float((start.values[0][:, 0].square().sum() / size).sqrt()))
    json.dumps(found.to_json(), allow_nan=False)


def test_umap_is_asked_for_by_name_where_it_is_missing(
    words: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(ResourceError, match=r"pip install 'softprompt\[umap\]'"):
        umap_chart(noise(3, 32), words)


@pytest.mark.filterwarnings("ignore")
def test_umap_maps_every_point(words: Vocabulary) -> None:
    pytest.importorskip("umap", reason="needs the extra 'umap'")
    found = umap_chart(noise(3, 32), words, noise(3, 32, seed=1), shown=50)
    assert (len(found.prompt), len(found.start), len(found.word_points)) == (3, 3, 50)
