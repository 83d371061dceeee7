"""Where a prefix starts when it is shorter than its text: what rows look at, the beginning, the end."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tiny
from softprompt.base.looking import most_attended
from softprompt.base.matching import Matching
from softprompt.base.packing import TokenRow
from softprompt.config import PrefixTuningConfig
from softprompt.errors import BaseModelError, ConfigError, DataError
from softprompt.methods.attended import attention_to
from softprompt.methods.build import Material, build_method
from softprompt.prefix import Front, Prefix

TEXT = "abcdefghijklmnop"
ROWS = [TokenRow((20, 21, 22)), TokenRow((30, 31, 32, 33, 34), 3)]


def start(
    keep: str,
    positions: int = 4,
    saved: Front | None = None,
    architecture: str = "llama",
    notes: list[str] | None = None,
    **more: Any,
) -> Prefix:
    base = tiny.base(architecture)
    material = Material(
        lambda k: "",
        lambda name: saved if saved is not None else base.embed([1]),
        looks=lambda prefix: attention_to(base, prefix, ROWS),
        matched=lambda prefix, count: Matching(base, prefix, ROWS).to(count),
        note=([] if notes is None else notes).append,
    )
    config = PrefixTuningConfig.model_validate({"front": TEXT, "positions": positions, "keep": keep} | more)
    front = build_method(config, base, material).front()
    assert isinstance(front, Prefix)
    return front.detached()


def test_the_most_attended_are_kept_the_first_among_them() -> None:
    base = tiny.base()
    whole = base.prefill_text(TEXT)
    looks = attention_to(base, whole, ROWS)
    assert looks.shape == (3, len(TEXT))
    assert bool((looks.sum(1) < len(ROWS) + 1e-9).all())
    for layer, chosen in enumerate(most_attended(looks, 4).tolist()):
        assert chosen == sorted(chosen)
        assert chosen[0] == 0
        left = [float(looks[layer, p]) for p in range(1, len(TEXT)) if p not in chosen]
        assert max(left) <= min(float(looks[layer, p]) for p in chosen[1:])
        values = start("attended").values[layer]
        torch.testing.assert_close(values, whole.values[layer][:, chosen])


def test_matched_positions_have_values_of_their_own() -> None:
    notes: list[str] = []
    base = tiny.base()
    wanted = Matching(base, base.prefill_text(TEXT), ROWS).to(4)
    assert start("matched", notes=notes).digest == wanted.digest
    assert not notes


def test_where_attention_is_hidden_from_us_what_is_looked_at_starts_as_it_is() -> None:
    notes: list[str] = []
    base = tiny.base("bloom")
    with pytest.raises(BaseModelError):
        Matching(base, base.prefill_text(TEXT), ROWS)
    found = start("matched", architecture="bloom", notes=notes)
    assert found.digest == start("attended", architecture="bloom").digest
    assert notes == [
        "tiny-bloom-0 does not hand out its attention. "
        "So the positions that rows look at most start as they are."
    ]


def test_the_first_are_the_text_cut_there() -> None:
    wanted = tiny.base().prefill_text(TEXT[:4])
    for ours, theirs in zip(start("first").keys, wanted.keys, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_a_saved_prefix_is_a_start_whole_or_in_part() -> None:
    saved = tiny.base().prefill_text(TEXT)
    more: dict[str, Any] = {"init": "artifact", "init_artifact": "it"}
    assert start("last", len(TEXT), saved, **more).digest == saved.detached().digest
    part = start("last", 4, saved, **more)
    for ours, theirs in zip(part.values, saved.values, strict=True):
        assert torch.equal(ours, theirs[:, [0, 13, 14, 15]])
    with pytest.raises(ConfigError, match="ask for 16 or fewer"):
        start("last", 17, saved, **more)


def test_without_rows_nobody_looks() -> None:
    base = tiny.base()
    with pytest.raises(DataError, match="no rows"):
        attention_to(base, base.prefill_text(TEXT), [])
    config = PrefixTuningConfig(front=TEXT, positions=4, keep="attended")
    with pytest.raises(ConfigError, match="needs rows"):
        build_method(config, base, Material(lambda k: "", lambda name: torch.empty(0)))


def test_settings_that_are_off_change_no_digest() -> None:
    assert not {"keep", "init_artifact"} & PrefixTuningConfig().model_dump().keys()
    assert PrefixTuningConfig(keep="first").model_dump()["keep"] == "first"
    with pytest.raises(ValueError, match="required and missing"):
        PrefixTuningConfig(init="artifact")
