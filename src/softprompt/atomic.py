"""Files and folders that appear whole or not at all, and disk faults as plain sentences."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from softprompt.errors import ResourceError

__all__ = ["GONE", "NEW", "disk_fault", "new_folder", "plain_disk_errors", "sweep", "write_bytes"]

NEW, GONE = ".new.", ".gone."
"""What the names of folders hold that are being written or removed; such names begin with a full stop."""

_HOUR = 3600.0


def disk_fault(error: BaseException, elsewhere: str = "choose another folder") -> str | None:
    """Why something cannot be written and what to do about it; None for what is no fault of a disk."""
    why = {
        errno.ENOSPC: "there is no space left on the disk; free some or {}",
        errno.EDQUOT: "there is no space left in the disk quota; free some or {}",
        errno.EROFS: "the file system is read-only, so you may not write there; {}",
        errno.EACCES: "you may not write there; {}",
        errno.EPERM: "you may not write there; {}",
        errno.ENOTDIR: "a file is in its way; move that file or {}",
        errno.EEXIST: "a file is in its way; move that file or {}",
    }.get((error.errno or 0) if isinstance(error, OSError) else 0)
    return why.format(elsewhere) if why else None


@contextlib.contextmanager
def plain_disk_errors(path: Path) -> Iterator[None]:
    """Turn a full disk, a read-only folder and the like into one sentence about ``path``."""
    try:
        yield
    except OSError as error:
        reason = disk_fault(error) or f"{error.strerror or error}; choose another folder"
        raise ResourceError(f"Cannot write {path}: {reason}.") from error


def write_bytes(path: Path, content: bytes, *, private: bool = False) -> None:
    """Replace a file's content in one step that a crash cannot split; if private, for its owner only."""
    with plain_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if not private:  # as mkstemp made it; a library may be shared
                Path(name).chmod(0o666 & ~_umask())
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


@contextlib.contextmanager
def new_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """A folder to fill; it takes the name ``path`` only when the block ends without an error.

    Raises:
        ResourceError: the folder exists and ``replace`` is off, or the disk refuses.
    """
    path = path.absolute()
    with plain_disk_errors(path):
        if path.exists() and not replace:
            raise ResourceError(f"{path} exists already; choose another name or allow overwriting.")
        path.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}{NEW}"))
        staging.chmod(0o777 & ~_umask())
        try:
            yield staging
            _swap(staging, path)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Remove what writers that were killed have left in a folder: what has been in the making for an hour."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            unfinished = entry.name.startswith(".") and (NEW in entry.name or GONE in entry.name)
            age = time.time() - entry.stat(follow_symlinks=False).st_mtime
            if unfinished and age > _HOUR and entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Let two names change places in one step, as Linux can; whether it did."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    if renameat2 is None:
        return False
    here, exchange = -100, 2  # AT_FDCWD and RENAME_EXCHANGE
    return bool(renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0)


def _swap(staging: Path, path: Path) -> None:
    """Give ``staging`` the name ``path``; an old folder of that name changes places with it, to be removed.

    Where the system cannot exchange two names, the old one is moved aside first.
    """
    if not path.exists():
        os.rename(staging, path)
        return
    if _exchange(staging, path):
        return
    aside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.old."))
    os.rename(path, aside / "old")
    os.rename(staging, path)
    shutil.rmtree(aside, ignore_errors=True)
