"""Pieces of text: together they are the answer up to its first stop string, wherever tokens divide it."""

from __future__ import annotations

import dataclasses
import functools
import random
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

import tiny
from softprompt.base.model import Base
from softprompt.checkpoints.catalog import bundled
from softprompt.errors import ResourceError
from softprompt.generation.detokenizer import Detokenizer, StopRules
from softprompt.generation.sampler import Sampling

SAMPLES = (
    "Plain words, then some more of them.",
    "Two  spaces,\ttabs\n\nand   lines \n end ",
    "Emoji 😀👍🏽👩‍👩‍👧‍👦🇨🇭 in a row😀😀",
    "你好，世界。今天天气很好！",
    "Combining: é ä ñ̃ ก็ ที่ नमस्ते Z̷a̷l̷",
    "A replacement \ufffd\ufffd that was meant \ufffd",
)
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())


def with_tokenizer(backend: Tokenizer, **options: Any) -> Base:
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="</s>", unk_token="<unk>", **options
    )
    made.add_tokens([AddedToken("<mark>", special=True), AddedToken("<plain>", special=False)])
    return dataclasses.replace(tiny.base(), tokenizer=made)


def byte_level() -> Base:
    """Every byte a token, and a few words, as in GPT-2's family; half a smile is one of them."""
    words = ["</s>", "<unk>", *BYTES, "Ġt", "he", "Ġthe", "ðŁ", "ðŁĺ", "ðŁĺĢ", "Ģa"]
    merges = [("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("ð", "Ł"), ("ðŁ", "ĺ"), ("ðŁĺ", "Ģ"), ("Ģ", "a")]
    backend = Tokenizer(models.BPE({w: i for i, w in enumerate(words)}, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return with_tokenizer(backend)


def byte_fallback() -> Base:
    """Words with their leading space, bytes for what has no word, as in Llama's family."""
    words = ["</s>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words += ["▁", "a", "b", "c", "▁a", "▁b", "你", "▁▁"]
    backend = Tokenizer(
        models.BPE({w: i for i, w in enumerate(words)}, [("▁", "a"), ("▁", "b")], byte_fallback=True)
    )
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(parts)
    return with_tokenizer(backend)


def tidying() -> Base:
    """Words with their leading space, and a tokenizer that takes spaces out before marks."""
    words = ["</s>", "<unk>", "▁", "▁word", "▁a", "s", "ve", "re", "'", "▁'", ".", "▁.", "▁n", "n't", "▁?"]
    words += ["m", "▁,", "t", "x", "▁x", "y"]
    backend = Tokenizer(models.Unigram([(word, -1.0) for word in words], unk_id=1))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    return with_tokenizer(backend, clean_up_tokenization_spaces=True)


BASES: dict[str, Callable[[], Base]] = {
    "letters": tiny.base,
    "byte-level": functools.cache(byte_level),
    "byte-fallback": functools.cache(byte_fallback),
    "tidying": functools.cache(tidying),
}


@pytest.fixture(params=BASES)
def base(request: pytest.FixtureRequest) -> Base:
    return BASES[request.param]()


@pytest.fixture(scope="module")
def smollm2() -> Base:
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(bundled("smollm2-135m"))
    except ResourceError as error:
        pytest.skip(f"the bundled base is not here and cannot be fetched: {error}")
    return dataclasses.replace(tiny.base(), tokenizer=tokenizer)


def written(base: Base, ids: Iterable[int], stop: str | Sequence[str] = ()) -> tuple[list[str], Detokenizer]:
    """All pieces, the writer being fed until it stops."""
    writer, pieces = Detokenizer(base, stop), []
    for token in ids:
        pieces.append(writer.push(token))
        if writer.stopped:
            break
    pieces.append(writer.finish())
    assert writer.text == "".join(pieces)
    return pieces, writer


def cut(text: str, stops: Sequence[str]) -> str | None:
    """By hand: read a character at a time until one stop string is complete, and cut before the longest."""
    for end in range(len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))]
    return None


def drawn_ids(base: Base, draw: random.Random, most: int = 60) -> list[int]:
    """Any tokens at all: broken characters, marks, the end, and ids the tokenizer does not have."""
    few = draw.sample(range(len(base.tokenizer) + 2), min(draw.choice([4, 12, 10_000]), len(base.tokenizer)))
    return [draw.choice(few) for _ in range(draw.randint(0, most))]


def some_stops(text: str, draw: random.Random) -> list[str]:
    """Strings that are in the text, nearly are, or are not."""
    stops = ["never in it"]
    for _ in range(draw.randint(1, 4)):
        start = draw.randrange(len(text) + 1)
        part = text[start : start + draw.randint(1, 6)]
        stops += [stop for stop in (part, part + "?", part[1:]) if stop and draw.random() < 0.5]
    return stops


def check(base: Base, ids: list[int], stops: Sequence[str]) -> None:
    text = base.decode(ids)
    expected = cut(text, stops)
    pieces, writer = written(base, ids, stops)
    assert "".join(pieces) == (text if expected is None else expected), (ids, stops)
    assert writer.stopped == (expected is not None)


def test_pieces_of_any_tokens_are_the_decoded_text(base: Base) -> None:
    draw = random.Random(0)
    for _ in range(400):
        ids = drawn_ids(base, draw)
        pieces, _ = written(base, ids)
        assert "".join(pieces) == base.decode(ids), ids


def test_any_tokens_end_at_the_first_stop_string(base: Base) -> None:
    draw = random.Random(1)
    for _ in range(400):
        ids = drawn_ids(base, draw, most=25)
        check(base, ids, some_stops(base.decode(ids), draw))


def tokens(base: Base, *words: str) -> list[int]:
    return [base.tokenizer.convert_tokens_to_ids(word) for word in words]


def test_text_is_shown_as_soon_as_it_is_settled() -> None:
    level, fallback = BASES["byte-level"](), BASES["byte-fallback"]()
    assert written(level, level.encode("a the😀b"))[0] == ["a", " the", "😀", "b", ""]
    split = tokens(level, "a", "ðŁ", "ĺ", "Ģa", "ð")
    assert written(level, split)[0] == ["a", "", "", "😀a", "", "\ufffd"]
    ids = tokens(fallback, "▁a", "▁b", "<0xE4>", "<0xBD>", "<0xA0>", "c", "<0xE4>")
    assert written(fallback, ids)[0] == ["a", " b", "", "", "", "你c", "", "\ufffd"]


def test_only_what_may_become_a_stop_string_waits() -> None:
    base = tiny.base()
    pieces, writer = written(base, base.encode("abcabcdefg"), ("abcd", "xyz"))
    assert pieces == ["", "", "", "abc", "", "", "", ""]  # the second "a" tells that the first "abc" was none
    assert (writer.text, writer.stopped) == ("abc", True)
    late, writer = written(base, base.encode("efgab"), "abcd")
    assert late == ["e", "f", "g", "", "", "ab"]
    assert not writer.stopped


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("one two three", ("two", "three"), "one "),
        ("one two three", ("three", "two"), "one "),
        ("foo</answer>", (">", "</answer>"), "foo"),  # complete together: the one that begins first
        ("foo</answer>", ("</answer>", "answer"), "foo</"),  # complete first
        ("aaab", ("aab",), "a"),  # a beginning within a beginning
        ("ababac", ("abac",), "ab"),
        ("x", ("x",), ""),
        ("", ("x",), None),
        ("abc", (), None),
    ],
)
def test_the_first_complete_stop_string_wins(text: str, stops: tuple[str, ...], expected: str | None) -> None:
    assert cut(text, stops) == expected
    base = tiny.base()
    check(base, base.encode(text), stops)


def test_nothing_is_written_after_a_stop_string() -> None:
    base = tiny.base()
    writer = Detokenizer(base, "b")
    assert [writer.push(token) for token in base.encode("abcd")] == ["a", "", "", ""]
    assert writer.finish() == ""
    assert (writer.text, writer.stopped) == ("a", True)


def test_a_stop_string_may_begin_in_what_the_end_sets_free() -> None:
    base = BASES["byte-fallback"]()
    pieces, writer = written(base, tokens(base, "▁a", "<0x41>", "<0x42>"), "B")
    assert (pieces, writer.stopped) == (["a", "", "", "A"], True)


def test_special_tokens_are_left_out_as_in_decode(base: Base) -> None:
    end = base.end_id
    assert end is not None
    ids = [*base.encode("a"), end, *base.encode("a"), end]
    assert written(base, ids)[1].text == base.decode(ids)
    assert base.tokenizer.eos_token not in base.decode(ids)


def test_a_token_costs_the_same_however_long_the_answer_is(base: Base) -> None:
    seen: list[int] = []

    class Counted:
        def __getattr__(self, name: str) -> Any:
            return getattr(base.tokenizer, name)

        def __call__(self, *args: Any, **options: Any) -> Any:
            return base.tokenizer(*args, **options)

        def decode(self, ids: list[int], **options: Any) -> Any:
            seen.append(len(ids))
            return base.tokenizer.decode(ids, **options)

    counted = dataclasses.replace(base, tokenizer=Counted())
    draw = random.Random(2)
    known = [t for t in tokens(base, "a", "▁word", "Ģ", "▁a") if t != base.tokenizer.unk_token_id]
    writer = Detokenizer(counted)
    seen.clear()
    for _ in range(2000):
        writer.push(draw.choice(known))
    assert sum(seen) / 2000 < 30


def test_a_long_stop_string_is_no_way_to_slow_a_server_down() -> None:
    base = tiny.base()
    stop = "a" * 20_000 + "b"
    writer = Detokenizer(base, [stop] * 2)
    (token,) = base.encode("a")
    start = time.perf_counter()
    for _ in range(10_000):
        assert writer.push(token) == ""
    assert time.perf_counter() - start < 20
    assert writer.finish() == "a" * 10_000


def test_a_piece_names_a_token_as_it_reads_amid_others() -> None:
    base = BASES["byte-fallback"]()
    expected = {"▁a": " a", "a": "a", "▁": " ", "▁▁": "  ", "<0x41>": "A", "<0xF0>": "\ufffd"}
    expected |= {"</s>": "</s>", "<plain>": "<plain>"}
    assert [Detokenizer(base).piece(token) for token in tokens(base, *expected)] == list(expected.values())
    assert Detokenizer(base).piece(len(base.tokenizer) + 5) == ""
    level = BASES["byte-level"]()
    pieces = [Detokenizer(level).piece(token) for token in tokens(level, "Ġthe", "ðŁ", "Ģa")]
    assert pieces == [" the", "\ufffd", "\ufffda"]


def test_an_empty_stop_string_is_a_mistake_of_the_program() -> None:
    with pytest.raises(AssertionError):
        Detokenizer(tiny.base(), [""])


# -- the real tokenizer ----------------------------------------------------------------------------------


@pytest.mark.real_base
@pytest.mark.parametrize("text", SAMPLES)
def test_real_text_comes_whole_and_in_whole_characters(smollm2: Base, text: str) -> None:
    pieces, _ = written(smollm2, smollm2.encode(text))
    assert "".join(pieces) == smollm2.decode(smollm2.encode(text)) == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.real_base
@pytest.mark.parametrize("text", SAMPLES)
def test_every_stop_string_of_a_real_text_stops_it(smollm2: Base, text: str) -> None:
    ids = smollm2.encode(text)
    for start in range(len(text)):
        for length in (1, 2, 5):
            check(smollm2, ids, [text[start : start + length]])


@pytest.mark.real_base
def test_any_real_tokens_are_the_decoded_text(smollm2: Base) -> None:
    draw = random.Random(3)
    for _ in range(300):
        ids = drawn_ids(smollm2, draw)
        check(smollm2, ids, [])
        check(smollm2, ids, some_stops(smollm2.decode(ids), draw))


# -- when an answer ends ---------------------------------------------------------------------------


def ends(sampling: Sampling, token: int) -> bool:
    """Whether an answer of the tiny base, whose end token is 2, ends before a token."""
    return StopRules(tiny.base(), sampling, 64).ends_before(token)


def test_an_answer_ends_at_the_end_token_and_at_stop_tokens() -> None:
    assert ends(Sampling(), 2)
    assert not ends(Sampling(), 3)
    assert not ends(Sampling(ignore_end=True), 2)
    assert ends(Sampling(stop_tokens=[9]), 9)
    assert ends(Sampling(stop_tokens=[2], ignore_end=True), 2)


def test_a_stop_string_that_is_a_special_token_is_a_stop_token() -> None:
    base = byte_level()
    mark, plain = (base.tokenizer.convert_tokens_to_ids(word) for word in ("<mark>", "<plain>"))
    rules = StopRules(base, Sampling(stop=("<mark>", "<plain>", "nowhere")), 64)
    assert rules.ends_before(mark)
    assert not rules.ends_before(plain), "its text is shown, and stops there"
    assert not rules.ends_before(base.tokenizer.unk_token_id), "what no token is has the unknown one's id"
    assert not StopRules(base, Sampling(), 64).ends_before(mark)


def test_an_answer_ends_after_its_stop_string_or_its_greatest_length() -> None:
    base = tiny.base()
    rules, text = StopRules(base, Sampling(stop="b"), 3), Detokenizer(base, "b")
    text.push(*base.encode("a"))
    assert rules.ends_after(1, text) is None
    assert rules.ends_after(3, text) == "length"
    text.push(*base.encode("b"))
    assert rules.ends_after(3, text) == "stop"
