"""Rows make room and take turns: who was set aside goes on as if undisturbed, nobody small waits long."""

from __future__ import annotations

import itertools
import random
import threading
import time
from typing import Any

import pytest

import tiny
from generation.asking import Asked, compare, soft, some_ids, steps, until_over, write
from softprompt.base.kv_pool import slot_bytes
from softprompt.errors import ConfigError
from softprompt.generation import batch as module
from softprompt.generation import scheduler as scheduler_module
from softprompt.generation.request import PromptLogprobs
from softprompt.generation.sampler import Sampling
from softprompt.generation.scheduler import Scheduler
from softprompt.serving.version import bare

IDS = some_ids(random.Random(0), 4)


@pytest.fixture
def displaced(monkeypatch: pytest.MonkeyPatch) -> list[module.Row]:
    """Every row that was set aside, each time."""
    found: list[module.Row] = []
    wait_again = Scheduler._wait_again

    def noted(self: Scheduler, row: module.Row) -> None:
        found.append(row)
        wait_again(self, row)

    monkeypatch.setattr(Scheduler, "_wait_again", noted)
    return found


def undisturbed(*asked: Asked) -> list[Asked]:
    """The same requests with memory for all."""
    own = Scheduler(asked[0].request.model)
    found = [Asked(own, one.request) for one in asked]
    until_over(own, *found)
    return found


@pytest.mark.parametrize("architecture", [*tiny.ARCHITECTURES, "lfm2", "mamba2"])
def test_rows_that_made_room_go_on_to_the_very_tokens_of_undisturbed_ones(
    architecture: str, displaced: list[module.Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Greedy and drawn, with log-probabilities; nothing is told twice."""
    base, draw = tiny.base(architecture), random.Random(1)
    monkeypatch.setattr(module, "_HEADROOM", 1)
    own, versions = Scheduler(base, room=400, rows=6, chunk=16), [bare(base), soft(base)]
    ways: list[dict[str, Any]] = [{"logprobs": 2}, {"temperature": 1.2, "seed": 7, "top_p": 0.9}, {}]
    asked = []
    for number in range(6):
        ids, tokens = some_ids(draw, draw.randint(2, 40)), draw.randint(60, 110)
        asked.append(write(own, versions[number % 2], ids, tokens, row=number, **ways[number % 3]))
    until_over(own, *asked)
    assert len(displaced) >= 3, "memory was never short"
    for one, wanted in zip(asked, undisturbed(*asked), strict=True):
        assert one.error is None
        assert one.tokens == wanted.tokens
        assert one.text == wanted.text
        for mine, theirs in zip(one.said, wanted.said, strict=True):
            assert mine.logprob == pytest.approx(theirs.logprob, abs=1e-4)
    assert own.state().positions_used == 0


def test_an_echo_under_way_is_told_once_though_its_row_makes_room(
    displaced: list[module.Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny.base()
    monkeypatch.setattr(module, "_HEADROOM", 1)
    own, version = Scheduler(base, room=510, chunk=8), bare(base)
    older = write(own, version, IDS, 250)
    steps(own, 118)  # six more, and it must move
    ids = some_ids(random.Random(2), 100)
    how = Sampling(logprobs=1, max_new_tokens=60, ignore_end=True)
    echo = Asked(own, version.generate(ids, how, echo=True))
    until_over(own, older, echo)
    assert [row.request for row in displaced][:1] == [echo.request]
    (wanted,) = undisturbed(echo)
    assert [token.id for token in echo.heard] == list(ids)
    assert echo.tokens == wanted.tokens
    assert sum(isinstance(event, PromptLogprobs) for event in echo.events) == 1
    for mine, theirs in zip(echo.heard[1:], wanted.heard[1:], strict=True):
        assert mine.logprob == pytest.approx(theirs.logprob, abs=1e-4)


@pytest.mark.parametrize("architecture", [*tiny.ARCHITECTURES, "lfm2"])
def test_a_row_that_grows_from_slot_to_slot_writes_what_it_would_have_in_one(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny.base(architecture)
    version, own = soft(base), Scheduler(base)
    wanted = [write(own, version, some_ids(random.Random(n), 5 + n), 300) for n in range(3)]
    monkeypatch.setattr(module, "_HEADROOM", 500)  # all they will ever need, from the start
    until_over(own, *wanted)
    monkeypatch.setattr(module, "_HEADROOM", 1)
    own = Scheduler(base)
    found = [Asked(own, one.request) for one in wanted]
    steps(own, 2)
    capacities = {row.slot.capacity for row in own._batch.rows if row.slot is not None}
    until_over(own, *found)
    assert capacities == {64}, "they did not grow"
    assert [one.tokens for one in found] == [one.tokens for one in wanted]


def test_a_request_takes_the_memory_it_fills_not_what_it_might() -> None:
    own, version = Scheduler(tiny.base()), bare(tiny.base())
    asked = [write(own, version, IDS, 500) for _ in range(4)]
    steps(own, 3)
    each = slot_bytes(version.prefix, 1)
    assert own._batch.memory_taken == 4 * 256 * each
    for one in asked:
        one.handle.cancel()
    steps(own, 1)


def test_memory_stays_within_its_bound_whoever_comes() -> None:
    base, draw = tiny.base(), random.Random(5)
    each = slot_bytes(bare(base).prefix, 1)
    own = Scheduler(base, kv_memory=1200 * each, rows=8, chunk=32)
    asked = list[Asked]()
    for _ in range(24):
        ids = some_ids(draw, draw.randint(1, 90))
        if draw.random() < 0.4:
            asked.append(compare(own, soft(base), ids, [(5, 6), (7, 8, 9)], True))
        else:
            asked.append(write(own, bare(base), ids, draw.randint(1, 200)))
    for _ in range(4000):
        assert own._batch.memory_taken <= 1200 * each
        if all(one.over for one in asked):
            break
        own.step()
    assert all(one.error is None for one in asked)


def test_memory_that_holds_no_row_is_refused() -> None:
    with pytest.raises(ConfigError, match="kv_memory holds 63 positions, but one row takes 64 at least"):
        Scheduler(tiny.base(), kv_memory=slot_bytes(bare(tiny.base()).prefix, 63))


# -- bounded waits ---------------------------------------------------------------------------------


def test_a_score_waits_for_no_writer_though_all_rows_and_all_memory_are_taken() -> None:
    base = tiny.base()
    own = Scheduler(base, rows=4, room=1100)
    long = [write(own, bare(base), IDS, 500) for _ in range(12)]
    steps(own, 300)
    for _ in range(5):
        first = compare(own, soft(base), IDS, [(5, 6), (7, 8)], False)
        steps(own, 2)
        assert first.over, "it is read in the first step, or the next"
        assert first.error is None
    whole = compare(own, soft(base), IDS, [(5, 6), (7, 8), (9,)], True)
    steps(own, 4)
    assert whole.over, "one step for the text, one for each longer candidate, one skipped at most"
    assert not any(one.over for one in long)


def test_writers_skip_one_step_at_most_for_those_who_score() -> None:
    base = tiny.base()
    own = Scheduler(base, rows=4)
    writer = write(own, bare(base), IDS, 400)
    steps(own, 2)
    told = []
    for number in range(40):
        compare(own, soft(base), some_ids(random.Random(number), 9), [(5,), (7,)], False)
        own.step()
        told.append(len(writer.tokens))
    gains = [after - before for before, after in itertools.pairwise(told)]
    assert set(gains) == {0, 1}
    assert (0, 0) not in set(itertools.pairwise(gains))


def test_who_wants_to_write_waits_no_longer_than_one_turn_of_those_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_SHORTEST_TURN", 20)
    monkeypatch.setattr(module, "_LONGEST_TURN", 40)
    base = tiny.base()
    own = Scheduler(base, rows=2)
    asked = [write(own, bare(base), some_ids(random.Random(n), 4), 300) for n in range(6)]
    short = write(own, bare(base), IDS, 3)
    steps(own, 2 * (20 + 10) + 40 + 10)
    assert short.over, "three pairs stand before it, with turns of 20 to 40 steps"
    assert not any(one.over for one in asked)
    until_over(own, *asked)
    assert [one.tokens for one in asked] == [one.tokens for one in undisturbed(*asked)]


def test_a_short_text_does_not_wait_behind_a_long_one() -> None:
    base = tiny.base()
    own = Scheduler(base, chunk=8)
    write(own, bare(base), IDS, 300)
    steps(own, 2)
    long = write(own, bare(base), some_ids(random.Random(1), 400), 5)
    steps(own, 1)
    short = write(own, bare(base), some_ids(random.Random(2), 8), 5)
    steps(own, 2)
    assert short.tokens, "half of what is read in a step is for those with least to read"
    steps(own, 90)
    assert long.tokens, "and half for who came first"


def test_steps_are_kept_short_while_scores_are_asked_for_and_everybody_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = tiny.base()
    own = Scheduler(base, rows=16)
    writers = [write(own, bare(base), IDS, 400) for _ in range(16)]
    steps(own, 2)
    # As if every step lasted too long, whatever this machine's clock says of it.
    monkeypatch.setattr(own._beside, "tokens", lambda asked: 4)
    before = [len(one.tokens) for one in writers]
    for number in range(32):
        compare(own, soft(base), some_ids(random.Random(number), 9), [(5,), (7,)], False)
        own.step()
    gains = [len(one.tokens) - count for one, count in zip(writers, before, strict=True)]
    assert min(gains) >= 1, "16 steps for at least two rows each"
    assert max(gains) - min(gains) <= 2, "in turns"


# -- memory given back -----------------------------------------------------------------------------


def test_an_engine_without_work_keeps_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler_module, "_IDLE", 0.05)
    own = Scheduler(tiny.base())
    thread = threading.Thread(target=own.run, daemon=True)
    thread.start()
    write(own, bare(tiny.base()), IDS, 300).wait()
    assert own._batch.memory_taken > 0
    deadline = time.monotonic() + 10
    while own._batch.memory_taken and time.monotonic() < deadline:
        time.sleep(0.01)
    assert own._batch.memory_taken == 0
    assert write(own, bare(tiny.base()), IDS, 3).wait().error is None
    own.close()
    thread.join(10)


def test_a_busy_engine_gives_back_what_only_its_past_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler_module, "_IDLE", 0.0)
    base = tiny.base()
    own = Scheduler(base)
    many = [write(own, bare(base), IDS, 300) for _ in range(20)]
    steps(own, 140)
    taken = own._batch.memory_taken
    for one in many[1:]:
        one.handle.cancel()
    steps(own, 2)
    assert own._batch.memory_taken <= taken / 10
    until_over(own, many[0])
    assert many[0].tokens == undisturbed(many[0])[0].tokens


# -- the queue -------------------------------------------------------------------------------------


def test_a_blocked_caller_goes_on_when_all_that_waits_is_called_off() -> None:
    base = tiny.base()
    own = Scheduler(base, rows=1, queue=2)
    busy = write(own, bare(base), IDS, 400)
    own.step()
    waiting = [write(own, bare(base), IDS, 2) for _ in range(2)]
    entered = threading.Event()

    def submit() -> None:
        own.submit(waiting[0].request, lambda event: None, block=True)
        entered.set()

    thread = threading.Thread(target=submit, daemon=True)
    thread.start()
    assert not entered.wait(0.1)
    for one in waiting:
        one.handle.cancel()
    own.step()  # none of them joins: the row is taken
    assert entered.wait(10), "the queue is empty, but nobody told the caller"
    assert not busy.over


def test_rows_that_were_set_aside_take_no_place_in_the_queue(
    displaced: list[module.Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny.base()
    monkeypatch.setattr(module, "_HEADROOM", 1)
    own = Scheduler(base, rows=8, room=700, queue=1)
    asked = []
    for _ in range(4):
        asked.append(write(own, bare(base), IDS, 200))
        own.step()
    for _ in range(140):
        own.step()
        if displaced:
            break
    assert displaced
    write(own, bare(base), IDS, 2)
