"""Which texts are most like a text: TF-IDF and cosine, without rows, labels or tokens of a model."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import islice

import torch
from torch import Tensor

__all__ = ["nearest_texts"]

_CHUNK = 64  # texts compared in one product


def nearest_texts(
    texts: Sequence[str],
    among: Sequence[str],
    most: int,
    *,
    allowed: Callable[[int, int], bool] = lambda text, other: True,
) -> list[list[int]]:
    """Find the ``most`` texts of ``among`` that are most like each of ``texts``, the most similar first.

    Words are compared without case and weighted by term frequency times inverse document frequency, smoothed
    by one, over ``among``; texts of equal similarity keep their order, those without a common word come last.

    Args:
        texts: what to find neighbours for.
        among: where to look.
        most: how many neighbours to find, where there are so many.
        allowed: whether text i may have neighbour j.
    """
    documents = [_words(text) for text in among]
    idf = _idf(documents)
    terms = {word: number for number, word in enumerate(idf)}
    matrix = _matrix([_vector(document, idf) for document in documents], terms)
    found: list[list[int]] = []
    for start in range(0, len(texts), _CHUNK):
        chunk = texts[start : start + _CHUNK]
        other = _matrix([_vector(_words(text), idf) for text in chunk], terms).to_dense()
        # Rounded, so that equal texts are equally similar whatever the order of the sum.
        similar = (matrix @ other.T).round(decimals=12)
        order = similar.sort(dim=0, descending=True, stable=True).indices.T
        for number, ranks in enumerate(order.tolist(), start):
            others = (other for other in ranks if allowed(number, other))
            found.append(list(islice(others, most)))
    return found


def _matrix(vectors: Sequence[dict[str, float]], terms: dict[str, int]) -> Tensor:
    """Sparse ``[texts, words]``, fp64."""
    entries = [(row, terms[word], value) for row, v in enumerate(vectors) for word, value in v.items()]
    places = torch.tensor([entry[:2] for entry in entries], dtype=torch.long).view(-1, 2).T
    values = torch.tensor([entry[2] for entry in entries], dtype=torch.float64)
    size = (len(vectors), max(1, len(terms)))
    return torch.sparse_coo_tensor(places, values, size, check_invariants=True)


def _words(text: str) -> Counter[str]:
    return Counter(re.findall(r"\w+", text.casefold()))


def _idf(documents: Sequence[Counter[str]]) -> dict[str, float]:
    counts = Counter(word for document in documents for word in document)
    return {word: math.log((1 + len(documents)) / (1 + count)) + 1 for word, count in counts.items()}


def _vector(words: Counter[str], idf: dict[str, float]) -> dict[str, float]:
    """Weights of the known words, of length 1."""
    weights = {word: count * idf[word] for word, count in words.items() if word in idf}
    length = math.sqrt(sum(weight**2 for weight in weights.values()))
    return {word: weight / length for word, weight in weights.items()}
