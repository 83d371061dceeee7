"""What a job will need, brought together: sizes, memory by part, time, and whether it fits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from softprompt.config import Config, load, parse
from softprompt.errors import ConfigError
from softprompt.packages import require
from softprompt.planning.advice import Advice, advise, sketched
from softprompt.planning.artifact import artifact_size
from softprompt.planning.blueprint import Blueprint
from softprompt.planning.kernels import Kernels
from softprompt.planning.needs import Part, needs
from softprompt.planning.rehearsal import Rehearsal, rehearse
from softprompt.planning.several import Way, ways
from softprompt.planning.target import Target, aim
from softprompt.planning.timing import Timing, estimate, matrix_rate
from softprompt.planning.timing import measure as timed
from softprompt.planning.workload import Assumed

__all__ = ["Plan", "plan"]

TIGHT = 0.1
"""Less than this share of a device to spare is said to be tight."""


@dataclass(frozen=True)
class Plan:
    """What a job will need; memory in bytes.

    Attributes:
        base: what the user called it.
        method: the kind.
        parameters: numbers the base has.
        trained: numbers that train.
        parts: memory at the moment when most is held, by part.
        needs: their sum.
        dtype: the number format it computes in.
        device: what it was planned for.
        capacity: bytes the device holds.
        artifact: bytes of the weights that are kept.
        steps: all of them; None where it is not known how many rows there are.
        timing: seconds; None where they cannot be told.
        advice: changes that need less, where it does not fit or hardly.
        notes: plain sentences about what was assumed.
        ways: how the job can be spread over several such cards, where that was asked.
    """

    base: str
    method: str
    parameters: int
    trained: int
    parts: tuple[Part, ...]
    needs: int
    dtype: str
    device: str
    capacity: int
    artifact: int
    steps: int | None
    timing: Timing | None
    advice: tuple[Advice, ...]
    notes: tuple[str, ...]
    ways: tuple[Way, ...] = ()

    @property
    def margin(self) -> int:
        """Bytes to spare; below zero it does not fit."""
        return self.capacity - self.needs

    @property
    def fits(self) -> bool:
        return self.margin >= 0

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        about = asdict(self) | {"fits": self.fits, "margin": self.margin}
        if self.timing is not None:
            about["timing"]["total"] = self.timing.total
        return about


def plan(
    config: Config | Mapping[str, Any] | str | Path,
    *,
    measure: bool = True,
    device_memory: int | None = None,
    gpu: str | None = None,
    gpus: int = 1,
    tokens: int | None = None,
    rows: int | None = None,
    notify: Callable[[str], None] = lambda message: None,
) -> Plan:
    """Say what a job will need, without loading a weight or downloading anything to know its memory.

    Memory is counted, not guessed: the job's first steps are gone through by the real code over tensors
    without numbers (``planning.rehearsal``). What kernels take for themselves while they run is not in it.

    Args:
        config: a ``Config``, a mapping of settings, or the path of a TOML file. ``base.model`` may be
            ``shape:NAME``, such as ``shape:llama-7b``, where no file of the model is at hand.
        measure: whether to load the base, if it is here, and time a few steps; else, and where it is not
            here, time is estimated from the rate of matrix products, and ``False`` tells none.
        device_memory: bytes of a GPU to plan for that need not be in this machine; None for the device
            that ``base.device`` names.
        gpu: a card by name, such as ``"t4"`` (``planning.cards``), that need not be in this machine either.
        gpus: how many such cards there are; what each needs is told of every way to use them.
        tokens: what every row is taken to have, instead of reading the job's rows.
        rows: how many of these rows there are.
        notify: told in a sentence when something takes a while.

    Raises:
        ConfigError: a setting or the card's name is wrong, the method cannot hold the base, or rows are not
            on this machine.
        DataError: a source, template or label is wrong.
        BaseModelError: there is no description of the base on this machine.
        ResourceError: this machine has no such device.
    """
    wanted = load(config) if isinstance(config, str | Path) else parse(config)
    require(*wanted.method.needs)
    target = aim(wanted.base.device, device_memory, gpu)
    if gpus > 1 and target.kind != "cuda":
        raise ConfigError(
            "Several GPUs are planned for by their card or memory: give --gpu or --device-memory."
        )
    assumed = _assumed(wanted, tokens, rows)
    sketch = sketched(wanted, target)
    found = rehearse(wanted, sketch.base, target.kind, assumed)
    taken = needs(sketch, found, target)
    fits = taken.total <= target.capacity
    timing = _timing(wanted, sketch, found, target, assumed, notify) if measure and fits else None
    tight = taken.total > (1 - TIGHT) * target.capacity
    whole = found.trained >= sketch.parameters
    with Kernels(target.kind):
        artifact = artifact_size(found.work.method)
    steps = found.work.steps
    return Plan(
        base=wanted.base.model,
        method=wanted.method.kind,
        parameters=sketch.parameters,
        trained=found.trained,
        parts=taken.parts,
        needs=taken.total,
        dtype=str(sketch.base.dtype).removeprefix("torch."),
        device=target.name,
        capacity=target.capacity,
        artifact=artifact,
        steps=None if steps is None else steps.total if found.trained else 0,
        timing=timing,
        advice=advise(wanted, target, assumed, taken.total, whole) if tight else (),
        notes=(*_notes(sketch, found, target, timing), *target.notes(wanted.base.dtype)),
        ways=ways(wanted, sketch, taken, found.trained, target, assumed, gpus) if gpus > 1 else (),
    )


def _assumed(config: Config, tokens: int | None, rows: int | None) -> Assumed | None:
    """What stands for the job's rows, where it names none or others are asked for."""
    for name, value in (("tokens", tokens), ("rows", rows)):
        if value is not None and value < 2:
            raise ConfigError(f"A plan needs at least 2 {name}, not {value}.")
    if tokens is None and rows is None and config.data.train is not None:
        return None
    return Assumed(tokens, rows)


def _timing(
    config: Config,
    sketch: Blueprint,
    found: Rehearsal,
    target: Target,
    assumed: Assumed | None,
    notify: Callable[[str], None],
) -> Timing | None:
    """Measured where base, rows and device are here, else estimated where the device's rate is known."""
    if sketch.here and assumed is None and target.device is not None:
        return timed(config, notify)
    if found.work.steps is None:
        return None
    if target.card is not None:
        rate = target.card.rate(sketch.base.dtype)
        reading = (sketch.linear_bytes + sketch.other_bytes) / target.card.bandwidth
        return None if rate is None else estimate(config, found, rate, reading)
    if target.device is None:
        return None
    return estimate(config, found, matrix_rate(target.device, sketch.base.dtype))


def _notes(sketch: Blueprint, found: Rehearsal, target: Target, timing: Timing | None) -> tuple[str, ...]:
    notes = list(found.work.notes)
    if sketch.guessed_tokens and not notes:
        notes.append("The base's tokenizer is not here, so four letters are taken for a token.")
    if timing is not None and timing.how == "estimated":
        source = "the card's data sheet" if target.device is None else "matrix products alone"
        notes.append(f"Time is estimated from {source} and may be off by a factor of two.")
    elif target.device is None and found.work.steps is not None:
        notes.append("No such device is in this machine, so no time is told.")
    return tuple(notes)
