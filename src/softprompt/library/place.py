"""Where a library's artifacts lie: a folder of this machine, or an object store (``bucket``).

A place knows names and files, and how one artifact takes another's place in one step; it does not know what
stands in the files. Names were checked before they come here, so none leads out.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Hashable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from softprompt.atomic import GONE, new_folder, plain_disk_errors, sweep
from softprompt.errors import ArtifactError, ResourceError
from softprompt.library.card import CARD_FILE, Card, read_card
from softprompt.library.peft_format import CONFIG_FILE, WEIGHTS_FILE

__all__ = ["Folder", "Place", "place_at"]

_MARKS = (CARD_FILE, CONFIG_FILE, WEIGHTS_FILE)
"""A folder with one of these is an artifact, or was meant to be one."""


class Place(Protocol):
    """What a library is kept in.

    Attributes:
        address: what a user calls it.
        path: the folder of this machine in which artifacts are read: its own, or that of copies.
    """

    address: str
    path: Path

    def exists(self) -> bool:
        """Whether it is there; it may still be empty."""

    def names(self) -> list[str]:
        """Every artifact, also the broken, in no order."""

    def foresee(self, names: Iterable[str]) -> None:
        """Told whose cards and stamps will be asked for next, which one question may answer together."""

    def taken(self, name: str) -> bool:
        """Whether anything lies under a name, be it no artifact."""

    def find(self, name: str) -> Path | None:
        """The folder of an artifact on this machine, whole; None if there is none."""

    def card(self, name: str) -> Card | None:
        """An artifact's card, without its weights; None if there is none."""

    def near(self, name: str) -> Path | None:
        """The folder of an artifact, if all of it is on this machine already."""

    def size(self, name: str) -> int | None:
        """Bytes of an artifact's files; None if there is none."""

    def stamp(self, name: str) -> Hashable | None:
        """What changes when an artifact is replaced; None if there is none. Quick for what is in use."""

    def put(self, name: str, *, replace: bool) -> AbstractContextManager[Path]:
        """A folder to fill; when the block ends without an error, it is the artifact, in one step."""

    def remove(self, name: str) -> bool:
        """Take an artifact away in one step; whether there was one."""

    def sweep(self) -> None:
        """Remove what writers that were killed have left."""


def place_at(address: str | os.PathLike[str]) -> Place:
    """The place of an address: a path, ``file://``, ``s3://``, ``gs://`` or ``az://``.

    Raises:
        ConfigError: an address of another kind.
        ResourceError: a package is missing that the address needs.
    """
    if isinstance(address, str) and "://" in address:
        if address.startswith("file://"):
            return Folder(address.removeprefix("file://"))
        from softprompt.library.bucket import ObjectStore

        return ObjectStore(address)
    return Folder(address)


class Folder:
    """A folder of this machine, or one that several share; it need not exist before the first is saved."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.address = str(self.path)

    def exists(self) -> bool:
        return self.path.is_dir()

    def names(self) -> list[str]:
        try:
            found = [entry.name for entry in os.scandir(self.path)]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise ResourceError(
                f"Cannot read the library {self.path}: {error.strerror}; check the path."
            ) from error
        return [name for name in found if name[0] != "." and _is_artifact(self.path / name)]

    def foresee(self, names: Iterable[str]) -> None:
        """Nothing: a look at the disk costs nothing."""

    def taken(self, name: str) -> bool:
        return (self.path / name).exists()

    def find(self, name: str) -> Path | None:
        path = self.path / name
        if not path.is_dir() or not _is_artifact(path):
            return None
        home = self.path.resolve()
        try:
            files = sorted(path.iterdir())
        except OSError as error:
            raise ResourceError(f"Cannot read {path}: {error.strerror}; check the permissions.") from error
        for part in (path, *files):
            if not part.resolve().is_relative_to(home):
                raise ArtifactError(
                    f"{part} is a link that leads out of the library; load its target by its own path."
                )
        return path

    near = find

    def card(self, name: str) -> Card | None:
        path = self.find(name)
        return None if path is None else read_card(path)

    def size(self, name: str) -> int | None:
        path = self.find(name)
        if path is None:
            return None
        return sum(file.stat().st_size for file in path.iterdir() if file.is_file())

    def stamp(self, name: str) -> Hashable | None:
        try:
            path = self.find(name)
            found = None if path is None else (path / CARD_FILE).stat()
        except (ArtifactError, ResourceError, OSError):
            return None
        return None if found is None else (found.st_mtime_ns, found.st_size, found.st_ino)

    def put(self, name: str, *, replace: bool) -> AbstractContextManager[Path]:
        path = self.path / name
        if replace and path.exists() and not _is_artifact(path):
            raise ArtifactError(f"{path} is no saved prompt, so it is not replaced; choose another name.")
        return new_folder(path, replace=replace)

    def remove(self, name: str) -> bool:
        path = self.find(name)
        if path is None:
            return False
        with plain_disk_errors(path):
            if path.is_symlink():
                path.unlink()
                return True
            aside = Path(tempfile.mkdtemp(dir=self.path, prefix=f".{name}{GONE}"))
            os.rename(path, aside / "old")
            shutil.rmtree(aside, ignore_errors=True)
        return True

    def sweep(self) -> None:
        sweep(self.path)


def _is_artifact(path: Path) -> bool:
    return any(os.path.lexists(path / file) for file in _MARKS)
