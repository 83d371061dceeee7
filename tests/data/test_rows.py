from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from softprompt.data.rows import candidate_ids, collect_faults, encode, encode_input, too_long
from softprompt.data.table import Row, Table
from softprompt.data.template import Template
from softprompt.errors import DataError

TEXT = "rates rise as bank of england says the economy will grow by ten per cent in spring 日本 naïve"
WORDS = TEXT.split()
TOPICS = Template("Headline: {text}\nTopic:", " {label}", ["business", "arts", "sports"])
END = 999_999


def letters(text: str) -> list[int]:
    """One token a letter, so that lengths can be read off the text."""
    return [ord(letter) for letter in text]


def text_of(ids: tuple[int, ...]) -> str:
    return "".join(map(chr, ids))


def some_text(rng: random.Random, words: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(words))


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    """A small byte-level BPE, as GPT-2 and SmolLM2 have, learnt on the words above."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    rng = random.Random(0)
    corpus = [f"Headline: {some_text(rng, 12)}\nTopic: business arts sports" for _ in range(200)]
    tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer


def function(tokenizer: Tokenizer) -> Callable[[str], list[int]]:
    return lambda text: list(tokenizer.encode(text, add_special_tokens=False).ids)


def table_of(*rows: dict[str, object]) -> Table:
    return Table(rows, "t.csv")


def topics(texts: list[str]) -> Table:
    labels = list(TOPICS.labels or {})
    return Table(tuple({"text": t, "label": labels[i % 3]} for i, t in enumerate(texts)), "t.csv")


def test_examples() -> None:
    encoded = encode(topics(["a", "bc"]), TOPICS, letters, max_tokens=100, end=(END,))
    first, second = encoded.examples
    assert text_of(first.input_ids) == "Headline: a\nTopic:"
    assert second.target_ids == (*letters(" arts"), END)
    assert (second.label, second.index) == (1, 1)
    assert encoded.truncated == 0
    assert encoded.candidate_ids == candidate_ids(TOPICS, letters, (END,))


def test_labelled_targets_are_the_candidates() -> None:
    encoded = encode(topics(["x"] * 6), TOPICS, letters, max_tokens=100)
    assert encoded.candidate_ids is not None
    for example in encoded.examples:
        assert example.label is not None
        assert example.target_ids == encoded.candidate_ids[example.label]


def test_free_text() -> None:
    table = table_of({"a": "x", "b": "yes"})
    encoded = encode(table, Template("{a}:", " {b}"), letters, max_tokens=10, end=(7, END))
    (example,) = encoded.examples
    assert example.target_ids == (*letters(" yes"), 7, END)
    assert example.label is None
    assert encoded.candidate_ids is None
    assert not encoded.needs_whole_words


def test_an_empty_input_is_allowed() -> None:
    encoded = encode(table_of({"b": "yes"}), Template("", "{b}"), letters, max_tokens=3)
    assert encoded.examples[0].input_ids == ()


def test_the_seam(bpe: Tokenizer) -> None:
    """Input and target are tokenised apart, also where one text would have been tokenised otherwise."""
    ids = function(bpe)
    table = table_of({"a": "the eco", "b": "nomy"})
    (example,) = encode(table, Template("{a}", "{b}"), ids, max_tokens=50).examples
    assert example.input_ids == tuple(ids("the eco"))
    assert example.target_ids == tuple(ids("nomy"))
    assert example.input_ids + example.target_ids != tuple(ids("the economy"))
    with_space = Template("Headline: {text}\nTopic:", " {label}", ["business", "arts"])
    row: dict[str, object] = {"text": "rates rise", "label": "arts"}
    (example,) = encode(table_of(row), with_space, ids, max_tokens=50).examples
    assert example.input_ids + example.target_ids == tuple(ids("Headline: rates rise\nTopic: arts"))


@pytest.mark.parametrize("tokenizer", ["letters", "bpe"])
def test_long_rows_keep_target_and_template(bpe: Tokenizer, tokenizer: str) -> None:
    ids = letters if tokenizer == "letters" else function(bpe)
    rng = random.Random(1)
    texts = [some_text(rng, rng.choice([1, 5, 20, 60, 300])) for _ in range(120)]
    table = topics(texts)
    limit = 90 if tokenizer == "letters" else 40
    head, tail = ids("Headline:"), ids("\nTopic:")
    encoded = encode(table, TOPICS, ids, max_tokens=limit, end=(END,))
    cut = 0
    for text, example in zip(texts, encoded.examples, strict=True):
        assert len(example.input_ids) + len(example.target_ids) <= limit
        assert example.target_ids == (*ids(TOPICS.target_text(table.rows[example.index])), END)
        assert list(example.input_ids[: len(head)]) == head
        assert list(example.input_ids[-len(tail) :]) == tail
        whole = tuple(ids(TOPICS.input_text({"text": text})))
        shown = text_of(example.input_ids) if ids is letters else bpe.decode(example.input_ids)
        kept = shown.removeprefix("Headline: ").removesuffix("\nTopic:")
        assert text.endswith(kept)
        if example.input_ids != whole:
            cut += 1
            assert text[: -len(kept)].endswith(" "), "a cut begins at a word"
            # Little room is wasted: less than a word and the seams of the template.
            assert len(example.input_ids) >= limit - len(" business") - 1 - 20
    assert cut == encoded.truncated > 20
    assert encoded.notes[0] == (
        f"{cut} of 120 rows were longer than {limit} tokens and were cut at the start of the text."
    )


def test_what_is_read_does_not_depend_on_the_right_label() -> None:
    text = some_text(random.Random(2), 100)
    encoded = encode(topics([text] * 3), TOPICS, letters, max_tokens=90)
    assert len({example.input_ids for example in encoded.examples}) == 1


def test_the_longest_field_is_cut_first() -> None:
    template = Template("{context} | {question} | {context} ?", " {answer}")
    row: dict[str, object] = {"context": "c" * 500, "question": "q" * 10, "answer": "a"}
    encoded = encode(table_of(row), template, letters, max_tokens=60)
    shown = text_of(encoded.examples[0].input_ids)
    assert shown == "c" * 20 + " | " + "q" * 10 + " | " + "c" * 20 + " ?"
    assert encoded.notes == (
        "1 of 1 rows was longer than 60 tokens and was cut at the start of their longest field.",
    )


def test_a_field_may_be_cut_to_nothing() -> None:
    template = Template("{a}: {b}", "x")
    assert encode_input(template, {"a": "aaa", "b": "bbb"}, letters, 2).ids == tuple(letters(": "))


def test_too_little_room_names_the_row() -> None:
    rows: list[dict[str, object]] = [{"a": "x" * 50, "b": "y"}, {"a": "x", "b": "y" * 18}]
    with pytest.raises(DataError) as caught:
        encode(table_of(*rows), Template("{a}:", " {b}"), letters, max_tokens=19)
    assert str(caught.value) == (
        "t.csv, row 2: the target and the template's own words alone have 20 tokens, more than the 19 "
        "allowed: raise max_tokens or shorten them, or let data.long_targets drop or cut such rows."
    )


def test_serving_gives_the_ids_of_training(bpe: Tokenizer) -> None:
    ids = function(bpe)
    rng = random.Random(3)
    table = topics([some_text(rng, n) for n in (3, 30, 200)])
    encoded = encode(table, TOPICS, ids, max_tokens=40, end=(END,))
    reserve = max(map(len, candidate_ids(TOPICS, ids, (END,)) or ()))
    for row, example in zip(table.rows, encoded.examples, strict=True):
        assert encode_input(TOPICS, row, ids, 40, reserve=reserve).ids == example.input_ids
        assert encode_input(TOPICS, str(row["text"]), ids, 40, reserve=reserve).ids == example.input_ids
        assert encode_input(TOPICS, {"text": row["text"]}, ids, 40, reserve=reserve).ids == example.input_ids


def test_plain_text_needs_one_field() -> None:
    twice = Template("{a} and {a}", "x")
    assert text_of(encode_input(twice, "{b}", letters, 99).ids) == "{b} and {b}"
    with pytest.raises(DataError, match=r"has 2 fields \(a, b\), so plain text does not say"):
        encode_input(Template("{a} {b}", "x"), "text", letters, 99)
    with pytest.raises(DataError, match=r"has 0 fields \(none\)"):
        encode_input(Template("a", "x"), "text", letters, 99)
    with pytest.raises(DataError, match=r"There is no column 'text'"):
        encode_input(TOPICS, {"txt": "x"}, letters, 99)
    with pytest.raises(DataError, match="more than the 5 allowed"):
        encode_input(TOPICS, "x", letters, 5)


@pytest.mark.parametrize(
    ("labels", "whole"),
    [(["business", "arts"], False), (["business", "banking"], True), (["x", "y", "xy"], True)],
)
def test_whole_words(labels: list[str], whole: bool) -> None:
    template = Template("{text}", "{label}", labels)
    table = table_of({"text": "t", "label": labels[0]})
    encoded = encode(table, template, letters, max_tokens=50)
    assert encoded.needs_whole_words is whole
    assert any("whole words are compared" in note for note in encoded.notes) is whole


def test_a_word_that_begins_another_is_noted_unless_it_is_closed() -> None:
    template = Template("{text}", "{label}", ["not", "not bad"])
    table = table_of({"text": "t", "label": "not"})
    notes = encode(table, template, letters, max_tokens=50).notes
    assert any("'not bad' begins with that of 'not'" in note for note in notes)
    notes = encode(table, template, letters, max_tokens=50, end=(END,)).notes
    assert notes == ("Some label words begin with the same token, so whole words are compared.",)


def test_words_that_tokenise_alike() -> None:
    def folded(text: str) -> list[int]:
        return letters(text.lower())

    template = Template("{text}", " {label}", ["Yes", "yes"])
    table = table_of({"text": "t", "label": "yes"})
    with pytest.raises(DataError, match="labels 'Yes' and 'yes' have the same tokens"):
        encode(table, template, folded, max_tokens=50)
    with pytest.raises(DataError, match="'Yes' has no tokens"):
        encode(table, template, lambda text: [], max_tokens=50)


def test_an_empty_table() -> None:
    with pytest.raises(DataError, match=r"t has no rows\."):
        encode(Table((), "t"), TOPICS, letters, max_tokens=50)


def test_a_column_that_no_row_has_is_told_once() -> None:
    with pytest.raises(DataError) as caught:
        encode(
            table_of({"txt": "a", "label": "arts"}, {"txt": "b", "label": "arts"}),
            TOPICS,
            letters,
            max_tokens=50,
        )
    assert str(caught.value) == (
        "t.csv: there is no column 'text', the columns are txt, label; did you mean 'txt'?"
    )


def test_a_target_that_is_too_long_is_refused_or_cut_at_its_end() -> None:
    free = Template("Q: {q}\nA:", " {a}")
    short: dict[str, object] = {"q": "why", "a": "so"}
    long: dict[str, object] = {"q": "why " * 4, "a": "because " * 9}
    asked: dict[str, Any] = {"max_tokens": 40, "end": (END,)}
    with pytest.raises(
        DataError, match=r"row 2: the target .* have 80 tokens.*data\.long_targets drop or cut"
    ):
        encode(table_of(short, long), free, letters, **asked)
    cut = encode(table_of(short, long), free, letters, **asked, cut_targets=True)
    whole = encode(table_of(short), free, letters, **asked)
    assert cut.examples[0] == whole.examples[0]  # what fits is as it was, its end among it
    example = cut.examples[1]
    assert text_of(example.target_ids) == (" " + "because " * 9)[: len(example.target_ids)]
    assert len(example.input_ids) + len(example.target_ids) == 40
    assert (
        text_of(example.input_ids) == "Q: y why why why \nA:"
    )  # half of the room at most, its beginning cut
    assert cut.notes == (
        "1 of 2 rows was longer than 40 tokens and was cut at the start of the q.",
        "1 of 2 targets were too long for 40 tokens and lost their end.",
    )
    with pytest.raises(DataError, match="have 80 tokens, more than the 8 allowed"):
        encode(table_of(long), Template("Question{q}", "{a}"), letters, max_tokens=8, cut_targets=True)


def test_rows_whose_target_has_no_room_are_found() -> None:
    free = Template("Q: {q}\nA:", "{a}")
    rows: list[dict[str, object]] = [{"q": "why " * 90, "a": "b" * length} for length in (1, 34, 33, 35)]
    assert too_long(table_of(*rows), free, letters, max_tokens=40) == [3]
    assert too_long(table_of(*rows), free, letters, max_tokens=40, end=(END,)) == [1, 3]
    offered = Template("{q}", "{choice}", choices="c")
    rows = [{"q": "?", "c": ["x", "y" * length], "label": 0} for length in (9, 11)]
    assert too_long(table_of(*rows), offered, letters, max_tokens=10) == [1]


def test_faults_are_collected() -> None:
    rows: list[dict[str, object]] = [
        {"text": "a", "label": label} for label in ("arts", "x", "sports", "y", "z")
    ]
    with pytest.raises(DataError) as caught:
        encode(table_of(*rows), TOPICS, letters, max_tokens=50)
    assert str(caught.value) == (
        "t.csv, row 2 and 2 more with a fault: the label 'x' in column 'label' is not one of "
        "'business', 'arts', 'sports'."
    )
    with pytest.raises(DataError, match=r"^t.csv, row 2: the label"):
        encode(table_of(*rows[:3]), TOPICS, letters, max_tokens=50)


def test_collect_faults_gives_the_results_and_lets_other_errors_through() -> None:
    table = table_of({"a": 1}, {"a": 2})
    assert collect_faults(table, lambda index, row: (index, row["a"])) == [(0, 1), (1, 2)]

    def broken(index: int, row: Row) -> None:
        raise KeyError("bug")

    with pytest.raises(KeyError):
        collect_faults(table, broken)


def test_only_long_rows_pay(bpe: Tokenizer) -> None:
    calls: list[int] = []
    ids = function(bpe)

    def counted(text: str) -> list[int]:
        calls.append(len(text))
        return ids(text)

    encode(topics(["rates rise"] * 50), TOPICS, counted, max_tokens=60)
    assert len(calls) == 50 + 3
    calls.clear()
    long = some_text(random.Random(4), 50_000)
    start = time.perf_counter()
    encode_input(TOPICS, long, counted, 64)
    assert time.perf_counter() - start < 5
    assert len(calls) < 30
    # After the first look at the whole text, the work follows the limit and not the text.
    assert sum(calls[1:]) < 30 * 64 * 8
