"""The library: artifacts by name, each a folder of its own. Knows names, files and that they belong
together; does not know training, nor where the files lie (``place``).

An artifact is the card ``softprompt.json``, a ``README.md``, and what was learnt: PEFT's two files, or those
of a fine-tuned model. What lies in a library may come from strangers: a name never leads out of it, and
nothing is read before it was checked.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Hashable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from softprompt.atomic import write_bytes
from softprompt.base.model import Base
from softprompt.config import NAME_RULE
from softprompt.config_io import nearest, shown
from softprompt.errors import ArtifactError, SoftpromptError, WrongBaseError
from softprompt.harmless import visible
from softprompt.library import formats
from softprompt.library.card import CARD_FILE, Card, card_json, kept_name, read_card
from softprompt.library.model_card import model_card
from softprompt.library.payload import Payload
from softprompt.library.peft_format import Learnt
from softprompt.library.place import place_at
from softprompt.library.prefix_format import PromptPayload
from softprompt.library.share import HUB, brought, of_the_hub
from softprompt.prefix import Front

__all__ = ["Artifact", "Library", "ListedArtifact", "check_base"]

T = TypeVar("T")

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
        """The prompt it holds, as PEFT has it.

        Raises:
            ArtifactError: it changes the model, or is a prefix of layers that differ.
        """
        if not isinstance(self.payload, Learnt):
            raise ArtifactError(f"{self.path} holds {self._what}, not a prompt as PEFT has it.")
        return self.payload

    def front(self, base: Base) -> Front:
        """What stands in front of a text on ``base``.

        Raises:
            ArtifactError: it changes the model, so what stands in front of that is no prompt for the base.
        """
        if not isinstance(self.payload, PromptPayload):
            raise ArtifactError(f"{self.path} holds {self._what}, not a prompt.")
        return self.payload.meet(base).front

    @property
    def _what(self) -> str:
        if isinstance(self.payload, PromptPayload):
            return "a prefix of layers that differ"
        return f"a changed model ({self.payload.kind})"


@dataclass(frozen=True)
class ListedArtifact:
    """One line of a library's list: either ``card`` or, for a broken artifact, ``fault`` is None."""

    name: str
    card: Card | None
    fault: str | None = None
    nbytes: int = 0


ListedArtifacts = list[ListedArtifact]  # inside the class, "list" is the method


class Library:
    """The artifacts at one address: a folder, which need not exist before the first is saved, or an object
    store (``s3://``, ``gs://``, ``az://``).

    Args:
        address: the folder's path, or an address with ``://`` in it.

    Raises:
        ConfigError: an address of a kind that is not known.
        ResourceError: a package is missing that the address needs.
    """

    def __init__(self, address: str | os.PathLike[str]) -> None:
        self._place = place_at(address)

    def __repr__(self) -> str:
        return f"<Library at {self.address}>"

    @property
    def address(self) -> str:
        """What a user calls it."""
        return self._place.address

    @property
    def path(self) -> Path:
        """The folder of this machine in which artifacts are read: its own, or that of copies."""
        return self._place.path

    def where(self, name: str) -> str:
        """Where an artifact lies, for people."""
        return f"{self.address.rstrip('/')}/{name}"

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
            ResourceError: the name is taken, or the disk or the object store refuses.
        """
        _refuse_name(name)
        _check_match(card, payload, self.where(name))
        with self.put(name, replace=overwrite) as staging:
            sha256 = payload.write(staging, card.base.name, card.base.revision)
            final = Card.model_validate(card.model_dump() | {"name": name, "weights_sha256": sha256})
            write_bytes(staging / CARD_FILE, card_json(final).encode())
            write_bytes(staging / "README.md", model_card(final, payload.opened_by).encode())
        return self.find(name)

    def put(self, name: str, *, replace: bool) -> AbstractContextManager[Path]:
        """A folder to fill with an artifact's files, which takes the name in one step when the block ends.

        Raises:
            ArtifactError: ``name`` is no name, or something that is no artifact would be replaced.
            ResourceError: the name is taken, or the disk or the object store refuses.
        """
        _refuse_name(name)
        return self._place.put(name, replace=replace)

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
        if isinstance(name_or_path, str) and "://" in name_or_path:
            address, _, name = name_or_path.rpartition("/")
            return Library(address).load_named(name)
        marks = [mark for mark in ("/", os.sep, os.altsep) if mark]
        if isinstance(name_or_path, str) and not any(mark in name_or_path for mark in marks):
            return self.load_named(name_or_path)
        return _read(Path(name_or_path).expanduser())

    def load_to_import(self, source: str) -> Artifact:
        """Read what is to become an artifact of a library and may have no card.

        ``OWNER/NAME[@REVISION]``, with or without ``hub:`` before it, is a repository of the model hub where
        no such folder lies here; any other text is a folder. Errors as in ``load``.
        """
        if "://" in source:
            return self.load(source)
        path = Path(source).expanduser()
        if source.startswith(HUB) or (not path.exists() and of_the_hub(source)):
            return _read(brought(source, bare=True))
        return _read(path)

    def load_named(self, name: str) -> Artifact:
        """Read an artifact of this library, which must have a card; errors as in ``load``."""
        path = self.find(name)
        read_card(path)  # says so if there is none
        return _read(path)

    def find(self, name: str) -> Path:
        """The folder of a name in this library, not read yet; brought first if it lies elsewhere.

        Raises:
            ArtifactError: there is no such artifact, or a link in it leads out of the library.
            ResourceError: it cannot be read or brought.
        """
        _refuse_name(name)
        return self._there(name, self._place.find(name))

    def list(self) -> ListedArtifacts:
        """Every artifact by name, in order; a broken one with what is wrong. Weights are not read."""
        listed, names = [], self.names()
        self.foresee(names)
        for name in names:
            try:
                card = self.card(name)
                near = self._place.near(name)
                if near is not None:  # what lies elsewhere is checked when it is brought
                    _check_positions(card, formats.check(near), near)
                listed.append(ListedArtifact(name, card, nbytes=self.size(name)))
            except SoftpromptError as error:
                listed.append(ListedArtifact(name, None, str(error)))
        return listed

    def names(self) -> Sequence[str]:
        """Every artifact's name, in order, also of those that are broken."""
        return sorted(self._place.names())

    def foresee(self, names: Iterable[str]) -> None:
        """Say whose cards and stamps will be asked for next, which one question may answer together."""
        self._place.foresee(names)

    def card(self, name: str) -> Card:
        """What is known about an artifact; its weights are not read. Errors as in ``load``."""
        _refuse_name(name)
        return self._there(name, self._place.card(name))

    def stamp(self, name: str) -> Hashable | None:
        """How an artifact lies there now, which changes when it is replaced; None if there is none.

        An object store is asked again every two seconds for what is in use; till then it gives what it knows.
        """
        return self._place.stamp(name) if NAME_RULE.fullmatch(name) else None

    def size(self, name: str) -> int:
        """Bytes of an artifact's files, which are not brought for it; errors as in ``find``."""
        _refuse_name(name)
        return self._there(name, self._place.size(name))

    def exists(self) -> bool:
        """Whether there is a library, be it empty."""
        return self._place.exists()

    def taken(self, name: str) -> bool:
        """Whether anything lies under a name, be it no artifact."""
        _refuse_name(name)
        return self._place.taken(name)

    def sweep(self) -> None:
        """Remove what writers that were killed have left."""
        self._place.sweep()

    def remove(self, name: str) -> None:
        """Delete an artifact; it is gone from the list in one step.

        Raises:
            ArtifactError: there is no such artifact, or it is a link out of the library.
            ResourceError: it may not be deleted.
        """
        _refuse_name(name)
        self._there(name, self._place.remove(name) or None)

    def rename(self, name: str, new: str) -> Path:
        """Give an artifact another name, on its card too; its folder. Nobody finds half of it, or none.

        Raises:
            ArtifactError: there is no such artifact, or ``new`` is no name.
            ResourceError: the new name is taken, or the disk or the object store refuses.
        """
        old = self.find(name)
        _refuse_name(new)
        card = Card.model_validate(read_card(old).model_dump() | {"name": new})
        with self.put(new, replace=False) as staging:
            shutil.copytree(old, staging, copy_function=_link, dirs_exist_ok=True)
            write_bytes(staging / CARD_FILE, card_json(card).encode())
            write_bytes(staging / "README.md", model_card(card, formats.opened_by(old)).encode())
        self.remove(name)
        return self.find(new)

    def _there(self, name: str, found: T | None) -> T:
        if found is None:
            raise ArtifactError(self._missing(name))
        return found

    def _missing(self, name: str) -> str:
        names, place = self.names(), self.address
        if not names and not self.exists():
            return f"There is no prompt called {name}: the library {place} is not there; check the path."
        if not names:
            return f"There is no prompt called {name} in {place}, which holds none; check the path."
        there = ", ".join(map(visible, names[:_SHOWN]))
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        near = nearest(name, names)
        hint = f"did you mean {visible(near)}?" if near else "choose one of them."
        return f"There is no prompt called {name} in {place}, which holds {there}{more}; {hint}"


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


def _refuse_name(name: str) -> None:
    if not NAME_RULE.fullmatch(name):
        raise ArtifactError(
            f"{shown(name)} is no name for a prompt: use 1 to 100 of the letters a-z and A-Z, digits, "
            "'.', '_' and '-', not starting with '.'."
        )


def _read(path: Path) -> Artifact:
    card = read_card(path) if os.path.lexists(path / CARD_FILE) else None
    held = formats.read(path, card.weights_sha256 if card else None)
    if card is not None:
        _check_match(card, held.payload, path)
    return Artifact(path, card, *held)


def _check_match(card: Card, payload: Payload, path: Path | str) -> None:
    _check_positions(card, payload.positions, path)
    if formats.kept_as(card.kind) != payload.kind:
        raise ArtifactError(
            f"{path}: the card speaks of {shown(card.kind)}, but what was learnt is of the kind "
            f"{payload.kind}; restore it from a good copy."
        )


def _check_positions(card: Card, positions: int, path: Path | str) -> None:
    if card.positions != positions:
        raise ArtifactError(
            f"{path}: the card speaks of {card.positions} positions, but there are {positions}; "
            "restore it from a good copy."
        )


def _link(source: str, target: str) -> None:
    """The same file under another name or, where the disk knows no such thing, a copy."""
    try:
        os.link(os.path.realpath(source), target)
    except OSError:
        shutil.copy2(source, target)


def _short(fingerprint: str) -> str:
    return fingerprint.removeprefix("sha256:")[:12]
