"""Scores of texts are rouge-score's and sacrebleu's own, in every resampling too, and nothing is printed."""

from __future__ import annotations

import logging
import random
import sys

import pytest

from evaluation.draws import drawn
from softprompt.errors import DataError, ResourceError
from softprompt.evaluation.text_metrics import ROUGE, bleu, chrf, rouge

rouge_scorer = pytest.importorskip("rouge_score.rouge_scorer", reason="needs the extra 'compare'")
sacrebleu = pytest.importorskip("sacrebleu", reason="needs the extra 'compare'")

WORDS = ("The", "quick", "brown", "fox,", "jumped", "over", "a", "lazy", "dog", "and", "ran", "home", ".")


def corpus(rows: int, seed: int = 0) -> tuple[list[str], list[list[str]]]:
    """Texts of 0 to 14 words, each with one to three references much like it."""
    draw = random.Random(seed)
    texts = [" ".join(draw.choices(WORDS, k=draw.randrange(15))) for _ in range(rows)]
    references = [
        [" ".join([*text.split()[2:], *draw.choices(WORDS, k=3)]) for _ in range(draw.randint(1, 3))]
        for text in texts
    ]
    return texts, references


def streams(references: list[list[str]]) -> list[list[str | None]]:
    return [[row[i] if i < len(row) else None for row in references] for i in range(3)]


def test_rouge_by_hand() -> None:
    found = rouge(["the cat sat"], [["sat the cat down"]])
    # words: 3 of 3 and 3 of 4; pairs: "the cat" of 2 and 3; longest common subsequence "the cat"
    expected = {"rouge1": 6 / 7, "rouge2": 2 / 5, "rougeL": 4 / 7, "rougeLsum": 4 / 7}
    assert {name: rows[0] for name, rows in found.items()} == pytest.approx(expected)
    by_lines = rouge(["a b\nc d"], [["c d\na b"]])
    assert (by_lines["rougeL"], by_lines["rougeLsum"]) == ([0.5], [1.0])


@pytest.mark.parametrize("use_stemmer", [False, True])
def test_rouge_takes_the_best_reference(use_stemmer: bool) -> None:
    texts, references = corpus(40)
    found = rouge(texts, references, use_stemmer=use_stemmer)
    scorer = rouge_scorer.RougeScorer(list(ROUGE), use_stemmer=use_stemmer)
    for number, (text, wanted) in enumerate(zip(texts, references, strict=True)):
        single = [scorer.score(reference, text) for reference in wanted]
        for name in ROUGE:
            assert found[name][number] == max(score[name].fmeasure for score in single)


def test_stems_make_runs_and_running_the_same_word() -> None:
    assert rouge(["he runs"], [["he running"]])["rouge1"] == [0.5]
    assert rouge(["he runs"], [["he running"]], use_stemmer=True)["rouge1"] == [1.0]


def test_bleu_and_chrf_equal_sacrebleu() -> None:
    texts, references = corpus(60)
    for found, reference, single in (
        (bleu(texts, references), sacrebleu.corpus_bleu, sacrebleu.BLEU(effective_order=True)),
        (chrf(texts, references), sacrebleu.corpus_chrf, sacrebleu.CHRF()),
    ):
        expected = reference(texts, streams(references)).score
        assert 10 < expected < 90
        assert found.corpus.value == pytest.approx(expected, rel=1e-12)
        alone = [single.sentence_score(t, r).score for t, r in zip(texts, references, strict=True)]
        assert found.per_row == pytest.approx(alone, rel=1e-12)


def test_every_draw_is_the_score_of_the_drawn_rows() -> None:
    texts, references = corpus(25, seed=1)
    picked = drawn(25, seed=7)[:20]
    found = [(bleu(texts, references, seed=7), sacrebleu.corpus_bleu)]
    found += [(chrf(texts, references, seed=7), sacrebleu.corpus_chrf)]
    for score, reference in found:
        for number, rows in enumerate(picked):
            expected = reference([texts[i] for i in rows], streams([references[i] for i in rows])).score
            assert float(score.corpus.draws[number]) == pytest.approx(expected, rel=1e-12)
        value, low, high = score.corpus.interval()
        assert low < value < high


def test_equal_texts_score_full_marks_and_strangers_none() -> None:
    texts = ["one two three four five", "six seven eight nine ten"]
    same = [[text, "other"] for text in texts]
    assert bleu(texts, same).corpus.interval() == pytest.approx((100, 100, 100))
    assert chrf(texts, same).corpus.interval() == pytest.approx((100, 100, 100))
    assert bleu(texts, [["xyz"], ["wvu"]]).corpus.interval() == (0, 0, 0)
    assert chrf(["", ""], same).corpus.interval() == (0, 0, 0)


def test_nothing_is_printed_or_logged(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    texts = ["it looks tokenised ."] * 120  # of which sacrebleu warns
    with caplog.at_level(logging.WARNING):
        bleu(texts, [["it looks tokenised ."]] * 120)
        chrf(texts, [["it looks tokenised ."]] * 120)
        rouge(texts, [["it looks tokenised ."]] * 120)
    assert not caplog.records
    assert capfd.readouterr() == ("", "")


def test_a_row_without_a_reference_is_refused() -> None:
    for metric in (bleu, chrf, rouge):
        with pytest.raises(DataError, match="Row 2 has no reference"):
            metric(["a", "b"], [["a"], []])


@pytest.mark.parametrize(("module", "package"), [("rouge_score", "rouge-score"), ("sacrebleu", "sacrebleu")])
def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, module: str, package: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ResourceError, match=rf"{package}.*pip install 'softprompt\[compare\]'"):
        (rouge if module == "rouge_score" else bleu)(["a"], [["a"]])
