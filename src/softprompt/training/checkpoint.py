"""A run's whole state in one file that is either the old one or the new one, never half of either.

It knows bytes and atomicity; it does not know what the tensors mean.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from softprompt.atomic import write_bytes
from softprompt.errors import TrainingError
from softprompt.team import Team

__all__ = ["Checkpoint"]


@dataclass(frozen=True)
class Checkpoint:
    """Where a run stands.

    Attributes:
        numbers: JSON values: step, best score, evaluations without gain, what the run was for.
        tensors: groups of tensors by name: the method now, the method at its best, the optimizer.
    """

    numbers: dict[str, Any]
    tensors: dict[str, dict[str, Tensor]]

    def save(self, path: Path) -> None:
        """Write atomically: a kill at any moment leaves the previous checkpoint whole."""
        flat = {
            f"{group}/{name}": tensor.detach().cpu().contiguous()
            for group, named in self.tensors.items()
            for name, tensor in named.items()
        }
        groups = json.dumps(sorted(self.tensors))
        write_bytes(path, save(flat, {"numbers": json.dumps(self.numbers), "groups": groups}))

    @classmethod
    def load(cls, path: Path) -> Checkpoint:
        """Read a checkpoint back.

        Raises:
            TrainingError: the file is not a whole checkpoint.
        """
        with _opened(path) as (file, about):
            tensors: dict[str, dict[str, Tensor]] = {g: {} for g in json.loads(about["groups"])}
            for key in file.keys():  # noqa: SIM118 - not a dict
                group, name = key.split("/", 1)
                tensors[group][name] = file.get_tensor(key)
            return cls(json.loads(about["numbers"]), tensors)

    @classmethod
    def of(cls, path: Path, identity: str, team: Team) -> Checkpoint | None:
        """What the leader of a team finds there, told to all of it; None if there is no such file.

        Raises:
            TrainingError: it is damaged, or of another run than that of this identity.
        """
        found = None
        if team.leads and path.exists():
            cls.refuse_another(path, identity)
            found = cls.load(path)
        about = team.told(None if found is None else [found.numbers, sorted(found.tensors)])
        if about is None:
            return None
        numbers, groups = about
        return cls(numbers, {g: team.handed(None if found is None else found.tensors[g]) for g in groups})

    @staticmethod
    def identity_of(path: Path) -> str:
        """The identity of the run it belongs to; no tensor is read. Errors as in ``load``."""
        with _opened(path) as (_, about):
            return str(json.loads(about["numbers"])["identity"])

    @classmethod
    def refuse_another(cls, path: Path, identity: str) -> None:
        """Say so if a checkpoint is not of the run of this identity.

        Raises:
            TrainingError: it belongs to another run, or is damaged.
        """
        if cls.identity_of(path) != identity:
            raise TrainingError(
                f"{path} belongs to a run with another configuration, data or base; "
                "give back the old settings, or start again without --resume."
            )


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, dict[str, str]]]:
    """The file and what stands in its header; whatever is wrong with it is said in one sentence."""
    try:
        with safe_open(path, "pt") as file:
            yield file, file.metadata() or {}
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise TrainingError(
            f"{path} is not a checkpoint that can be resumed ({error}); start again without --resume."
        ) from error
