"""Neighbours by TF-IDF: those scikit-learn finds."""

from __future__ import annotations

import random

import pytest
import torch

from softprompt.data.retrieve import nearest_texts

TEXT = "Bank bank of england says the economy will grow by ten per cent in spring 日本 naïve x"
WORDS = TEXT.split()


def some_texts(count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(1, 12))) for _ in range(count)]


def test_similarity_is_that_of_scikit_learn() -> None:
    sklearn = pytest.importorskip(
        "sklearn.feature_extraction.text", reason="needs scikit-learn to compare with"
    )
    among, texts = some_texts(150, 0), some_texts(90, 1)
    reference = sklearn.TfidfVectorizer(token_pattern=r"\w+")
    known = reference.fit_transform(among)
    similar = torch.tensor((reference.transform(texts) @ known.T).toarray())
    for row, chosen in zip(similar, nearest_texts(texts, among, 7), strict=True):
        assert len(set(chosen)) == 7
        torch.testing.assert_close(row[chosen], row.sort(descending=True).values[:7], atol=1e-9, rtol=0)


def test_equal_texts_keep_their_order() -> None:
    assert nearest_texts(["b a"], ["c", "a b", "b a", "A, B!"], 3) == [[1, 2, 3]]


def test_what_is_not_allowed_is_not_found() -> None:
    texts = some_texts(80, 2)
    found = nearest_texts(texts, texts, 80, allowed=lambda i, j: texts[i] != texts[j])
    for number, chosen in enumerate(found):
        assert sorted(chosen) == [j for j in range(80) if texts[j] != texts[number]]


def test_texts_without_words_are_no_trouble() -> None:
    assert nearest_texts(["", "?", "a"], ["!", "a", ""], 2) == [[0, 1], [0, 1], [1, 0]]
    assert nearest_texts(["a"], ["!"], 2) == [[0]]
