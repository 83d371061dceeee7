"""What was found out about a checkpoint by reading and trying it, kept until anything that led to it changes.

It knows files by name, size and times, and versions; it does not know what a finding means. What is kept is
an answer that took seconds: where it cannot be read, or is not of these very files, it is found out anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
import re
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from softprompt.atomic import write_bytes
from softprompt.errors import ResourceError
from softprompt.wheels import cache_root

__all__ = ["KnownBase", "Remembered"]

_PACKAGES = ("softprompt", "torch", "transformers", "tokenizers", "safetensors")
"""What takes part in reading a checkpoint."""

_SETTLED = 2.0
"""Seconds since the last change of a file: within a tick of its clock, a second change would not show."""


@dataclass(frozen=True)
class KnownBase:
    """How a checkpoint is called and read.

    Attributes:
        fingerprint: ``"sha256:..."``.
        layout: by name.
        attention: the attention function it is read with, by transformers' name.
    """

    fingerprint: str
    layout: str
    attention: str

    @classmethod
    def of_json(cls, value: object) -> KnownBase | None:
        """The finding written so; None for anything else."""
        if not isinstance(value, dict) or set(value) != {"fingerprint", "layout", "attention"}:
            return None
        if not all(isinstance(text, str) for text in value.values()):
            return None
        return cls(**value) if re.fullmatch("sha256:[0-9a-f]{64}", value["fingerprint"]) else None


class Remembered:
    """The one place for what is found out about the checkpoint in a folder; made before it is read.

    Args:
        folder: of the checkpoint.
        how: whatever else decides what is found, such as the number format and the device.
    """

    def __init__(self, folder: Path, *how: str) -> None:
        self._folder = folder.resolve()
        self._how = [*how, platform.machine(), torch.backends.cpu.get_cpu_capability()]
        self._how += [version(package) for package in _PACKAGES]
        name = hashlib.sha256(json.dumps([str(self._folder), *how]).encode()).hexdigest()[:32]
        self.path = cache_root() / "found" / f"{name}.json"
        self._began, self._stamp = time.time(), self._look()

    def recall(self) -> KnownBase | None:
        """What was found; None where nothing was, or where files or versions are others, or changed since."""
        try:
            kept = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        if not isinstance(kept, dict) or not kept.get("stamp") == self._stamp == self._look():
            return None
        return KnownBase.of_json(kept.get("finding"))

    def keep(self, finding: KnownBase) -> None:
        """Keep what was found, unless files changed meanwhile, or so shortly before that it might not show.

        Where nothing can be written, nothing is kept.
        """
        newest = max((path.stat().st_ctime for path in self._files()), default=self._began)
        if self._look() != self._stamp or self._began - newest < _SETTLED:
            return
        kept = {"stamp": self._stamp, "finding": asdict(finding)}
        with contextlib.suppress(ResourceError):
            write_bytes(self.path, json.dumps(kept, indent=1).encode())

    def _look(self) -> str:
        """A digest of all that leads to a finding."""
        own = Path(__file__).parent.parent
        code = [path for room in ("base", "checkpoints") for path in (own / room).glob("*.py")]
        facts = sorted((str(path), *_times(path)) for path in (*code, *self._files()))
        return hashlib.sha256(json.dumps([facts, self._how]).encode()).hexdigest()

    def _files(self) -> list[Path]:
        return [path for path in self._folder.iterdir() if path.is_file()]


def _times(path: Path) -> tuple[int, int, int, int]:
    """What changes when a file is written, replaced or moved into place."""
    about = path.stat()
    return about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino
