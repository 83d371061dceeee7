"""How the next token of one answer is chosen from its logits, and how likely the model held it.

It knows logits, token ids and what a client may ask for. It does not know models, tokenizers, text, or which
other answers are being written at the same time.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from softprompt.errors import BaseModelError, ConfigError

__all__ = ["MOST_LOGPROBS", "Sampler", "Sampling", "TokenChoice", "eligible", "row_seed", "token_choice"]

MOST_LOGPROBS = 100
"""The most alternatives that may be asked for of every token."""

_COLDEST = 1e-5
"""Below this temperature the likeliest token is taken, as in vLLM: draws would follow fp32's rounding."""

_RULED_OUT = 3e38
"""Taken off the logits of tokens that are not allowed."""

_PREFILTER = 1024
"""So many of the likeliest tokens nearly always hold ``top_p``; sorting all V takes ten times as long."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen and when an answer ends.

    Logits go through the penalties, ``logit_bias``, ``temperature``, ``top_k``, ``top_p`` and ``min_p``,
    in this order; each cut sees what the one before left. Presence and frequency mean what they mean in
    OpenAI's API and vLLM, everything else what it means in transformers.

    Attributes:
        max_new_tokens: longest answer, in tokens.
        min_new_tokens: before it has so many tokens, an answer gets neither the end token nor a stop token,
            and is not searched for stop strings.
        temperature: 0 takes the most likely token (the lowest id of several); higher draws more freely.
        top_k: draw among the k likeliest only; 0 for all.
        top_p: draw among the likeliest that together hold this much probability (Holtzman et al. 2020).
        min_p: draw among those at least this fraction as likely as the likeliest (Nguyen et al. 2024).
        repetition_penalty: positive logits of tokens in the text or the answer so far are divided by it,
            negative ones multiplied (Keskar et al. 2019); 1 for none.
        presence_penalty: taken off the logit of every token that is in the answer so far.
        frequency_penalty: taken off that logit once for each time the token is in the answer so far.
        logit_bias: added to the logits of single tokens; a mapping of token id to bias, kept as sorted pairs.
        seed: the draws of row i depend on ``(seed, i)`` alone.
        stop: an answer ends before the first of these strings, or at the special token that one of them is;
            one string will do, kept as a tuple.
        stop_tokens: an answer ends at any of these tokens, as at the end token; kept as a tuple.
        ignore_end: the end token does not end the answer.
        logprobs: report every token's log-probability and those of this many likeliest; None for neither.

    Raises:
        ConfigError: a value out of its range or of another type.
    """

    max_new_tokens: int = 64
    min_new_tokens: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | Sequence[tuple[int, float]] = ()
    seed: int = 0
    stop: str | Sequence[str] = ()
    stop_tokens: Sequence[int] = ()
    ignore_end: bool = False
    logprobs: int | None = None

    def __post_init__(self) -> None:
        for name in _NUMBERS:
            _check_number(name, getattr(self, name))
        if not isinstance(self.ignore_end, bool):
            raise _wrong("ignore_end", "true or false", self.ignore_end)
        # What holds several values is kept as tuples, so that equal settings are equal and hash alike.
        object.__setattr__(self, "stop", _strings(self.stop))
        object.__setattr__(self, "stop_tokens", _tokens(self.stop_tokens))
        object.__setattr__(self, "logit_bias", _biases(self.logit_bias))

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken, and nothing drawn."""
        return self.temperature < _COLDEST

    def check_tokens(self, words: int) -> None:
        """Raise ConfigError where ``logit_bias`` or ``stop_tokens`` names a token beyond this many words."""
        biased = [token for token, _ in cast(_Pairs, self.logit_bias)]
        for name, named in (("logit_bias", biased), ("stop_tokens", self.stop_tokens)):
            beyond = [token for token in named if token >= words]
            if beyond:
                raise ConfigError(
                    f"{name} names token {_shown(beyond[0])}, but the model has {words}, counted from 0."
                )


class TokenChoice(NamedTuple):
    """A token, and what the model's own distribution says of it.

    Attributes:
        id: the token.
        logprob: its natural log-probability before penalties, bias, temperature and cuts, ``-inf`` where the
            model rules it out; None if not asked for.
        top: the likeliest tokens with theirs, likeliest first, the lowest id first of equals.
    """

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Sampler:
    """The state of one row being answered: what it has said, and its own draws.

    A row's choices depend on its sampling, its text, its number and its logits, never on its neighbours.
    """

    def __init__(self, sampling: Sampling, prompt_ids: Iterable[int] = (), row: int = 0) -> None:
        """prompt_ids: the text's tokens, which count for ``repetition_penalty``; row: seeds the draws."""
        self._sampling = sampling
        self._generator = torch.Generator().manual_seed(row_seed(sampling.seed, row))
        self._history = _History()
        self._penalises = sampling.presence_penalty != 0 or sampling.frequency_penalty != 0
        if sampling.repetition_penalty != 1:
            self._penalises = True
            self._history.observe(prompt_ids)
        pairs = cast(_Pairs, sampling.logit_bias)
        self._biased = torch.tensor([token for token, _ in pairs], dtype=torch.long)
        self._bias = torch.tensor([bias for _, bias in pairs], dtype=torch.float32)

    def sample(
        self, logits: Tensor, barred: Collection[int] = (), allowed: Tensor | None = None
    ) -> TokenChoice:
        """Choose the next token from fp32 logits ``[V]``, which stay as they are, and remember it.

        ``barred`` tokens cannot be chosen, nor those that are not ``allowed`` (bool ``[V]``); what is told of
        likelihoods knows nothing of that.

        Logits on another device are copied to the CPU; copy those of a batch together, before.

        Raises:
            BaseModelError: the logits hold NaN or infinity, or rule every token out.
            ConfigError: ``logit_bias`` names a token beyond V.
        """
        raw = logits.detach().float().cpu()
        # numpy finds the first maximum ten times as fast as torch, and NaN counts as one for it too.
        likeliest = int(raw.numpy().argmax())
        _finite(raw[likeliest])
        adjusted = self.adjusted(raw)
        if allowed is not None and not (
            adjusted is raw and self._sampling.greedy and bool(allowed[likeliest])
        ):
            adjusted = adjusted + (allowed.float() - 1) * _RULED_OUT  # six times as fast as masked_fill
        if barred:
            adjusted = adjusted.index_fill(0, torch.tensor(sorted(barred)), -math.inf)
        if not self._sampling.greedy:
            token = _draw(*eligible(adjusted, self._sampling), self._generator)
        else:
            token = likeliest if adjusted is raw else int(adjusted.numpy().argmax())
        if self._penalises:
            self._history.append(token)
        count = self._sampling.logprobs
        return TokenChoice(token) if count is None else token_choice(raw, token, count)

    def adjusted(self, logits: Tensor) -> Tensor:
        """The logits ``[V]`` after penalties and bias: the same tensor where there are none, else a copy."""
        if not self._penalises and not len(self._biased):
            return logits
        logits = logits.clone()
        if self._penalises:
            _penalise(logits, self._history, self._sampling)
        if len(self._biased):
            if int(self._biased[-1]) >= len(logits):  # they are sorted
                self._sampling.check_tokens(len(logits))
            logits[self._biased] += self._bias
        return logits


def token_choice(logits: Tensor, token: int, count: int) -> TokenChoice:
    """What the distribution of fp32 logits ``[V]`` itself says of a token and of the ``count`` likeliest.

    Raises:
        BaseModelError: the logits hold NaN or infinity, or rule every token out.
    """
    logits = logits.detach().float().cpu()
    total = logits.logsumexp(0)
    _finite(total)
    best = _likeliest(logits, count)
    best = best[logits[best].sort(descending=True, stable=True).indices]
    top = tuple(zip(best.tolist(), (logits[best] - total).tolist(), strict=True))
    return TokenChoice(token, float(logits[token] - total), top)


def eligible(logits: Tensor, sampling: Sampling) -> tuple[Tensor | None, Tensor]:
    """What may be drawn from fp32 logits ``[V]`` after ``temperature``, ``top_k``, ``top_p`` and ``min_p``.

    Returns:
        ids ``[C]`` in ascending order, None for all V; and their weights ``[C]``: probabilities, but for a
        factor that makes the likeliest token's 1.
    """
    best = logits.amax()
    _finite(best)
    temperature = min(max(sampling.temperature, _COLDEST), 1e30)  # what fp32 can divide by
    weights = logits.sub(best).div_(temperature).exp_()
    ids: Tensor | None = None
    if 0 < sampling.top_k < len(logits):
        ids = _likeliest(logits, sampling.top_k)
        weights = weights[ids]
    if sampling.top_p < 1:
        kept = _nucleus(weights, sampling.top_p)
        ids, weights = kept if ids is None else ids[kept], weights[kept]
    if sampling.min_p > 0:
        kept = (weights >= sampling.min_p).nonzero()[:, 0]
        ids, weights = kept if ids is None else ids[kept], weights[kept]
    return ids, weights


def _nucleus(weights: Tensor, top_p: float) -> Tensor:
    """Where the largest of weights [C] are that together hold ``top_p`` of them, ascending."""
    total = float(weights.sum(dtype=torch.float64))
    ordered = _descending(weights, total, top_p)
    before = ordered.cumsum(0, dtype=torch.float64) - ordered
    count = int((before < top_p * total).sum())
    return _largest(weights, count, ordered[count - 1])


def _descending(weights: Tensor, total: float, top_p: float) -> Tensor:
    """The largest of weights [C], largest first, as many as hold ``top_p`` of the total and maybe more."""
    # C tokens below this weight hold less than may be left out: none is wanted. Half allows for rounding.
    some = weights[weights >= 0.5 * (1 - top_p) * total / len(weights)]
    if len(some) > _PREFILTER:
        few = some.topk(_PREFILTER).values
        if float(few.sum(dtype=torch.float64)) >= top_p * total:
            return few
    some.numpy().sort()  # in place, and four times as fast as torch, which sorts places along
    return some.flip(0)


def _likeliest(values: Tensor, count: int) -> Tensor:
    """Where the ``count`` largest of values [V] are, ascending."""
    if not 0 < count < len(values):
        return torch.arange(len(values) if count else 0)
    return _largest(values, count, values.topk(count, sorted=False).values.amin())


def _largest(values: Tensor, count: int, least: Tensor) -> Tensor:
    """Where the ``count`` largest of values [V] are, ascending, the smallest of them being ``least``.

    Of values equal to it the first are taken, whatever an algorithm that found it would have taken.
    """
    places = (values >= least).nonzero()[:, 0]
    surplus = len(places) - count
    if surplus > 0:
        last = (values[places] == least).nonzero()[-surplus:, 0]
        keep = torch.ones(len(places), dtype=torch.bool)
        keep[last] = False
        places = places[keep]
    return places


def _draw(ids: Tensor | None, weights: Tensor, generator: torch.Generator) -> int:
    """One of ids [C] (None: 0 to C - 1), with probabilities in proportion to weights [C].

    In the order of ids, not of weights: two near equals that change places by a rounding move no other draw.
    """
    held = weights.cumsum(0, dtype=torch.float64)
    total = float(held[-1])
    drawn = total * float(torch.rand((), dtype=torch.float64, generator=generator))
    drawn = min(
        drawn, math.nextafter(total, 0.0)
    )  # rounded up to the total it would be beyond the last token
    place = int(torch.searchsorted(held, drawn, right=True))
    return place if ids is None else int(ids[place])


def _finite(number: Tensor) -> None:
    if not math.isfinite(float(number)):
        raise BaseModelError(
            "The model gave no finite numbers for the next token; its weights or the prompt in front are "
            "damaged, or too large for its number type."
        )


def row_seed(seed: int, row: int) -> int:
    """What the draws of one of several rows of equal seed begin with."""
    return (seed * 1_000_003 + row) % (2**63)


class _History:
    """Which tokens a row holds and how often its answer said each, in tensors that grow by doubling."""

    def __init__(self) -> None:
        self._places: dict[int, int] = {}
        self._ids = torch.zeros(64, dtype=torch.long)
        self._counts = torch.zeros(64)

    def observe(self, tokens: Iterable[int]) -> None:
        """Tokens of the text: here, but never said."""
        for token in tokens:
            self._place(token)

    def append(self, token: int) -> None:
        place = self._place(token)  # first of all, as it may bring new tensors
        self._counts[place] += 1

    def among(self, words: int) -> tuple[Tensor, Tensor]:
        """Ids [D] below ``words`` and how often each was said, fp32 [D]; every id once."""
        ids, counts = self._ids[: len(self._places)], self._counts[: len(self._places)]
        if len(ids) and int(ids.amax()) >= words:  # an embedding may hold more words than the head
            return ids[ids < words], counts[ids < words]
        return ids, counts

    def _place(self, token: int) -> int:
        place = self._places.setdefault(token, len(self._places))
        if place == len(self._ids):
            self._ids = torch.cat([self._ids, torch.zeros_like(self._ids)])
            self._counts = torch.cat([self._counts, torch.zeros_like(self._counts)])
        self._ids[place] = token
        return place


def _penalise(logits: Tensor, history: _History, sampling: Sampling) -> None:
    """Lower logits [V] of what was said, in place."""
    ids, counts = history.among(len(logits))
    some, penalty = logits[ids], sampling.repetition_penalty
    some = torch.where(some < 0, some * penalty, some / penalty)
    logits[ids] = some - sampling.presence_penalty * (counts > 0) - sampling.frequency_penalty * counts


# -- what a client may ask for ---------------------------------------------------------------------------

_Pairs = tuple[tuple[int, float], ...]

_NUMBERS: dict[str, tuple[bool, float, float, str]] = {
    "max_new_tokens": (True, 1, math.inf, "a whole number of at least 1"),
    "min_new_tokens": (True, 0, math.inf, "a whole number of at least 0"),
    "temperature": (False, 0, 1e300, "a number of 0 or more"),
    "top_k": (True, 0, math.inf, "a whole number of 0 or more"),
    "top_p": (False, math.ulp(0.0), 1, "above 0 and at most 1"),
    "min_p": (False, 0, 1, "a number from 0 to 1"),
    "repetition_penalty": (False, 0.01, 100, "a number from 0.01 to 100"),
    "presence_penalty": (False, -2, 2, "a number from -2 to 2"),
    "frequency_penalty": (False, -2, 2, "a number from -2 to 2"),
    "seed": (True, -math.inf, math.inf, "a whole number"),
    "logprobs": (True, 0, MOST_LOGPROBS, f"a whole number from 0 to {MOST_LOGPROBS}, or none"),
}
"""Whether it must be whole, the least, the most, and all that in words."""


def _check_number(name: str, value: object) -> None:
    whole, least, most, wanted = _NUMBERS[name]
    if value is None and name == "logprobs":
        return
    good = _whole(value) if whole else _number(value)
    if not good or not least <= cast(float, value) <= most:  # NaN is between nothing
        raise _wrong(name, wanted, value)


def _strings(value: Any) -> tuple[str, ...]:
    several = (value,) if isinstance(value, str) else value
    if not _is_list(several) or not all(isinstance(text, str) and text for text in several):
        raise _wrong("stop", "a text or a list of texts, none of them empty", value)
    return tuple(several)


def _tokens(value: Any) -> tuple[int, ...]:
    if not _is_list(value) or not all(_whole(token) and token >= 0 for token in value):
        raise _wrong("stop_tokens", "a list of token ids, whole numbers of 0 or more", value)
    return tuple(value)


def _biases(value: Any) -> _Pairs:
    pairs = tuple(value.items()) if isinstance(value, Mapping) else value
    good = _is_list(pairs) and all(_is_list(pair) and len(pair) == 2 for pair in pairs)
    good = good and all(_whole(token) and token >= 0 for token, _ in pairs)
    good = good and all(_number(bias) and -100 <= bias <= 100 for _, bias in pairs)
    if not good or len({token for token, _ in pairs}) < len(pairs):
        raise _wrong("logit_bias", "a mapping of token ids to numbers from -100 to 100", value)
    return tuple(sorted((token, float(bias)) for token, bias in pairs))


def _is_list(value: object) -> bool:
    return isinstance(value, list | tuple)


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _wrong(name: str, wanted: str, value: object) -> ConfigError:
    return ConfigError(f"{name} must be {wanted}, got {_shown(value)}.")


def _shown(value: object, most: int = 60) -> str:
    """A client's value on one short line, whatever it is."""
    try:
        text = repr(value)
    except ValueError:  # Python writes out no whole number of thousands of digits
        text = "a number too long to write"
    return text if len(text) <= most else f"{text[:most]}..."
