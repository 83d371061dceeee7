"""How much one key may ask at once and in a minute; knows keys by id and limit, nothing of requests.

A rate is a bucket that every request adds to and that empties evenly, a minute's requests a minute. So a
client may spend its minute in one burst and then goes on at the even rate: over m minutes it gets at most
(m + 1) times its limit. Tokens are added as they are read and written, and a request is let in while there
is room for one more: what it takes beyond that is waited for before the next. Limits are held in this
process: several servers behind one address grant them each.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Literal, Protocol

from softprompt.errors import ResourceError

__all__ = ["Limited", "Limiter", "Pass", "TooManyError"]

_MINUTE = 60.0
_ROUNDING = 1e-6
"""Of a request: who comes back after just the time we said is let in."""
_FEW = 1_024
"""Accounts that are kept without looking which of them are needed."""


class Limited(Protocol):
    """What has limits: a ``Key``."""

    @property
    def id(self) -> str: ...
    @property
    def requests_per_minute(self) -> int | None: ...
    @property
    def tokens_per_minute(self) -> int | None: ...
    @property
    def concurrent(self) -> int | None: ...


class TooManyError(ResourceError):
    """A key has reached a limit of its own.

    Attributes:
        limit: which one, by the name it has in the file of keys.
        retry_after: seconds after which to ask again; for "concurrent" a guess, since it is not known when a
            request ends.
    """

    def __init__(
        self,
        message: str,
        limit: Literal["requests_per_minute", "tokens_per_minute", "concurrent"],
        retry_after: float,
    ) -> None:
        super().__init__(message)
        self.limit = limit
        self.retry_after = retry_after


class _Bucket:
    """What was used of one rate."""

    __slots__ = ("at", "rate", "used")

    def __init__(self, now: float) -> None:
        self.used = 0.0
        self.at = now  # seconds, when that much was in it
        self.rate: int | None = None

    def drain(self, now: float, rate: int | None) -> None:
        """Bring it up to ``now`` under the limit ``rate``, which may be another than before."""
        gone = max(0.0, now - self.at) * (rate or 0) / _MINUTE
        unlimited = (
            rate is None or self.rate is None
        )  # what is asked without a limit is never held against it
        self.used = 0.0 if unlimited else max(0.0, self.used - gone)
        self.at, self.rate = now, rate

    def wait(self, most: float) -> float:
        """Seconds until no more than ``most`` is in it."""
        over = self.used - most
        return over * _MINUTE / self.rate if self.rate and over > _ROUNDING else 0.0


class _Account:
    """What one key has used; guarded by the limiter's lock."""

    __slots__ = ("inside", "requests", "tokens")

    def __init__(self, now: float) -> None:
        self.inside = 0  # requests under way
        self.requests, self.tokens = _Bucket(now), _Bucket(now)

    def idle(self, now: float) -> bool:
        """Whether a new account would be the same."""
        for bucket in (self.requests, self.tokens):
            bucket.drain(now, bucket.rate)
        return self.inside == 0 and self.requests.used == self.tokens.used == 0.0


class Pass:
    """Leave for one request; closing it, any number of times and in any thread, ends the request.

    Attributes:
        spend: counts tokens that were read or written for it.
    """

    def __init__(self, leave: Callable[[], None], spend: Callable[[int], None]) -> None:
        self._leave: Callable[[], None] | None = leave
        self.spend = spend
        self._lock = threading.Lock()

    def close(self) -> None:
        with self._lock:
            leave, self._leave = self._leave, None
        if leave is not None:
            leave()

    def __enter__(self) -> Pass:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Limiter:
    """Counts what every key uses; any thread may call, and no call waits for a request.

    Memory is bounded by the keys that asked within the last minute or have a request under way, whatever the
    number of keys that ever existed.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Start with nothing used.

        Args:
            clock: seconds that never go back.
        """
        self._clock = clock
        self._lock = threading.Lock()
        self._accounts: dict[str, _Account] = {}
        self._sweep_at = _FEW

    def enter(self, key: Limited) -> Pass:
        """Let one request of ``key`` in; a refused one costs nothing.

        Limits are read from ``key`` each time, so an edited file of keys takes effect with the next request.

        Raises:
            TooManyError: a limit is reached.
        """
        with self._lock:
            now = self._clock()
            account = self._accounts.get(key.id)
            if account is None:
                if len(self._accounts) >= self._sweep_at:
                    # Forget who would begin afresh anyway; the next sweep waits until the number has doubled.
                    self._accounts = {id: a for id, a in self._accounts.items() if not a.idle(now)}
                    self._sweep_at = max(_FEW, 2 * len(self._accounts))
                account = self._accounts[key.id] = _Account(now)
            account.requests.drain(now, key.requests_per_minute)
            account.tokens.drain(now, key.tokens_per_minute)
            _check(key, account)
            account.requests.used += 1.0
            account.inside += 1
        return Pass(lambda: self._leave(account), lambda tokens: self._spend(account, tokens))

    def _spend(self, account: _Account, tokens: int) -> None:
        with self._lock:
            account.tokens.drain(self._clock(), account.tokens.rate)
            account.tokens.used += tokens

    def _leave(self, account: _Account) -> None:
        with self._lock:
            account.inside -= 1


def _check(key: Limited, account: _Account) -> None:
    most, rate = key.concurrent, key.requests_per_minute
    if most is not None and account.inside >= most:
        raise TooManyError(
            f"This key may have {_requests(most)} under way at once; wait for one to end.", "concurrent", 1.0
        )
    if rate is not None and (wait := account.requests.wait(rate - 1.0)):
        raise TooManyError(
            f"This key may send {_requests(rate)} a minute; try again in {wait:.1f} s.",
            "requests_per_minute",
            wait,
        )
    tokens = key.tokens_per_minute
    if tokens is not None and (wait := account.tokens.wait(tokens - 1.0)):
        raise TooManyError(
            f"This key may have {tokens:,} tokens read and written a minute; try again in {wait:.1f} s.",
            "tokens_per_minute",
            wait,
        )


def _requests(count: int) -> str:
    return "1 request" if count == 1 else f"{count:,} requests"
