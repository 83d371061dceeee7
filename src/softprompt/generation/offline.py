"""A list of texts answered, or scored, in the caller's thread, by a scheduler of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from softprompt.base.kv_pool import slot_bytes
from softprompt.errors import BaseModelError
from softprompt.generation.request import Event, Finished, GenerateRequest, TextDelta
from softprompt.generation.scheduler import KV_MEMORY, Scheduler

__all__ = ["generate"]


def generate(
    requests: Sequence[GenerateRequest],
    *,
    rows: int = 32,
    on_event: Callable[[int, Event], None] = lambda number, event: None,
    on_done: Callable[[int], object] = lambda count: None,
) -> list[str]:
    """Write every answer, ``rows`` of them at a time; who has finished makes room for the next.

    Args:
        requests: of any models; a longer text first is read first.
        rows: most answers under way at once.
        on_event: called with the number of a request and its events as they come.
        on_done: called with how many more are done.

    Raises:
        WrongBaseError: a prefix of another base.
        BaseModelError: a text longer than the model's positions, or with nothing to go on from; before any is
            answered.
    """
    for number, request in enumerate(requests):
        try:
            request.check()
        except BaseModelError as error:
            if len(requests) == 1:
                raise
            raise BaseModelError(f"Text {number + 1}: {error}") from error
    if not requests:
        return []
    texts = [list[str]() for _ in requests]

    def tell(number: int, event: Event) -> None:
        if isinstance(event, TextDelta):
            texts[number].append(event.text)
        on_event(number, event)
        if isinstance(event, Finished):
            on_done(1)

    least = max(2 * slot_bytes(request.prefix, request.positions) for request in requests)
    scheduler = Scheduler(requests[0].model, rows=rows, kv_memory=max(KV_MEMORY, least))
    scheduler.run_all(requests, tell)
    return ["".join(pieces) for pieces in texts]
