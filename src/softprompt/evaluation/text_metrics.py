"""ROUGE by rouge-score, BLEU and chrF by sacrebleu: scores of written texts against their references.

It knows texts and those two libraries, which are optional and imported when used; it does not know who wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from softprompt.errors import DataError, ResourceError
from softprompt.evaluation.intervals import Sampled, resampled

__all__ = ["ROUGE", "Corpus", "References", "bleu", "check_references", "chrf", "require", "rouge"]

ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")

References = Sequence[Sequence[str]]
"""For each row one reference text or more."""


@dataclass(frozen=True, eq=False)
class Corpus:
    """A score of a whole set of texts, 0 to 100.

    Attributes:
        corpus: the score of all rows together, and of each resampling of them.
        per_row: each row's own score. Their mean is not the corpus score.
    """

    corpus: Sampled
    per_row: list[float]


def require() -> None:
    """See that both libraries are there, before hours are spent on writing texts.

    Raises:
        ResourceError: one is not installed.
    """
    _rouge_scorer()
    _sacrebleu()


def check_references(rows: Sequence[object], references: References) -> None:
    """Raise ``DataError`` for the first of the rows without a reference."""
    assert len(rows) == len(references), "one list of references a row"
    for number, wanted in enumerate(references, 1):
        if not wanted:
            raise DataError(f"Row {number} has no reference text: give it one, or leave the row out.")


def rouge(
    texts: Sequence[str], references: References, *, use_stemmer: bool = False
) -> dict[str, list[float]]:
    """ROUGE-1, -2, -L and -Lsum of every row (Lin 2004), F-measures from 0 to 1, by name.

    Of several references the one that gives the best F counts, for each kind of ROUGE by itself. Words are
    runs of the letters a-z and digits after lowering the case, so texts in other scripts have none and
    score 0. ROUGE-Lsum takes every line for a sentence and equals ROUGE-L on texts of one line.

    Args:
        texts: what was written.
        references: what should have been.
        use_stemmer: compare the stems (Porter's, English) of words longer than three letters. Published
            results on summaries often do; it raises every score.

    Raises:
        ResourceError: rouge-score is not installed.
        DataError: a row without a reference.
    """
    check_references(texts, references)
    scorer = _rouge_scorer()(list(ROUGE), use_stemmer=use_stemmer)
    rows = [scorer.score_multi(list(wanted), text) for text, wanted in zip(texts, references, strict=True)]
    return {name: [float(row[name].fmeasure) for row in rows] for name in ROUGE}


def bleu(texts: Sequence[str], references: References, *, seed: int = 0) -> Corpus:
    """BLEU with up to 4-grams (Papineni et al. 2002), sacrebleu's default of 13a tokens and mixed case.

    A row alone is scored on the orders it is long enough for (effective order).

    Raises:
        ResourceError: sacrebleu is not installed.
        DataError: a row without a reference.
    """
    # A set of texts that look tokenised would be reported to a log; force keeps sacrebleu quiet.
    make = _sacrebleu().BLEU
    return _corpus(make(force=True), make(force=True, effective_order=True), texts, references, seed)


def chrf(texts: Sequence[str], references: References, *, seed: int = 0) -> Corpus:
    """chrF2 (Popović 2015): F of character n-grams, n up to 6, by sacrebleu's defaults.

    It needs no words, so it is of use in every language.

    Raises:
        ResourceError: sacrebleu is not installed.
        DataError: a row without a reference.
    """
    metric = _sacrebleu().CHRF()
    return _corpus(metric, metric, texts, references, seed)


def _corpus(whole: Any, single: Any, texts: Sequence[str], references: References, seed: int) -> Corpus:
    """Score a corpus, its resamplings and its rows from the n-gram counts of each row."""
    check_references(texts, references)
    # sacrebleu gives away no counts; these two methods are what its own significance tests are made of.
    counts = whole._extract_corpus_statistics(list(texts), _streams(references))

    def scores(by: Any) -> Callable[[Tensor], Tensor]:
        def compute(sums: Tensor) -> Tensor:
            found = [by._compute_score_from_stats(row).score for row in sums.tolist()]
            return torch.tensor(found, dtype=torch.float64)

        return compute

    columns = torch.tensor(counts, dtype=torch.float64)
    return Corpus(resampled(columns, scores(whole), seed=seed), scores(single)(columns).tolist())


def _streams(references: References) -> list[list[str | None]]:
    """References as sacrebleu takes them: the first of every row, the second, ..., None where one lacks."""
    most = max(map(len, references))
    return [[row[i] if i < len(row) else None for row in references] for i in range(most)]


def _rouge_scorer() -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise ResourceError(_missing("ROUGE", "rouge-score")) from error
    return RougeScorer


def _sacrebleu() -> Any:
    try:
        import sacrebleu
    except ImportError as error:
        raise ResourceError(_missing("BLEU and chrF", "sacrebleu")) from error
    return sacrebleu


def _missing(what: str, package: str) -> str:
    return f"For {what} the package {package} is needed; run pip install 'softprompt[compare]'."
