"""The library: a folder of artifacts, each a folder of its own. Knows names, files and that they belong
together; does not know training.

An artifact is the card ``softprompt.json``, a ``README.md``, and what was learnt: PEFT's two files, or those
of a fine-tuned model. What lies in a library may come from strangers: a name never leads out of it, and
nothing is read before it was checked.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

from softprompt.atomic import GONE, new_folder, plain_disk_errors, write_bytes
from softprompt.base.model import Base
from softprompt.config import NAME_RULE
from softprompt.config_io import nearest, shown
from softprompt.errors import ArtifactError, ResourceError, SoftpromptError, WrongBaseError
from softprompt.harmless import visible
from softprompt.library import formats
from softprompt.library.card import CARD_FILE, Card, card_json, kept_name, read_card
from softprompt.library.model_card import model_card
from softprompt.library.payload import Payload
from softprompt.library.peft_format import CONFIG_FILE, WEIGHTS_FILE, Learnt
from softprompt.library.share import HUB, brought

__all__ = ["Artifact", "Library", "ListedArtifact", "check_base"]

_MARKS = (CARD_FILE, CONFIG_FILE, WEIGHTS_FILE)
"""A folder with one of these is an artifact, or was meant to be one."""
_SHOWN = 20


@dataclass(frozen=True, eq=False)
class Artifact:
    """A saved prompt or a saved change of the model, read and checked.

    Attributes:
        path: its folder.
        card: what is known about it; None for a folder that PEFT or transformers wrote.
        payload: what was learnt; of a whole model, the weights are read and checked when it meets a base.
        base_name: the base by the folder's own word, which may be empty.
        revision: the commit of that base, if it is told.
    """

    path: Path
    card: Card | None
    payload: Payload
    base_name: str = ""
    revision: str | None = None

    def __repr__(self) -> str:
        return f"<Artifact at {self.path}: {self.payload.kind}, {self.payload.positions} positions>"

    @property
    def learnt(self) -> Learnt:
        """The prompt it holds.

        Raises:
            ArtifactError: it changes the model, so what stands in front of that is no prompt for the base.
        """
        if not isinstance(self.payload, Learnt):
            raise ArtifactError(f"{self.path} holds a changed model ({self.payload.kind}), not a prompt.")
        return self.payload


@dataclass(frozen=True)
class ListedArtifact:
    """One line of a library's list: either ``card`` or, for a broken artifact, ``fault`` is None."""

    name: str
    card: Card | None
    fault: str | None = None


ListedArtifacts = list[ListedArtifact]  # inside the class, "list" is the method


class Library:
    """The artifacts in one folder, which need not exist before the first is saved."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def __repr__(self) -> str:
        return f"<Library at {self.path}>"

    def save(self, name: str, payload: Payload, card: Card, overwrite: bool = False) -> Path:
        """Write an artifact, whole or not at all, and return its folder.

        Args:
            name: of the artifact and its folder.
            payload: what was learnt.
            card: about it; its name and its hash of the weights are filled in here.
            overwrite: whether an artifact of that name may be replaced.

        Raises:
            ArtifactError: the name is no folder name, card and payload do not belong together, the
                numbers are not finite, or something that is no artifact would be replaced.
            ResourceError: the name is taken, or the disk refuses.
        """
        path = self._named(name)
        _check_match(card, payload, path)
        if overwrite and path.exists() and not _is_artifact(path):
            raise ArtifactError(f"{path} is no saved prompt, so it is not replaced; choose another name.")
        with new_folder(path, replace=overwrite) as staging:
            sha256 = payload.write(staging, card.base.name, card.base.revision)
            final = Card.model_validate(card.model_dump() | {"name": name, "weights_sha256": sha256})
            write_bytes(staging / CARD_FILE, card_json(final).encode())
            write_bytes(staging / "README.md", model_card(final).encode())
        return path

    def load(self, name_or_path: str | os.PathLike[str]) -> Artifact:
        """Read the artifact of a name in this library, or of a folder anywhere.

        ``hub:OWNER/NAME`` is a repository of the model hub; another text with a slash in it, or a
        ``Path``, is a folder; any other text is a name. Where the
        text may come from a stranger use ``load_named``.

        Raises:
            ArtifactError: there is no such artifact, or it is damaged, changed or malformed.
            ResourceError: it cannot be read.
        """
        if isinstance(name_or_path, str) and name_or_path.startswith(HUB):
            return _read(brought(name_or_path))
        marks = [mark for mark in ("/", os.sep, os.altsep) if mark]
        if isinstance(name_or_path, str) and not any(mark in name_or_path for mark in marks):
            return self.load_named(name_or_path)
        return _read(Path(name_or_path).expanduser())

    def load_named(self, name: str) -> Artifact:
        """Read an artifact of this library, which must have a card; errors as in ``load``."""
        path = self.find(name)
        read_card(path)  # says so if there is none
        return _read(path)

    def find(self, name: str) -> Path:
        """The folder of a name in this library, not read yet.

        Raises:
            ArtifactError: there is no such artifact, or a link in it leads out of the library.
        """
        path = self._named(name)
        if not path.is_dir() or not _is_artifact(path):
            raise ArtifactError(self._missing(name))
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

    def list(self) -> ListedArtifacts:
        """Every artifact by name, in order; a broken one with what is wrong. Weights are not read."""
        listed = []
        for name in self.names():
            try:
                path = self.find(name)
                card = read_card(path)
                _check_positions(card, formats.check(path), path)
                listed.append(ListedArtifact(name, card))
            except SoftpromptError as error:
                listed.append(ListedArtifact(name, None, str(error)))
        return listed

    def names(self) -> Sequence[str]:
        """Every artifact's name, in order, also of those that are broken."""
        try:
            found = [entry.name for entry in os.scandir(self.path)]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise ResourceError(
                f"Cannot read the library {self.path}: {error.strerror}; check the path."
            ) from error
        return sorted(name for name in found if name[0] != "." and _is_artifact(self.path / name))

    def card(self, name: str) -> Card:
        """What is known about an artifact; its weights are not read. Errors as in ``load``."""
        return read_card(self.find(name))

    def stamp(self, name: str) -> Hashable | None:
        """How an artifact lies on the disk now, which changes when it is replaced; None if there is none."""
        try:
            found = (self.find(name) / CARD_FILE).stat()
        except (SoftpromptError, OSError):
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino

    def remove(self, name: str) -> None:
        """Delete an artifact; it is gone from the list in one step.

        Raises:
            ArtifactError: there is no such artifact, or it is a link out of the library.
            ResourceError: it may not be deleted.
        """
        path = self.find(name)
        with plain_disk_errors(path):
            if path.is_symlink():
                path.unlink()
                return
            aside = Path(tempfile.mkdtemp(dir=self.path, prefix=f".{name}{GONE}"))
            os.rename(path, aside / "old")
            shutil.rmtree(aside, ignore_errors=True)

    def rename(self, name: str, new: str) -> Path:
        """Give an artifact another name, on its card too; its folder. Nobody finds half of it, or none.

        Raises:
            ArtifactError: there is no such artifact, or ``new`` is no name.
            ResourceError: the new name is taken, or the disk refuses.
        """
        old, path = self.find(name), self._named(new)
        card = Card.model_validate(read_card(old).model_dump() | {"name": new})
        with new_folder(path) as staging:
            shutil.copytree(old, staging, copy_function=_link, dirs_exist_ok=True)
            write_bytes(staging / CARD_FILE, card_json(card).encode())
            write_bytes(staging / "README.md", model_card(card).encode())
        self.remove(name)
        return path

    def _named(self, name: str) -> Path:
        if not NAME_RULE.fullmatch(name):
            raise ArtifactError(
                f"{shown(name)} is no name for a prompt: use 1 to 100 of the letters a-z and A-Z, digits, "
                "'.', '_' and '-', not starting with '.'."
            )
        return self.path / name

    def _missing(self, name: str) -> str:
        names = self.names()
        if not self.path.is_dir():
            return f"There is no prompt called {name}: the library {self.path} is not there; check the path."
        if not names:
            return f"There is no prompt called {name} in {self.path}, which holds none; check the path."
        there = ", ".join(map(visible, names[:_SHOWN]))
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        near = nearest(name, names)
        hint = f"did you mean {visible(near)}?" if near else "choose one of them."
        return f"There is no prompt called {name} in {self.path}, which holds {there}{more}; {hint}"


def check_base(artifact: Artifact, base: Base) -> None:
    """Refuse a base the artifact was not learnt on; an artifact without a card names none.

    Raises:
        WrongBaseError: the fingerprints differ.
    """
    if artifact.card is None or artifact.card.base.fingerprint == base.fingerprint:
        return
    about = artifact.card.base
    stored = "" if about.quantisation == "none" else f" in its {about.quantisation} form"
    alike = base.name in (about.name, about.called) or kept_name(base.name) == about.name
    other = f"another revision or quantisation of {about.called}" if alike else base.name
    raise WrongBaseError(
        f"{artifact.card.name} was learnt on {about.called}{stored} ({_short(about.fingerprint)}), but this "
        f"base is {other} ({_short(base.fingerprint)}); load the base it was learnt on{stored}, or train it "
        "again."
    )


def _read(path: Path) -> Artifact:
    card = read_card(path) if os.path.lexists(path / CARD_FILE) else None
    held = formats.read(path, card.weights_sha256 if card else None)
    if card is not None:
        _check_match(card, held.payload, path)
    return Artifact(path, card, *held)


def _check_match(card: Card, payload: Payload, path: Path) -> None:
    _check_positions(card, payload.positions, path)
    if formats.kept_as(card.kind) != payload.kind:
        raise ArtifactError(
            f"{path}: the card speaks of {shown(card.kind)}, but what was learnt is of the kind "
            f"{payload.kind}; restore it from a good copy."
        )


def _check_positions(card: Card, positions: int, path: Path) -> None:
    if card.positions != positions:
        raise ArtifactError(
            f"{path}: the card speaks of {card.positions} positions, but there are {positions}; "
            "restore it from a good copy."
        )


def _is_artifact(path: Path) -> bool:
    return any(os.path.lexists(path / file) for file in _MARKS)


def _link(source: str, target: str) -> None:
    """The same file under another name or, where the disk knows no such thing, a copy."""
    try:
        os.link(os.path.realpath(source), target)
    except OSError:
        shutil.copy2(source, target)


def _short(fingerprint: str) -> str:
    return fingerprint.removeprefix("sha256:")[:12]
