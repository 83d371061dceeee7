"""Whether what a job learns can be read by its model, saved and read again, tried before its first step.

It knows the library's formats through one payload; it does not know which method made it.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor

from softprompt.atomic import plain_disk_errors
from softprompt.base.copies import Change
from softprompt.errors import ArtifactError, BaseModelError, ConfigError
from softprompt.library.formats import payload, read
from softprompt.methods.method import Method
from softprompt.prefix import Front, Prefix
from softprompt.training.job import Job

__all__ = ["refuse_unsaveable"]


def refuse_unsaveable(job: Job) -> None:
    """Save what a job begins with as its end will, read it again and compare.

    A change as large as the base is its weights by their names, which transformers' own format holds; it is
    not copied for this.

    Raises:
        ArtifactError: what is learnt cannot be kept in any format.
        ConfigError: what is read is not what was saved, or cannot be read at all.
        ResourceError: the disk refuses.
    """
    method, base = job.method, job.base
    front, change = method.front(), method.change()
    with torch.no_grad():
        _refuse_unreadable(method, front)
    saved = payload(method.base, front, change)
    if saved.numbers >= sum(parameter.numel() for parameter in base.model.parameters()):
        return
    try:
        # The operating system's folder for such files may be memory, or another disk than the library's.
        with plain_disk_errors(Path(tempfile.gettempdir())), tempfile.TemporaryDirectory() as folder:
            sha256 = saved.write(Path(folder), base.name, job.config.base.revision)
            met = read(Path(folder), sha256).payload.meet(base)
        fault = _difference(_tensors(front, change, base.dtype), _tensors(met.front, met.change, base.dtype))
    except (ArtifactError, BaseModelError) as error:
        fault = str(error).rstrip(".").partition(";")[0]
    if fault:
        raise ConfigError(
            f"What {job.config.method.kind} learns on {base.name} could not be read again once saved, so it "
            f"is not begun ({fault}); choose other method.targets or another method.kind."
        )


def _refuse_unreadable(method: Method, front: Front) -> None:
    """Some models look a second embedding up by the word that a vector is, which a learnt one is not."""
    if not (isinstance(front, Tensor) and front.requires_grad):
        return
    try:
        method.base.prefill(front + 0.1 * front.std())
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        said = str(error).partition("\n")[0][:120]
        raise ConfigError(
            f"{method.base.name} reads no vectors but those of its words ({said}); learn LoRA on it instead."
        ) from error


def _tensors(front: Front, change: Change | None, dtype: torch.dtype) -> dict[str, Tensor]:
    """All that is kept, by name; keys and values in the number format they are read in."""
    named = {"front": front} if isinstance(front, Tensor) else _sides(front, dtype)
    return named | (dict(change.tensors) if change is not None else {})


def _sides(prefix: Prefix, dtype: torch.dtype) -> dict[str, Tensor]:
    sides = {"keys": prefix.keys, "values": prefix.values}
    pairs = {f"{name} of layer {n}": t.to(dtype) for name, side in sides.items() for n, t in enumerate(side)}
    return pairs | {f"{kind} state {n} of layer {layer}": t for (kind, layer, n), t in prefix.states.items()}


def _difference(saved: dict[str, Tensor], found: dict[str, Tensor]) -> str:
    """What first differs, in words; empty where nothing does."""
    for name in sorted(saved.keys() | found.keys()):
        here, there = saved.get(name), found.get(name)
        if here is None or there is None:
            return f"{name} is {'lost' if there is None else 'added'}"
        if not torch.equal(here.detach().cpu().float(), there.detach().cpu().float()):
            return f"{name} is not what it was"
    return ""
