"""Texts are those of one row at a time, in the rows' order; scores are the metrics of exactly these texts."""

from __future__ import annotations

import math
import sys

import pytest
import torch

import tiny
from softprompt.data.rows import Encoded, Example
from softprompt.errors import BaseModelError, DataError, ResourceError, WrongBaseError
from softprompt.evaluation import writing
from softprompt.evaluation.metrics import average, exact_match, token_f1
from softprompt.evaluation.text_metrics import bleu, chrf, rouge
from softprompt.evaluation.writing import perplexity, score_texts, write, write_texts
from softprompt.generation.offline import generate
from softprompt.generation.request import GenerateRequest
from softprompt.generation.sampler import Sampling

pytest.importorskip("rouge_score", reason="needs the extra 'compare'")
pytest.importorskip("sacrebleu", reason="needs the extra 'compare'")

INPUTS = ["hello", "a", "some longer text than others", "zz", "a text", "b", "of middling length"]


def encoded(inputs: list[str] | None = None) -> Encoded:
    encode = tiny.base().encode
    rows = [Example(tuple(encode(t)), (5,), None, i) for i, t in enumerate(inputs or INPUTS)]
    return Encoded(tuple(rows), 0, None, False, ())


def alone(stop: tuple[str, ...] = (), tokens: int = 10) -> list[str]:
    """Every row written by itself."""
    base = tiny.base()
    prefix = base.prefill_text("abc")
    sampling = Sampling(max_new_tokens=tokens, stop=stop)
    requests = [
        GenerateRequest(model=base, prefix=prefix, ids=e.input_ids, sampling=sampling)
        for e in encoded().examples
    ]
    return [generate([request])[0].strip() for request in requests]


def test_texts_are_those_of_each_row_alone() -> None:
    base = tiny.base()
    seen: list[tuple[int, int]] = []
    front = base.embed((*base.start_ids, *base.encode("abc")))
    found = write_texts(
        base, front, encoded(), max_new_tokens=10, progress=lambda done, of: seen.append((done, of))
    )
    assert found == alone()
    assert len(set(found)) > 3
    assert seen == [(done, 7) for done in range(1, 8)]
    assert found == write_texts(base, base.prefill_text("abc"), encoded(), max_new_tokens=10)


def test_the_longest_row_is_begun_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not fit into memory is known at once."""
    lengths: list[int] = []

    def spy(requests: list[GenerateRequest], **_: object) -> list[str]:
        lengths.extend(len(request.ids) for request in requests)
        return [str(len(request.ids)) for request in requests]

    monkeypatch.setattr(writing, "generate", spy)
    found = write_texts(tiny.base(), tiny.base().embed((5, 6, 7)), encoded(), max_new_tokens=10)
    assert lengths == [28, 18, 6, 5, 2, 1, 1]
    assert found == [str(len(text)) for text in INPUTS]


def test_a_stop_string_ends_a_text() -> None:
    base = tiny.base()
    stop = next(text for text in alone() if len(text) > 4)[2:4]
    found = write_texts(base, base.prefill_text("abc"), encoded(), max_new_tokens=10, stop=[stop])
    assert found == alone((stop,))
    assert found != alone()


def test_scores_are_those_of_the_texts() -> None:
    base = tiny.base()
    texts = alone()
    references = [[texts[0]], ["x", texts[1] + " y"], *([text[:5], "the"] for text in texts[2:])]
    found = write(base, base.prefill_text("abc"), encoded(), references, max_new_tokens=10, seed=3)
    assert found.texts == texts
    pairs = list(zip(texts, references, strict=True))
    assert found.per_row == {
        "exact_match": [exact_match(*pair) for pair in pairs],
        "token_f1": [token_f1(*pair) for pair in pairs],
        **rouge(texts, references),
    }
    for name, rows in found.per_row.items():
        assert found.metrics[name] == average(rows, seed=3)
        assert found.sampled[name].value == pytest.approx(found.metrics[name].value)
    assert found.metrics["bleu"] == bleu(texts, references, seed=3).corpus.interval()
    assert found.metrics["chrf"] == chrf(texts, references, seed=3).corpus.interval()
    assert 0 < found.metrics["exact_match"].value < 1
    assert found.metrics == score_texts(texts, references, seed=3).metrics


def test_a_text_is_stripped_and_stemming_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    base, row, wanted = tiny.base(), encoded(inputs=["a"]), [["he running"]]
    monkeypatch.setattr(writing, "generate", lambda requests, **_: [" he runs\n"])
    plain, stemmed = (write(base, base.embed((5,)), row, wanted, use_stemmer=s) for s in (False, True))
    assert plain.texts == stemmed.texts == ["he runs"]
    assert (plain.per_row["rouge1"], stemmed.per_row["rouge1"]) == ([0.5], [1.0])


def test_what_is_wrong_is_said_before_anything_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> list[str]:
        raise AssertionError("something was written")

    monkeypatch.setattr(writing, "generate", never)
    base, rows = tiny.base(), encoded(inputs=["a", "b" * 500, "c"])
    with pytest.raises(BaseModelError, match=r"Row 2 needs 503 positions and 10 new tokens.*holds 512"):
        write_texts(base, base.embed((5, 6, 7)), rows, max_new_tokens=10)
    with pytest.raises(DataError, match="Row 3 has no reference"):
        write(base, base.embed((5,)), rows, [["x"], ["y"], []])
    with pytest.raises(WrongBaseError):
        write_texts(base, tiny.base(seed=1).prefill_text("a"), rows)
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(ResourceError, match="sacrebleu"):
        write(base, base.embed((5,)), rows, [["x"]] * 3)


def test_a_front_in_training_is_read_without_its_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []

    def spy(requests: list[GenerateRequest], **_: object) -> list[str]:
        seen.extend(request.prefix.keys[0].requires_grad for request in requests)
        return [""] * len(requests)

    monkeypatch.setattr(writing, "generate", spy)
    base = tiny.base()
    write_texts(base, torch.zeros(4, base.width).requires_grad_(), encoded())
    assert seen == [False] * 7


def test_perplexity() -> None:
    assert perplexity(0.0) == 1.0
    assert perplexity(math.log(50)) == pytest.approx(50)
    assert perplexity(1e4) == math.inf
