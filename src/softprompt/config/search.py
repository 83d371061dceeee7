"""The settings of ``[search]``: what to try and on which seeds; it does not know what a setting does."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import Field, field_validator

from softprompt.config.method import MethodConfig
from softprompt.config.section import Section
from softprompt.config.train import TrainConfig
from softprompt.config_io import BrokenRuleError, nearest, shown

__all__ = ["MOST", "SearchConfig"]

MOST = 64
"""Candidates of one search, and seeds; more is a sweep over machines, not a run."""

_SHARED = ("method.kind", "train.select", "train.evaluate_every", "train.threads")
"""What has to be the same for candidates to be compared after the same validation."""


class SearchConfig(Section):
    """Settings to choose among on validation, and the seeds to learn the chosen ones on."""

    grid: dict[str, list[Any]] = Field(default_factory=dict)
    """Values to try, a list for each setting of method or train; every combination is a candidate."""
    halving: int = Field(default=2, ge=1)
    """After each validation one candidate in so many is kept, until one is left; 1 keeps all to the end."""
    seeds: list[int] | None = None
    """The seeds to learn on; the choice is made on the first. None means the seed of the run."""

    @field_validator("grid", mode="before")
    @classmethod
    def _flatten(cls, grid: Any) -> Any:
        """Both ``"train.epochs" = [1, 2]`` and ``train.epochs = [1, 2]``, which TOML nests."""
        if not isinstance(grid, Mapping):
            raise BrokenRuleError(
                f"expected lists by setting, such as train.learning_rate = [0.01, 0.03], got {shown(grid)}"
            )
        return {name: _values(name, found) for name, found in _leaves(grid)}

    @field_validator("grid")
    @classmethod
    def _tries_settings(cls, grid: dict[str, list[Any]]) -> dict[str, list[Any]]:
        for name in grid:
            if name in _SHARED:
                raise BrokenRuleError("this is the same for all candidates; set it outside the grid", at=name)
            if name.partition(".")[0] not in ("method", "train"):
                near = nearest(name, _known())
                hint = f"; did you mean {near}?" if near else ", such as train.learning_rate"
                raise BrokenRuleError(f"expected a setting of method or train{hint}", at=name)
        count = math.prod(map(len, grid.values()))
        if count > MOST:
            raise BrokenRuleError(f"this makes {count:,} candidates, more than {MOST}; try fewer values")
        return grid

    @field_validator("seeds", mode="before")
    @classmethod
    def _are_seeds(cls, seeds: Any) -> Any:
        if seeds is None:
            return None
        listed = isinstance(seeds, list | tuple) and 0 < len(seeds) <= MOST
        if not listed or any(type(s) is not int or not 0 <= s < 2**32 for s in seeds):
            raise BrokenRuleError(
                f"expected 1 to {MOST} whole numbers, such as [0, 1, 2], got {shown(seeds)}"
            )
        if len(set(seeds)) < len(seeds):
            raise BrokenRuleError(f"expected different seeds, got {shown(seeds)}")
        return list(seeds)

    def combinations(self) -> Iterator[dict[str, Any]]:
        """Every combination of the grid, by dotted name; one that changes nothing if the grid is empty."""
        for values in itertools.product(*self.grid.values()):
            yield dict(zip(self.grid, values, strict=True))


def _leaves(grid: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in grid.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _values(name: str, found: Any) -> list[Any]:
    if not isinstance(found, list | tuple) or not found:
        raise BrokenRuleError(f"expected a list of values to try, got {shown(found)}", at=name)
    for place, value in enumerate(found):
        if value in found[:place]:
            raise BrokenRuleError(f"{shown(value)} stands there twice", at=name)
    return list(found)


def _known() -> list[str]:
    kinds = get_args(get_args(MethodConfig)[0])
    methods = [f"method.{name}" for kind in kinds for name in kind.model_fields]
    return [*(f"train.{name}" for name in TrainConfig.model_fields), *methods]
