"""Small files from strangers: knows size limits and JSON, not what stands in a file."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from softprompt.errors import ArtifactError, ResourceError

__all__ = ["json_object", "opened", "parsed_object", "refuse_links_out"]


@contextlib.contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a regular file for reading.

    Raises:
        ArtifactError: there is no such file, or it is a folder, a pipe or the like.
        ResourceError: it may not be read, or the disk fails while it is.
    """
    try:
        if not path.is_file():  # also keeps us from waiting at a pipe
            if not os.path.lexists(path.parent):
                raise ArtifactError(f"There is no folder {path.parent}; check the path.")
            if not path.parent.is_dir():
                raise ArtifactError(f"{path.parent} is not a folder; name the folder that holds {path.name}.")
            if os.path.lexists(path):
                raise ArtifactError(f"{path} is not a file; restore it from a good copy.")
            raise ArtifactError(
                f"{path.parent} has no {path.name}, so it is no saved prompt, or a part of one; "
                "check the path."
            )
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise ResourceError(
            f"Cannot read {path}: {error.strerror or error}; check the permissions."
        ) from error


def json_object(path: Path, limit: int) -> dict[str, Any]:
    """The JSON object in a file of at most ``limit`` bytes.

    Raises:
        ArtifactError: the file is missing, too large, or not a JSON object with finite numbers.
        ResourceError: it cannot be read.
    """
    with opened(path) as file:
        return parsed_object(file.read(limit + 1), path, limit)


def parsed_object(content: bytes, path: Path | str, limit: int) -> dict[str, Any]:
    """The JSON object that ``content``, from ``path``, is; errors as in ``json_object``."""
    if len(content) > limit:
        raise ArtifactError(
            f"{path} is larger than {limit:,} bytes, which no prompt needs; restore it from a good copy."
        )

    def refuse(constant: str) -> float:
        raise ValueError(f"it holds the number {constant}")

    try:
        value = json.loads(content.decode("utf-8"), parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ArtifactError(f"{path} is not valid JSON ({reason}); restore it from a good copy.") from error
    if not isinstance(value, dict):
        raise ArtifactError(f"{path} is not a JSON object; restore it from a good copy.")
    return value


def refuse_links_out(folder: Path, files: Iterable[Path]) -> None:
    """Refuse files that are links out of their folder: who made it may not own what they lead to.

    In the hub's cache every file is a link, from ``models--X/snapshots/COMMIT`` into ``models--X/blobs``,
    where the same model's content lies; such links are followed.

    Raises:
        ArtifactError: one of the files leads elsewhere.
    """
    home = folder.resolve()
    model = home.parent.parent
    cached = home.parent.name == "snapshots" and model.name.startswith("models--")
    for file in files:
        target = file.resolve()
        if not (target.is_relative_to(home) or (cached and target.is_relative_to(model / "blobs"))):
            raise ArtifactError(
                f"{file} is a link that leads out of its folder; put a copy of the file there if it is yours."
            )
