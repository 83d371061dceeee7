"""Texts written behind a front, and how near they come to their references.

It knows token rows, greedy generation and the metrics of texts; it does not know which method made the front.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from softprompt.base.model import Base
from softprompt.data.rows import Encoded, Example
from softprompt.data.table import Row, Table
from softprompt.data.template import Template
from softprompt.errors import BaseModelError
from softprompt.evaluation import text_metrics
from softprompt.evaluation.metrics import Sampled, Value, average, exact_match, sampled_mean, token_f1
from softprompt.evaluation.text_metrics import References
from softprompt.generation.offline import generate
from softprompt.generation.request import GenerateRequest
from softprompt.generation.sampler import Sampling
from softprompt.packages import require
from softprompt.prefix import Front, Prefix

__all__ = ["Written", "perplexity", "references", "score_texts", "write", "write_texts"]

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Written:
    """Texts and their scores.

    Attributes:
        texts: what was written for each row, white space at both ends taken off.
        metrics: exact_match, token_f1, rouge1, rouge2, rougeL and rougeLsum from 0 to 1, bleu and chrf from
            0 to 100, each with its 95% interval over rows.
        per_row: the scores of every row, of those metrics that are a mean over rows (not bleu and chrf).
        sampled: every metric with its resamplings, to be averaged over seeds or held against another
            method's (``paired.over_seeds``, ``paired.paired_difference``).
    """

    texts: list[str] = field(repr=False)
    metrics: dict[str, Value]
    per_row: dict[str, list[float]] = field(repr=False)
    sampled: dict[str, Sampled] = field(repr=False, compare=False)


def write(
    base: Base,
    front: Front,
    encoded: Encoded,
    references: References,
    *,
    max_new_tokens: int = 64,
    stop: Sequence[str] = (),
    seed: int = 0,
    use_stemmer: bool = False,
    progress: Progress | None = None,
) -> Written:
    """Write a text for every row, greedily, and score it.

    Args:
        base: the model.
        front: what stands before every row.
        encoded: the rows; only their inputs are read.
        references: for each row one right text or more.
        max_new_tokens: the longest text, in tokens.
        stop: a text ends before the first of these strings.
        seed: of the intervals.
        use_stemmer: for ROUGE, see ``text_metrics.rouge``.
        progress: called with (rows written, rows in all).

    Raises:
        ResourceError: rouge-score or sacrebleu is not installed; found out before anything is written.
        DataError: a row without a reference; likewise.
        BaseModelError: a row that, with its answer, is longer than the model's positions; likewise.
        WrongBaseError: a prefix of another base.
    """
    require("scoring written texts")
    text_metrics.check_references(encoded.examples, references)
    texts = write_texts(base, front, encoded, max_new_tokens=max_new_tokens, stop=stop, progress=progress)
    return score_texts(texts, references, seed=seed, use_stemmer=use_stemmer)


def score_texts(
    texts: Sequence[str], references: References, *, seed: int = 0, use_stemmer: bool = False
) -> Written:
    """Score texts that are there already; arguments and errors as in ``write``."""
    pairs = list(zip(texts, references, strict=True))
    text_metrics.check_references(texts, references)
    per_row = {
        "exact_match": [exact_match(text, wanted) for text, wanted in pairs],
        "token_f1": [token_f1(text, wanted) for text, wanted in pairs],
        **text_metrics.rouge(texts, references, use_stemmer=use_stemmer),
    }
    corpus = {
        "bleu": text_metrics.bleu(texts, references, seed=seed).corpus,
        "chrf": text_metrics.chrf(texts, references, seed=seed).corpus,
    }
    sampled = {name: sampled_mean(rows, seed=seed) for name, rows in per_row.items()} | corpus
    metrics = {name: average(rows, seed=seed) for name, rows in per_row.items()}
    metrics |= {name: found.interval() for name, found in corpus.items()}
    return Written(list(texts), metrics, per_row, sampled)


def references(template: Template, table: Table) -> list[list[str]]:
    """The right texts of every row: its target, or each of its right choices."""
    return [_right(template, row) for row in table.rows]


def _right(template: Template, row: Row) -> list[str]:
    if template.choices is None:
        return [template.target_text(row).strip()]
    answers = template.answers(row)
    return [answers[place].strip() for place in template.right(row)]


def write_texts(
    base: Base,
    front: Front,
    encoded: Encoded,
    *,
    max_new_tokens: int = 64,
    stop: Sequence[str] = (),
    progress: Progress | None = None,
) -> list[str]:
    """Write a text for every row, greedily; arguments and errors as in ``write``."""
    sampling = Sampling(max_new_tokens=max_new_tokens, stop=tuple(stop))
    with torch.no_grad():
        prefix = base.prefill(front)
    _check_room(base, prefix, encoded.examples, max_new_tokens)
    # Longest first: what does not fit into memory is known at once, and no long row is left for the end.
    order = sorted(range(len(encoded.examples)), key=lambda i: -len(encoded.examples[i].input_ids))
    requests = [
        GenerateRequest(model=base, prefix=prefix, ids=encoded.examples[i].input_ids, sampling=sampling)
        for i in order
    ]
    done = itertools.count(1)
    told = (lambda count: None) if progress is None else lambda count: progress(next(done), len(requests))
    texts = dict(zip(order, generate(requests, on_done=told), strict=True))
    return [texts[number].strip() for number in range(len(requests))]


def _check_room(base: Base, prefix: Prefix, examples: Sequence[Example], new: int) -> None:
    """Refuse a row that would not fit before others have cost their time."""
    limit = base.max_positions
    longest = max(examples, key=lambda e: len(e.input_ids))
    length = prefix.length + len(longest.input_ids)
    if limit is not None and length + new > limit:
        raise BaseModelError(
            f"Row {longest.index + 1} needs {length} positions and {new} new tokens, but {base.name} holds "
            f"{limit}; shorten the text or lower max_new_tokens."
        )


def perplexity(nll: float) -> float:
    """Exp of a mean loss per token in nats: among how many tokens the model is torn; infinite if too many."""
    try:
        return math.exp(nll)
    except OverflowError:
        return math.inf
