"""Whose faults are whose: what fails for one row, one listener or one model is noticed by nobody else."""

from __future__ import annotations

import dataclasses
import random
import re
from typing import Any

import pytest
import torch

import tiny
from generation.asking import alone, compare, soft, some_ids, steps, until_over, write
from softprompt.base.copies import shared_copy, twin
from softprompt.base.model import Base
from softprompt.errors import BaseModelError, WrongBaseError
from softprompt.generation.sampler import Sampling
from softprompt.generation.scheduler import Scheduler
from softprompt.serving.version import bare

IDS = some_ids(random.Random(0), 4)


def test_a_listener_that_fails_harms_nobody() -> None:
    own = Scheduler(tiny.base())
    version = bare(tiny.base())
    heard: list[Any] = []

    def bad(event: Any) -> None:
        heard.append(event)
        raise RuntimeError("nobody is there")

    own.submit(version.generate(IDS, Sampling(max_new_tokens=300, ignore_end=True)), bad)
    good = write(own, version, IDS, 12)
    until_over(own, good)
    assert good.tokens == alone(version, IDS, 12)
    assert len(heard) == 2, "its first token, and that it was called off"
    assert own.state().running == 0


def failing(base: Base) -> Base:
    """Another model over the same weights that fails in its last layer while ``model.broken`` is true."""
    model: Any = twin(base)
    model.broken = False

    def fail(*_: Any) -> None:
        if model.broken:
            raise RuntimeError("the device is gone")

    model.model.layers[-1].register_forward_pre_hook(fail)
    return dataclasses.replace(base, model=model, fingerprint=shared_copy(base).fingerprint)


def test_a_model_that_fails_ends_its_own_rows_only_and_may_come_back() -> None:
    own = Scheduler(tiny.base())
    version, other = bare(tiny.base()), bare(failing(tiny.base()))
    model: Any = other.model.model
    good, bad = write(own, version, IDS, 12), [write(own, other, IDS, 12) for _ in range(2)]
    steps(own, 3)
    model.broken = True
    own.step()
    assert [len(one.tokens) for one in (good, *bad)] == [4, 3, 3]
    for one in bad:
        assert isinstance(one.error, BaseModelError)
        assert re.fullmatch(r"The model failed at this request \(RuntimeError\); [^.]+\.", str(one.error))
        assert isinstance(one.error.__cause__, RuntimeError)
    model.broken = False
    again = write(own, other, IDS, 12)
    until_over(own, good, again)
    assert good.tokens == again.tokens == alone(version, IDS, 12)
    assert len(own._batch._pools) == 1, "the rows' places in a model that nobody asks are given back"


def test_the_base_itself_may_fail_once() -> None:
    base = dataclasses.replace(failing(tiny.base()), fingerprint=tiny.base().fingerprint)
    own, version = Scheduler(base), bare(base)
    model: Any = base.model
    lost = write(own, version, IDS, 12)
    steps(own, 2)
    model.broken = True
    own.step()
    model.broken = False
    assert isinstance(lost.error, BaseModelError)
    good = write(own, version, IDS, 12)
    until_over(own, good)
    assert good.tokens == alone(bare(tiny.base()), IDS, 12)


def test_a_row_whose_own_reckoning_fails_ends_alone() -> None:
    own = Scheduler(tiny.base())
    version = bare(tiny.base())
    beyond = compare(own, version, IDS, [(tiny.VOCABULARY + 5,)], False)
    good = write(own, version, IDS, 12)
    until_over(own, good, beyond)
    assert isinstance(beyond.error, BaseModelError)
    assert good.tokens == alone(version, IDS, 12)


def test_a_prefix_of_another_model_is_refused_before_it_joins() -> None:
    own = Scheduler(tiny.base())
    version = bare(tiny.base())
    wrong = dataclasses.replace(version, prefix=tiny.base(seed=1).prefill_text("a"))
    good = write(own, version, IDS, 3)
    with pytest.raises(WrongBaseError):
        write(own, wrong, IDS, 3)
    until_over(own, good)
    assert good.error is None


@pytest.mark.parametrize("whole", [True, False])
def test_a_comparison_behind_numbers_that_are_none_says_so(whole: bool) -> None:
    base = tiny.base()
    version = soft(base)
    nan = tuple(torch.full_like(layer, torch.nan) for layer in version.prefix.keys)
    broken = dataclasses.replace(version, prefix=dataclasses.replace(version.prefix, keys=nan, values=nan))
    own = Scheduler(tiny.base())
    bad = compare(own, broken, IDS, [(5, 6), (7, 8)], whole)
    good = compare(own, version, IDS, [(5, 6), (7, 8)], whole)
    until_over(own, bad, good)
    assert "no finite numbers" in str(bad.error)
    assert all(value < 0 for value in good.likelihoods)
