"""Every kind of request is answered as transformers answers it, one unpadded row at a time."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import tokenizers
import torch
import transformers

import tiny
from harness import asking
from library import samples
from softprompt.base.model import Base
from softprompt.base.packing import TokenRow
from softprompt.errors import BaseModelError, ConfigError, DataError, WrongBaseError
from softprompt.harness import SoftpromptLM
from softprompt.harness.model import Seam
from softprompt.prefix import Prefix

PAIRS = [
    ("The cup final", " was lost"),
    ("Rates are", " up"),
    ("Rates are", " no"),
    ("Rates are", "!"),
    ("Rates are", "?"),
    ("A new phone, thinner than the last one, is", " out"),
    ("", "Hm"),
    ("", "!"),
    ("Ends in a space ", "x"),
    ("a", "b"),
]


def model(base: Base, front: torch.Tensor, **options: Any) -> SoftpromptLM:
    return SoftpromptLM((base, base.prefill(front).detached()), **options)


def close(found: list[tuple[float, bool]], expected: list[tuple[float, bool]]) -> None:
    torch.testing.assert_close(
        torch.tensor([log for log, _ in found]),
        torch.tensor([log for log, _ in expected]),
        rtol=1e-4,
        atol=1e-4,
    )
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


def likeliest(base: Base, front: torch.Tensor, text: str, tokens: int) -> str:
    """What plain greedy decoding writes, so that ``is_greedy`` has something to be true of."""
    ids = tuple(base.encode(text))
    for _ in range(tokens):
        with torch.no_grad():
            embedded = torch.cat([front, base.embed(ids)])[None]
            ids = (*ids, int(base.model(inputs_embeds=embedded).logits[0, -1, 4:].argmax()) + 4)
    return base.decode(ids[len(base.encode(text)) :])


@pytest.mark.parametrize("architecture", ["llama", "bloom", "gpt2"])
def test_log_likelihoods_and_greedy_are_those_of_a_plain_pass(architecture: str) -> None:
    base = tiny.base(architecture)
    front = asking.soft(base)
    greedy = likeliest(base, front, "Hm", 3)
    pairs = [*PAIRS, ("Hm", greedy), ("Hm", greedy[:1]), ("Hm", greedy[:2] + "~")]
    expected = [asking.plain(base, front, tuple(base.encode(c)), tuple(base.encode(t))) for c, t in pairs]
    assert [best for _, best in expected][-3:-1] == [True, True]
    close(model(base, front).loglikelihood(asking.requests("loglikelihood", *pairs)), expected)


def starting() -> Any:
    """The tiny tokenizer, setting its start token before every text."""
    backend = tokenizers.Tokenizer.from_str(tiny.tokenizer().backend_tokenizer.to_str())
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **names)


@pytest.mark.parametrize("starts", [False, True], ids=["plain", "start-token"])
def test_a_bare_base_answers_as_lm_evals_own_model_does(
    starts: bool, caplog: pytest.LogCaptureFixture
) -> None:
    from lm_eval.models.huggingface import HFLM

    caplog.set_level(logging.ERROR)
    tokenizer = starting() if starts else tiny.tokenizer()
    plain = tiny.base()
    base = Base(plain.model, tokenizer, plain.name, plain.fingerprint, plain.layout)
    theirs = HFLM(pretrained=tiny.model("llama"), tokenizer=tokenizer, device="cpu", max_length=24)
    ours = SoftpromptLM(base, seam="joined", max_length=24)
    assert ours.prefix.length == int(starts)
    asked = asking.requests("loglikelihood", *(pair for pair in PAIRS if len("".join(pair)) < 24))
    close(ours.loglikelihood(asked), theirs.loglikelihood(asked))
    options = {"until": ["e", "\n"], "max_gen_toks": 12, "do_sample": False, "temperature": 0.0}
    texts = [context for context, _ in PAIRS if 0 < len(context) < 12]
    asked = asking.requests("generate_until", *((context, options) for context in texts))
    assert ours.generate_until(asked) == theirs.generate_until(asked)
    if starts:  # lm_eval's model sets it twice before rolling texts, and cuts it off long ones
        return
    asked = asking.requests("loglikelihood", ("A text that is longer than twenty-four letters", " and ends"))
    close(ours.loglikelihood(asked), theirs.loglikelihood(asked))
    whole = [("A text of several windows, which is scored in each of them, once.",), ("Hm",), ("",)]
    asked = asking.requests("loglikelihood_rolling", *whole)
    assert ours.loglikelihood_rolling(asked) == pytest.approx(theirs.loglikelihood_rolling(asked), rel=1e-4)


def test_the_start_token_stands_for_an_empty_context_only_where_the_front_expects_nothing() -> None:
    base = tiny.base()
    nothing = torch.empty(0, base.width)
    front = samples.prefix(base)
    asked = asking.requests("loglikelihood", ("", "Hm"), ("", "<s>Hm"))
    hm = tuple(base.encode("Hm"))
    expected = asking.plain(base, nothing, (1,), hm)
    close(SoftpromptLM(base).loglikelihood(asked), [expected, expected])
    rows = [TokenRow((1, *hm), 1)]
    with torch.no_grad():
        nll = float(base.nll(rows, front).nll.sum())
    assert SoftpromptLM((base, front)).loglikelihood(asked)[0][0] == pytest.approx(-nll, rel=1e-5)


@pytest.mark.parametrize("kind", ["soft", "prefix"])
def test_rolling_reads_every_token_once_behind_the_whole_front(kind: str) -> None:
    base = tiny.base()
    text = "abcdefghijklmnopqrstuvw"
    ids = tuple(base.encode(text))
    front: torch.Tensor | Prefix = asking.soft(base) if kind == "soft" else samples.prefix(base)
    prefix = base.prefill(front)
    lm = SoftpromptLM((base, prefix), max_length=prefix.length + 7)
    # Seven positions: tokens 0-6 first, then seven at a time, each read behind the token before; the last
    # window keeps all the context that fits.
    windows: list[tuple[tuple[int, ...], tuple[int, ...]]] = [
        (() if kind == "soft" else (1,), ids[:7]),
        (ids[6:7], ids[7:14]),
        (ids[13:14], ids[14:21]),
        (ids[15:21], ids[21:23]),
    ]
    with torch.no_grad():
        hand = -sum(float(base.nll([TokenRow(c + t, len(c))], prefix).nll.sum()) for c, t in windows)
    if isinstance(front, torch.Tensor):
        assert hand == pytest.approx(sum(asking.plain(base, front, c, t)[0] for c, t in windows), rel=1e-4)
    found = lm.loglikelihood_rolling(asking.requests("loglikelihood_rolling", (text,), ("Hm",), ("",)))
    assert found[0] == pytest.approx(hand, rel=1e-5)
    assert found[2] == 0.0


def test_a_context_that_is_too_long_loses_its_beginning_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    base = tiny.base()
    front = asking.soft(base)
    lm = model(base, front, max_length=len(front) + 6)
    with caplog.at_level(logging.WARNING):
        found = lm.loglikelihood(asking.requests("loglikelihood", ("abcdefgh", "xyz"), ("abcd", "xyz")))
    kept = [
        asking.plain(base, front, tuple(base.encode(c)), tuple(base.encode("xyz"))) for c in ("efgh", "abcd")
    ]
    close(found, kept)
    assert "1 of 2 texts are longer than the 6 positions" in caplog.text
    with pytest.raises(BaseModelError, match="7 tokens, but tiny-llama-0 has 6 positions behind the front"):
        lm.loglikelihood(asking.requests("loglikelihood", ("a", "uvwxyzz")))


def test_answers_do_not_depend_on_batches_or_order() -> None:
    base = tiny.base()
    front = asking.soft(base)
    asked = asking.requests("loglikelihood", *PAIRS)
    together = model(base, front).loglikelihood(asked)
    for one, answer in zip(asked, together, strict=True):
        close(model(base, front).loglikelihood([one]), [answer])
    options = {"until": ["\n"], "max_gen_toks": 9}
    asked = asking.requests("generate_until", *((context, options) for context, _ in PAIRS if context))
    whole = model(base, front).generate_until(asked)
    assert model(base, front, batch_size=3).generate_until(asked) == whole
    assert model(base, front).generate_until(asked[::-1]) == whole[::-1]


def test_generation_is_that_of_the_prompt() -> None:
    base = tiny.base()
    prompt = asking.prompt(base, input="Q: {text}", target=" {answer}", labels=None, front=asking.soft(base))
    texts = ["The cup final", "Hm", "A new phone"]
    contexts = [f"Q: {text}" for text in texts]
    drawn: dict[str, Any] = {"temperature": 1.5, "top_k": 20, "top_p": 0.9}
    cases: tuple[tuple[dict[str, Any], dict[str, Any]], ...] = (
        ({"until": [], "max_gen_toks": 12}, {"max_new_tokens": 12}),
        (
            {"until": ["a", "", "e"], "max_new_tokens": 12, "do_sample": False},
            {"max_new_tokens": 12, "stop": ("a", "e")},
        ),
        (
            {"until": None, "max_gen_toks": 12, "do_sample": True, **drawn},
            {"max_new_tokens": 12, "seed": 5, **drawn},
        ),
    )
    for options, ours in cases:
        asked = asking.requests("generate_until", *((context, options) for context in contexts))
        expected = prompt.generate(texts, **ours)
        assert SoftpromptLM(prompt, seed=5).generate_until(asked) == expected
        assert len(set(expected)) > 1


def test_each_request_is_answered_with_its_own_options() -> None:
    lm = model(tiny.base(), asking.soft(tiny.base()))
    lengths = (1, 5, 1, 3)
    asked = asking.requests("generate_until", *(("Hm", {"until": [], "max_gen_toks": n}) for n in lengths))
    assert [len(text) for text in lm.generate_until(asked)] == list(lengths)


def test_drawn_answers_of_one_text_differ_across_batches_too() -> None:
    lm = model(tiny.base(), asking.soft(tiny.base()), batch_size=2)
    options = {"until": [], "max_gen_toks": 10, "do_sample": True, "temperature": 2.0}
    asked = asking.requests("generate_until", *[("Hm", options)] * 6)
    assert len(set(lm.generate_until(asked))) == 6


def test_a_stop_that_is_a_special_token_ends_an_answer() -> None:
    base = tiny.base()
    lm = model(base, asking.soft(base))
    whole = {"until": [], "max_gen_toks": 12}
    (answer,) = lm.generate_until(asking.requests("generate_until", ("Hm", whole)))
    turn = answer[4]
    stopped = {"until": [turn], "max_gen_toks": 12}
    (by_text,) = lm.generate_until(asking.requests("generate_until", ("Hm", stopped)))
    marked = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tiny.tokenizer().backend_tokenizer,
        eos_token="</s>",
        additional_special_tokens=[turn],
    )
    special = Base(base.model, marked, base.name, base.fingerprint, base.layout)
    (by_token,) = SoftpromptLM((special, lm.prefix)).generate_until(
        asking.requests("generate_until", ("Hm", stopped))
    )
    assert by_token == by_text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 4}, "'num_beams', which softprompt does not have; it has until, max_gen_toks"),
        ({"temperature": "warm"}, "a wrong value"),
        ({"until": [3]}, "'until' must hold texts"),
        ({"do_sample": True, "temperature": 1.0, "top_p": 7}, "top_p must be above 0"),
        ({"max_gen_toks": 5000}, "leave no room for text"),
    ],
)
def test_generation_options_are_refused_in_a_sentence(options: dict[str, Any], message: str) -> None:
    lm = model(tiny.base(), asking.soft(tiny.base()))
    with pytest.raises(ConfigError, match=message):
        lm.generate_until(asking.requests("generate_until", ("Hm", {"until": ["\n"], **options})))


@pytest.mark.parametrize("seam", ["apart", "joined"])
def test_both_seams_give_the_whole_text_its_tokens(seam: Seam) -> None:
    lm = model(tiny.base(), asking.soft(tiny.base()), seam=seam)
    query = lm._query("Ends in a space ", "x")
    assert query.context + query.target == tuple(tiny.base().encode("Ends in a space x"))
    assert len(query.target) == {"apart": 1, "joined": 2}[seam]


def test_lm_evals_inner_form_is_answered_too() -> None:
    base = tiny.base()
    lm = model(base, asking.soft(base))
    outer = lm.loglikelihood(asking.requests("loglikelihood", ("Rates", " up")))
    inner = lm._loglikelihood_tokens([(("Rates", " up"), base.encode("Rates"), base.encode(" up"))])
    assert inner == outer


def test_results_are_handed_to_the_cache() -> None:
    seen = []

    class Hook:
        def add_partial(self, kind: str, request: tuple[Any, ...], answer: Any) -> None:
            seen.append((kind, request, answer))

    lm = model(tiny.base(), asking.soft(tiny.base()))
    lm.set_cache_hook(Hook())
    answers = lm.loglikelihood(asking.requests("loglikelihood", *PAIRS))
    lm.loglikelihood_rolling(asking.requests("loglikelihood_rolling", ("Hm",)))
    lm.generate_until(asking.requests("generate_until", ("Hm", {"until": ["\n"], "max_gen_toks": 3})))
    assert seen[: len(PAIRS)] == [
        ("loglikelihood", pair, answer) for pair, answer in zip(PAIRS, answers, strict=True)
    ]
    assert [kind for kind, _, _ in seen[len(PAIRS) :]] == ["loglikelihood_rolling", "generate_until"]


def test_chat_is_the_bases_own(monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny.base()
    lm = SoftpromptLM(base)
    said = [{"role": "user", "content": "Hm"}]
    with pytest.raises(BaseModelError, match="no chat template; leave apply_chat_template off"):
        lm.apply_chat_template(said)
    template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}[me]{% endif %}"
    )
    monkeypatch.setattr(base.tokenizer, "chat_template", template, raising=False)
    assert lm.apply_chat_template(said) == base.render_chat(said) == "[user]Hm[me]"
    begun = [*said, {"role": "assistant", "content": "So"}]
    assert lm.apply_chat_template(begun, add_generation_prompt=False) == "[user]Hm[assistant]So"


def test_wrong_subjects_and_arguments_are_refused() -> None:
    base, other = tiny.base(), tiny.base(seed=1)
    with pytest.raises(WrongBaseError):
        SoftpromptLM((base, other.prefill_text("Hm")))
    with pytest.raises(ConfigError, match="must be a Prompt, a Base or"):
        SoftpromptLM("smollm2-135m")  # type: ignore[arg-type]
    for options, message in (
        ({"seam": "glued"}, "seam must be one of apart, joined"),
        ({"batch_size": "many"}, "batch_size must be auto or at least 1"),
        ({"max_length": 513}, "from 1 to the 512 positions"),
    ):
        with pytest.raises(ConfigError, match=message):
            SoftpromptLM(base, **options)
    with pytest.raises(BaseModelError, match="leaves none for text"):
        model(base, asking.soft(base), max_length=4)
    with pytest.raises(DataError, match="has no tokens of its own"):
        SoftpromptLM(base).loglikelihood(asking.requests("loglikelihood", ("Hm", "")))
