"""The engine's heart, step by step: who is read when, who waits, and whose faults are whose."""

from __future__ import annotations

import random
import re
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

import tiny
from generation.asking import Asked, alone, compare, soft, some_ids, steps, until_over, write
from library import samples
from softprompt.errors import BaseModelError, CancelledJobError, QueueFullError
from softprompt.generation.request import Finished, RequestFailed
from softprompt.generation.sampler import Sampling
from softprompt.generation.scheduler import Scheduler
from softprompt.serving.version import Version, bare

IDS = some_ids(random.Random(0), 4)


def core(**options: Any) -> Scheduler:
    return Scheduler(tiny.base(), **options)


# -- turns -----------------------------------------------------------------------------------------


def test_writers_step_while_a_long_text_is_read() -> None:
    own = core(chunk=5)
    version = bare(tiny.base())
    writer = write(own, version, IDS, 100)
    steps(own, 3)
    long = write(own, version, some_ids(random.Random(1), 60), 5)
    for passed in range(1, 12):
        own.step()
        assert len(writer.tokens) == 3 + passed
        assert not long.events
    own.step()
    assert len(long.tokens) == 1, "60 tokens in chunks of 5 take 12 steps"


def test_a_step_reads_no_more_than_a_chunk_beside_one_token_a_writer() -> None:
    own = core(chunk=8)
    version = bare(tiny.base())
    writers = [write(own, version, IDS, 200) for _ in range(3)]
    while not all(one.events for one in writers):
        own.step()
    texts = [write(own, version, some_ids(random.Random(n), 20), 100) for n in range(4)]
    used, most = own.state().positions_used, 0
    for _ in range(9):  # the first two texts are done after 5 steps, and all 80 tokens after 10
        writing = len(writers) + sum(bool(one.events) for one in texts)
        own.step()
        now = own.state().positions_used
        most = max(most, now - used - writing)
        used = now
    assert most == 8


def test_two_chunks_are_read_at_once_while_nobody_writes() -> None:
    own = core(chunk=7)
    version = bare(tiny.base())
    long = write(own, version, some_ids(random.Random(1), 30), 5)
    seen = []
    while not long.events:
        own.step()
        seen.append(own.state().positions_used - version.prefix.length)
    assert seen == [14, 28, 30]


def test_texts_are_read_in_the_order_they_came() -> None:
    own = core(chunk=4)
    version = bare(tiny.base())
    asked = [write(own, version, some_ids(random.Random(n), 12), 3) for n in range(5)]
    begun: list[int] = []
    for _ in range(40):
        own.step()
        begun += [n for n, one in enumerate(asked) if one.events and n not in begun]
    assert begun == [0, 1, 2, 3, 4]


def test_who_came_first_joins_first_even_if_a_shorter_one_would_fit() -> None:
    own = core(room=700)
    version = bare(tiny.base())
    first = write(own, version, IDS, 240)  # 256 positions
    own.step()
    second, third, short = (write(own, version, IDS, tokens) for tokens in (240, 240, 2))
    steps(own, 20)
    assert (len(first.tokens), len(second.tokens)) == (21, 20)
    assert not third.events
    assert not short.events, "one that needs less room does not overtake"
    until_over(own, first, second, short, third)
    assert short.tokens == alone(version, IDS, 2)


def test_rows_beyond_the_most_wait() -> None:
    own = core(rows=2)
    asked = [write(own, bare(tiny.base()), IDS, 3) for _ in range(5)]
    own.step()
    state = own.state()
    assert (state.running, state.waiting, state.steps, state.step_began) == (2, 3, 1, None)
    assert state.positions_used == 2 * len(IDS)
    until_over(own, *asked)
    state = own.state()
    assert (state.running, state.waiting, state.positions_used) == (0, 0, 0)


# -- what is taken on ------------------------------------------------------------------------------


def test_a_full_queue_says_so() -> None:
    own = core(rows=1, queue=2)
    version = bare(tiny.base())
    asked = [write(own, version, IDS, 2) for _ in range(3)]  # one finds a place, two wait
    with pytest.raises(QueueFullError, match="As many requests wait as may"):
        write(own, version, IDS, 2)
    until_over(own, asked[0])
    asked.append(write(own, version, IDS, 2))
    until_over(own, *asked)


def test_a_patient_caller_waits_for_a_place() -> None:
    own = core(rows=1, queue=1)
    version = bare(tiny.base())
    first = write(own, version, IDS, 2)
    ended = threading.Event()
    job = version.generate(IDS, Sampling(max_new_tokens=2, ignore_end=True))

    def submit() -> None:
        own.submit(job, lambda event: ended.set() if isinstance(event, Finished) else None, block=True)

    thread = threading.Thread(target=submit)
    thread.start()
    thread.join(0.1)
    assert thread.is_alive()
    until_over(own, first)
    thread.join(10)
    assert not thread.is_alive()
    steps(own, 3)
    assert ended.is_set()


def test_a_patient_caller_is_told_when_the_engine_closes() -> None:
    """Else it would wait for an answer that nobody computes any more."""
    own = core(rows=1, queue=1)
    version = bare(tiny.base())
    first = write(own, version, IDS, 2)
    told: list[Exception] = []

    def submit() -> None:
        try:
            own.submit(first.request, lambda event: None, block=True)
        except QueueFullError as error:
            told.append(error)

    thread = threading.Thread(target=submit)
    thread.start()
    thread.join(0.1)
    assert thread.is_alive()
    with own._changed:  # it closes and the queue empties before the caller has a look
        own.close()
        until_over(own, first)
    thread.join(10)
    assert "shutting down" in str(told[0])


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (
            lambda own, version: write(own, version, (5,) * 500, 20),
            ("524 positions", "holds 512", "4 of the prompt"),
        ),
        (lambda own, version: write(own, version, (5,) * 90, 50), ("144 positions", "keeps 256", "shorten")),
        (lambda own, version: compare(own, version, (5,) * 120, [(5,), (6,) * 9], True), ("133", "256")),
        (lambda own, version: write(own, bare(tiny.base()), (), 3), ("no text to go on from",)),
    ],
)
def test_what_cannot_be_answered_is_refused_in_one_sentence(
    ask: Callable[[Scheduler, Version], Asked], words: tuple[str, ...]
) -> None:
    own = core(room=256)
    with pytest.raises(BaseModelError) as refused:
        ask(own, soft(tiny.base()))
    said = str(refused.value)
    assert all(word in said for word in words), said
    assert re.fullmatch(r"[^.]+\.", said)
    assert own.state().waiting == 0


def test_an_empty_text_goes_on_from_a_front_that_expects_something() -> None:
    version = soft(tiny.base())
    own = core()
    one, compared = write(own, version, (), 4), compare(own, version, (), [(5,), (6, 7)], True)
    until_over(own, one, compared)
    model, front = tiny.model("llama"), samples.soft(tiny.base(), 3, 4)[None]
    with torch.no_grad():
        logits = model(inputs_embeds=front).logits[0, -1]
    assert one.tokens[0] == int(logits.argmax())
    assert compared.likelihoods[0] == pytest.approx(float(logits.log_softmax(0)[5]), abs=1e-4)


# -- the end ---------------------------------------------------------------------------------------


def running(own: Scheduler) -> threading.Thread:
    thread = threading.Thread(target=own.run, daemon=True)
    thread.start()
    return thread


def test_closing_finishes_what_was_taken_on_and_takes_no_more() -> None:
    own = core(rows=2)
    version = bare(tiny.base())
    asked = [write(own, version, IDS, 9) for _ in range(6)]
    own.close()
    with pytest.raises(QueueFullError, match="shutting down"):
        write(own, version, IDS, 2)
    thread = running(own)
    thread.join(30)
    assert not thread.is_alive()
    assert [one.tokens for one in asked] == [alone(version, IDS, 9)] * 6


def test_an_engine_without_work_sleeps_until_there_is_some_and_ends_when_closed() -> None:
    own = core()
    thread = running(own)
    version = bare(tiny.base())
    assert write(own, version, IDS, 3).wait().error is None
    count = own.state().steps
    assert write(own, version, IDS, 3).wait().error is None
    assert own.state().steps - count <= 4, "it has stepped without work"
    own.close()
    thread.join(10)
    assert not thread.is_alive()


def test_what_is_abandoned_is_told_so() -> None:
    own = core(rows=1)
    version = bare(tiny.base())
    asked = [write(own, version, IDS, 300) for _ in range(3)]
    steps(own, 2)
    own.close()
    own.abandon()
    thread = running(own)
    thread.join(10)
    assert not thread.is_alive()
    assert all(isinstance(one.error, CancelledJobError) for one in asked)
    assert own.state().positions_used == 0


def test_a_row_called_off_leaves_before_the_next_step() -> None:
    own = core()
    version = bare(tiny.base())
    gone, stays = write(own, version, IDS, 300), write(own, version, IDS, 12)
    steps(own, 3)
    gone.handle.cancel()
    gone.handle.cancel()
    own.step()
    assert isinstance(gone.error, CancelledJobError)
    assert len(gone.tokens) == 3
    assert own.state().running == 1
    until_over(own, stays)
    assert stays.tokens == alone(version, IDS, 12)
    assert sum(isinstance(event, RequestFailed) for event in gone.events) == 1


def test_one_called_off_while_it_waits_gives_its_place_in_the_queue_back_at_once() -> None:
    own = core(rows=1, queue=2)
    version = bare(tiny.base())
    busy = write(own, version, IDS, 300)
    own.step()
    waiting = [write(own, version, IDS, 2) for _ in range(2)]
    waiting[1].handle.cancel()
    own.step()
    assert isinstance(waiting[1].error, CancelledJobError)
    assert not waiting[0].events
    assert not busy.over
    late = write(own, version, IDS, 2)
    busy.handle.cancel()
    until_over(own, late, waiting[0])
    assert late.tokens == waiting[0].tokens == alone(version, IDS, 2)


def test_every_cancelled_job_has_an_error_of_its_own() -> None:
    """One object raised again and again would keep the frames of all who raised it."""
    own = core()
    asked = [write(own, bare(tiny.base()), IDS, 300) for _ in range(2)]
    own.step()
    own.abandon()
    own.step()
    assert asked[0].error is not asked[1].error


def test_its_state_can_be_asked_at_any_time() -> None:
    own = core(rows=8)
    stop, seen = threading.Event(), list[int]()

    def watch() -> None:
        while not stop.is_set():
            seen.append(own.state().positions_used)
            time.sleep(0)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        draw = random.Random(4)
        asked = [write(own, bare(tiny.base()), IDS, draw.choice((2, 70, 140))) for _ in range(8)]
        until_over(own, *asked)
    finally:
        stop.set()
        thread.join()
    assert max(seen) > 0
