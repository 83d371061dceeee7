"""A request under way: which tokens to read next, and what to make of what the model then expects.

It knows tokens, logits and events; it does not know other requests, slots or passes. A sequence may lose its
slot at any time (``restart``): it is then read again from its first token, and goes on where it was.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple, Protocol

from torch import Tensor

from softprompt.errors import BaseModelError
from softprompt.generation.detokenizer import Detokenizer, StopRules
from softprompt.generation.likelihood import candidate_likelihoods
from softprompt.generation.request import (
    CandidateLogprobs,
    Event,
    Finished,
    FinishReason,
    GenerateRequest,
    ModelRequest,
    PromptLogprobs,
    ScoreRequest,
    TextDelta,
    TokenScore,
)
from softprompt.generation.sampler import Sampler, TokenChoice, token_choice

__all__ = ["BEFORE", "AnswerState", "Reading", "SequenceState", "sequence_for"]

BEFORE = -1
"""The place before a row's first token: what its prefix alone expects."""


class Reading(NamedTuple):
    """Tokens to read next.

    Attributes:
        ids: may be none.
        wanted: after which of them, in order, the logits are wanted; ``BEFORE`` stands for none of them.
        goes_on: whether the row goes on behind them, or from where it was.
    """

    ids: Sequence[int]
    wanted: Sequence[int]
    goes_on: bool = True


class SequenceState(Protocol):
    """A request under way."""

    @property
    def unread(self) -> int:
        """How many tokens wait to be read."""
        ...

    @property
    def need(self) -> int:
        """How many positions its tokens take once those that wait are read, its prefix included."""
        ...

    def next(self, most: int) -> Reading:
        """The next tokens to read, about ``most`` of them."""
        ...

    def take(self, logits: Tensor) -> list[Event]:
        """What follows from the logits ``[len(wanted), V]`` of the last reading.

        Raises:
            BaseModelError: they are no numbers one could choose by.
        """
        ...

    def restart(self) -> None:
        """Its keys and values are gone; what it has told stays told."""
        ...


def sequence_for(request: ModelRequest) -> SequenceState:
    """The request under way, nothing of it done yet."""
    return _Generating(request) if isinstance(request, GenerateRequest) else _Scoring(request)


class AnswerState:
    """An answer under way, whoever chooses its tokens: their text as it may be shown, and when it ends."""

    def __init__(self, request: GenerateRequest) -> None:
        self._request = request
        self._detokenizer = Detokenizer(request.model, request.sampling.stop)
        self._rules = StopRules(request.model, request.sampling, request.longest)
        self._written = 0

    @property
    def ends(self) -> set[int]:
        """Tokens at which it ends."""
        return self._rules.ends

    @property
    def barred(self) -> Collection[int]:
        """Tokens that may not come next."""
        return self._rules.barred(self._written)

    def add(self, choice: TokenChoice, complete: bool = False) -> list[Event]:
        """What one more token tells; ``Finished`` is the last of it where the answer ends there.

        ``complete`` says that nothing may follow the token.
        """
        if self._rules.ends_before(choice.id):
            return [TextDelta(self._detokenizer.finish(), ()), self.finished("stop")]
        self._written += 1
        text = self._detokenizer.push(choice.id, search=self._rules.searches(self._written))
        token = self.score(choice)
        reason = "stop" if complete else self._rules.ends_after(self._written, self._detokenizer)
        if reason is None:
            return [TextDelta(text, (token,))]
        return [TextDelta(text + self._detokenizer.finish(), (token,)), self.finished(reason)]

    def score(self, choice: TokenChoice) -> TokenScore:
        """A token with its text."""
        return TokenScore(choice.id, self._detokenizer.piece(choice.id), choice.logprob, choice.top)

    def finished(self, reason: FinishReason) -> Finished:
        """The last event of an answer of so many tokens."""
        request = self._request
        return Finished(reason, len(request.ids), request.prefix.length, self._written)


class _Generating:
    """Read a text, then choose a token, read it, and so on.

    Place i is where token i is expected: after i tokens, place 0 by what the prefix alone expects. Logits are
    wanted at every place from ``_next`` on, which is that of the token to be chosen, but for an echo.
    """

    def __init__(self, request: GenerateRequest) -> None:
        self._request = request
        self._ids = list(request.ids)
        self._read = 0
        self._sampler = Sampler(request.sampling, request.ids, request.row)
        self._answer = AnswerState(request)
        self._grammar = None if request.grammar is None else request.grammar.state()
        self._echoed: list[TokenScore] | None = [] if request.echo else None
        self._next = len(self._ids)
        if self._echoed is not None:
            self._next = 0
            if request.ids and request.prefix.hidden is None:  # nothing expects the first token
                self._echoed.append(self._answer.score(TokenChoice(request.ids[0])))
                self._next = 1

    @property
    def unread(self) -> int:
        return len(self._ids) - self._read

    @property
    def need(self) -> int:
        return self._request.prefix.length + len(self._ids)

    def next(self, most: int) -> Reading:
        start, ids = self._read, self._ids[self._read : self._read + most]
        self._read += len(ids)
        opening = [BEFORE] if start == self._next == 0 else []
        return Reading(ids, [*opening, *range(max(0, self._next - start - 1), len(ids))])

    def restart(self) -> None:
        self._read = 0

    def take(self, logits: Tensor) -> list[Event]:
        if not len(logits):
            return []
        self._next += len(logits)
        events: list[Event] = []
        if self._echoed is not None:
            self._echo(self._echoed, logits)
            if self._next <= len(self._ids):
                return []
            events.append(PromptLogprobs(tuple(self._echoed)))
            self._echoed = None
        if self._request.longest == 0:
            return [*events, self._answer.finished("length")]
        if self._grammar is None:
            choice = self._sampler.sample(logits[-1], self._answer.barred)
        else:
            choice = self._sampler.sample(logits[-1], allowed=self._grammar.allowed(len(logits[-1])))
            self._grammar.take(choice.id)
        self._ids.append(choice.id)
        complete = self._grammar is not None and self._grammar.complete
        return [*events, *self._answer.add(choice, complete)]

    def _echo(self, echoed: list[TokenScore], logits: Tensor) -> None:
        """Note how likely the text's own tokens were; logits[i] expects the i-th token not yet noted."""
        count = self._request.sampling.logprobs or 0
        for token, row in zip(self._ids[len(echoed) :], logits, strict=False):
            echoed.append(self._answer.score(token_choice(row, token, count)))


class _Scoring:
    """Read a text, then every candidate behind it, one after another in its place."""

    def __init__(self, request: ScoreRequest) -> None:
        self._request = request
        self._read = 0
        self._found: list[float] = []
        self._rest = [n for n, ids in enumerate(request.candidates) if request.whole and len(ids) > 1]

    @property
    def unread(self) -> int:
        if self._read < len(self._request.ids):
            return len(self._request.ids) - self._read
        return len(self._request.candidates[self._rest[0]]) - 1 if self._found else 0

    @property
    def need(self) -> int:
        return self._request.positions

    def next(self, most: int) -> Reading:
        ids = self._request.ids
        if self._read == len(ids) and self._found:
            candidate = self._request.candidates[self._rest[0]][:-1]
            return Reading(candidate, range(len(candidate)), goes_on=False)
        part = ids[self._read : self._read + most]
        self._read += len(part)
        wanted = self._read == len(ids) and not self._found
        return Reading(part, [len(part) - 1 if part else BEFORE] if wanted else [])

    def restart(self) -> None:
        self._read = 0

    def take(self, logits: Tensor) -> list[Event]:
        if not len(logits):
            return []
        candidates = self._request.candidates
        if not self._found:
            self._found = self._logprobs(logits, [[(0, ids[0])] for ids in candidates])
        else:
            number = self._rest.pop(0)
            (more,) = self._logprobs(logits, [list(enumerate(candidates[number][1:]))])
            self._found[number] += more
        if self._rest:
            return []
        finished = Finished("stop", len(self._request.ids), self._request.prefix.length, 0)
        return [CandidateLogprobs(tuple(self._found)), finished]

    def _logprobs(self, logits: Tensor, expected: Sequence[Sequence[tuple[int, int]]]) -> list[float]:
        found = [likelihood.logprob for likelihood in candidate_likelihoods(logits, expected)]
        if any(value != value for value in found):
            raise BaseModelError(
                "The model gave no finite numbers for this text; its weights or the prompt in front are "
                "damaged, or too large for its number type."
            )
        return found
