"""A library on an object store, through fsspec: S3, Google Cloud Storage, Azure and what speaks like them.

An object store replaces one object in one step and knows no folders. So an artifact is one small object, its
pointer, and files that never change once they are written:

    ROOT/NAME.json                  the pointer: the card, and name, size and hash of every file
    ROOT/.files/NAME/DIGEST/FILE    the files of the artifact whose pointer has this digest

A writer puts the files, then the pointer, then removes what the old pointer named. A reader takes the pointer
and holds every file against its hash; a file that is gone means that the pointer was replaced, and it begins
again. What was brought is kept on this machine by its digest, so it is brought once.
"""

from __future__ import annotations

import hashlib
import tempfile
import threading
from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from time import monotonic
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from softprompt.atomic import new_folder, plain_disk_errors, sweep
from softprompt.errors import ArtifactError, ConfigError, ResourceError, SoftpromptError
from softprompt.library.card import CARD_FILE, Card, card_of
from softprompt.packages import Need, require
from softprompt.wheels import cache_root

__all__ = ["ObjectStore"]

_NEEDS: dict[str, Need] = {
    "s3": "a library on S3",
    "gs": "a library on Google's store",
    "az": "a library on Azure's store",
}
_OPTIONS: dict[str, dict[str, Any]] = {
    "s3": {"config_kwargs": {"connect_timeout": 5, "read_timeout": 30, "retries": {"max_attempts": 2}}}
}
_FRESH = 2.0
"""Seconds for which a pointer is taken for what it was."""
_ROUNDS = 5
_LIMIT = 8 * 2**20
"""The largest pointer that is read."""
_POINTER, _FILES = ".json", ".files"


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class _Pointer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    card: str
    """The file softprompt.json; it may be empty where there is none."""
    files: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$")], _File] = Field(
        max_length=256
    )

    @cached_property
    def digest(self) -> str:
        """A name for what the files hold."""
        said = "\n".join(f"{file.sha256} {name}" for name, file in sorted(self.files.items()))
        return hashlib.sha256(said.encode()).hexdigest()


class _GoneError(Exception):
    """A file is not there that a pointer names; no fault of this machine's disk."""


@dataclass(frozen=True)
class _KnownName:
    """What was told of a name, and when."""

    pointer: _Pointer | SoftpromptError | None
    at: float


class ObjectStore:
    """An address such as ``s3://bucket/prompts``.

    Args:
        address: of the library.
        copies: the folder of this machine for what was brought; may be removed at any time.
        fresh: seconds for which a name that is in use is not asked for again.
    """

    def __init__(self, address: str, copies: Path | None = None, *, fresh: float = _FRESH) -> None:
        scheme, _, root = address.partition("://")
        if scheme not in (*_NEEDS, "memory") or not root.strip("/"):
            raise ConfigError(
                f"{address} is no address of a library; give a folder, or s3://BUCKET/PATH, "
                "gs://BUCKET/PATH, az://CONTAINER/PATH or file:///PATH."
            )
        if scheme in _NEEDS:
            require(_NEEDS[scheme], otherwise="use a folder")
        import fsspec

        self.address = address.rstrip("/")
        self.path = (
            copies or cache_root() / "libraries" / hashlib.sha256(self.address.encode()).hexdigest()[:16]
        )
        self._fresh = fresh
        self._root = root.strip("/")
        options = {} if scheme == "memory" else {"use_listings_cache": False, **_OPTIONS.get(scheme, {})}
        self._fs: Any = fsspec.filesystem(scheme, **options)
        self._known: dict[str, _KnownName] = {}
        self._lock = threading.Lock()
        self._due: set[str] = set()  # names to be asked for again, by one thread

    # -- reading -----------------------------------------------------------------------------------

    def exists(self) -> bool:
        with self._plainly():
            return bool(self._fs.exists(self._root) or self._fs.exists(PurePosixPath(self._root).parts[0]))

    def names(self) -> list[str]:
        try:
            with self._plainly():
                found = self._fs.ls(self._root, detail=False)
        except FileNotFoundError:
            found = []
        files = (PurePosixPath(path).name for path in found)
        names = [name.removesuffix(_POINTER) for name in files if name.endswith(_POINTER) and name[0] != "."]
        for gone in self._known.keys() - set(names):
            self._learn(gone, None)
        return names

    def foresee(self, names: Iterable[str]) -> None:
        self._ask([name for name in names if self._recent(name) is None])

    def taken(self, name: str) -> bool:
        return self._now(name) is not None

    def find(self, name: str) -> Path | None:
        for _ in range(_ROUNDS):
            pointer = self._now(name)
            if pointer is None:
                return None
            path = self._copy(name, pointer)
            if path.is_dir():
                return path
            try:
                self._bring(name, pointer, path)
            except _GoneError:  # replaced meanwhile
                self._forget(name)
                continue
            return path
        raise ArtifactError(
            f"{self.address}/{name} is not whole: files are missing that its pointer names; save it again."
        )

    def near(self, name: str) -> Path | None:
        pointer = self._now(name)
        path = None if pointer is None else self._copy(name, pointer)
        return path if path is not None and path.is_dir() else None

    def card(self, name: str) -> Card | None:
        pointer = self._now(name)
        return (
            None if pointer is None else card_of(pointer.card.encode(), f"{self.address}/{name}/{CARD_FILE}")
        )

    def size(self, name: str) -> int | None:
        pointer = self._now(name)
        return None if pointer is None else sum(file.bytes for file in pointer.files.values())

    def stamp(self, name: str) -> Hashable | None:
        """Of what was found before, what is known is told at once and asked for again in the background."""
        known = self._known.get(name)
        if known is None or known.pointer is None:
            with suppress(SoftpromptError):
                pointer = self._now(name)
                return None if pointer is None else pointer.digest
            return None
        if monotonic() - known.at > self._fresh:
            self._ask_later(name)
        return known.pointer.digest if isinstance(known.pointer, _Pointer) else "malformed"

    # -- writing -----------------------------------------------------------------------------------

    @contextmanager
    def put(self, name: str, *, replace: bool) -> Iterator[Path]:
        old = self._look(name)
        if old is not None and not replace:
            raise ResourceError(
                f"{self.address}/{name} exists already; choose another name or allow overwriting."
            )
        with plain_disk_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            made = tempfile.TemporaryDirectory(dir=self.path, prefix=".new.", ignore_cleanup_errors=True)
        with made as folder:
            staging = Path(folder) / name
            staging.mkdir()
            yield staging
            pointer = _described(staging)
            self._publish(name, staging, pointer, create=old is None and not replace)
            copy = self._copy(name, pointer)
            if not copy.exists():
                with plain_disk_errors(copy):
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    staging.rename(copy)
        self._learn(name, pointer)
        if isinstance(old, _Pointer) and old.digest != pointer.digest:
            self._remove_files(name, old)

    def remove(self, name: str) -> bool:
        old = self._look(name)
        if old is None:
            return False
        with suppress(FileNotFoundError), self._plainly("write to"):
            self._fs.rm_file(self._pointer_at(name))
        self._learn(name, None)
        if isinstance(old, _Pointer):
            self._remove_files(name, old)
        return True

    def sweep(self) -> None:
        """On this machine; in the store it is in nobody's way, and may be a writer's that is at work."""
        sweep(self.path)

    def _publish(self, name: str, folder: Path, pointer: _Pointer, *, create: bool) -> None:
        """The files first: before the pointer names them, nobody looks for them."""
        try:
            with self._plainly("write to"):
                for file in pointer.files:
                    self._fs.put_file(str(folder / file), self._file_at(name, pointer, file))
                said = pointer.model_dump_json().encode()
                self._fs.pipe_file(self._pointer_at(name), said, mode="create" if create else "overwrite")
        except FileExistsError:
            raise ResourceError(f"{self.address}/{name} was saved by another just now.") from None
        except FileNotFoundError:
            raise ResourceError(
                f"Cannot write to {self.address}: there is no such bucket; make it."
            ) from None

    def _remove_files(self, name: str, pointer: _Pointer) -> None:
        for file in pointer.files:
            with suppress(FileNotFoundError, ResourceError), self._plainly():  # what stays is in nobody's way
                self._fs.rm_file(self._file_at(name, pointer, file))

    # -- pointers ----------------------------------------------------------------------------------

    def _now(self, name: str) -> _Pointer | None:
        """The pointer of a name; what is known will do where the store cannot be reached."""
        known = self._recent(name)
        if known is None:
            before = self._known.get(name)
            try:
                self._ask([name])
            except ResourceError:
                if before is None or not isinstance(before.pointer, _Pointer):
                    raise
            known = self._known[name]
        if isinstance(known.pointer, SoftpromptError):
            raise known.pointer
        return known.pointer

    def _look(self, name: str) -> _Pointer | SoftpromptError | None:
        """The pointer of a name as it is at this moment, be it broken."""
        self._ask([name])
        return self._known[name].pointer

    def _recent(self, name: str) -> _KnownName | None:
        known = self._known.get(name)
        return known if known is not None and monotonic() - known.at <= self._fresh else None

    def _ask(self, names: Sequence[str]) -> None:
        """Ask for pointers, all at once, and remember what was told."""
        if not names:
            return
        paths = [self._pointer_at(name) for name in names]
        with self._plainly():
            told = self._fs.cat_ranges(paths, [0] * len(paths), [_LIMIT + 1] * len(paths), on_error="return")
            for one in told:
                if isinstance(one, Exception) and not isinstance(one, FileNotFoundError):
                    raise one
        for name, one in zip(names, told, strict=True):
            self._learn(name, None if isinstance(one, FileNotFoundError) else self._parsed(name, one))

    def _ask_later(self, name: str) -> None:
        with self._lock:
            begin = not self._due
            self._due.add(name)
        if begin:
            threading.Thread(target=self._catch_up, name="softprompt-library", daemon=True).start()

    def _catch_up(self) -> None:
        """Ask again for what is due; a store that cannot be reached leaves what is known as it is."""
        while True:
            with self._lock:
                due = sorted(self._due)
            try:
                self._ask(due)
            except ResourceError:
                for name in due:
                    self._learn(name, self._known[name].pointer)
            with self._lock:
                self._due.difference_update(due)
                if not self._due:
                    return

    def _parsed(self, name: str, said: bytes) -> _Pointer | ArtifactError:
        try:
            if len(said) > _LIMIT:
                raise ValueError
            return _Pointer.model_validate_json(said)
        except (ValidationError, ValueError):
            return ArtifactError(
                f"{self.address}/{name}{_POINTER} is no pointer to a prompt; "
                "remove it, or save the prompt again."
            )

    def _learn(self, name: str, pointer: _Pointer | SoftpromptError | None) -> None:
        self._known[name] = _KnownName(pointer, monotonic())

    def _forget(self, name: str) -> None:
        self._known.pop(name, None)

    # -- files -------------------------------------------------------------------------------------

    def _bring(self, name: str, pointer: _Pointer, path: Path) -> None:
        """Copy an artifact's files to ``path``, all or none."""
        with new_folder(path, replace=True) as staging:
            for file, about in pointer.files.items():
                here = staging / file
                try:
                    with self._plainly():
                        self._fs.get_file(self._file_at(name, pointer, file), str(here))
                except FileNotFoundError as error:
                    raise _GoneError from error
                if here.stat().st_size != about.bytes or _sha256(here) != about.sha256:
                    raise ArtifactError(
                        f"{self.address}/{name}: {file} is not what was saved (its hash differs); "
                        "save the prompt again."
                    )

    def _copy(self, name: str, pointer: _Pointer) -> Path:
        return self.path / pointer.digest[:32] / name

    def _pointer_at(self, name: str) -> str:
        return f"{self._root}/{name}{_POINTER}"

    def _file_at(self, name: str, pointer: _Pointer, file: str) -> str:
        return f"{self._root}/{_FILES}/{name}/{pointer.digest}/{file}"

    @contextmanager
    def _plainly(self, doing: str = "read") -> Iterator[None]:
        """Turn whatever a store's package raises into one sentence; that something is missing is no fault."""
        try:
            yield
        except (FileNotFoundError, FileExistsError, SoftpromptError):
            raise
        except PermissionError as error:
            raise ResourceError(
                f"Cannot {doing} {self.address}: the store refuses ({_said(error)}); check the access keys."
            ) from error
        except Exception as error:  # each store's package has exceptions of its own
            raise ResourceError(
                f"Cannot {doing} {self.address}: {_said(error)}; check the address and the network."
            ) from error


def _described(folder: Path) -> _Pointer:
    """What a folder of files will be pointed at by."""
    files, card = {}, ""
    for path in sorted(folder.iterdir()):
        if not path.is_file():
            raise ArtifactError(f"{path.name} is no file, so it cannot be kept on an object store.")
        files[path.name] = _File(bytes=path.stat().st_size, sha256=_sha256(path))
        if path.name == CARD_FILE:
            card = path.read_text(encoding="utf-8")
    return _Pointer(card=card, files=files)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _said(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).partition("\n")[0].rstrip(".")[:200]
