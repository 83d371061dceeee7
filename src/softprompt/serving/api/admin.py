"""/v1/admin: what is in memory, and artifacts put, removed and pinned while the server runs."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from pathlib import Path
from typing import Annotated, Any, BinaryIO

from fastapi import APIRouter, Request
from fastapi import Path as InPath
from pydantic import BaseModel
from starlette.datastructures import UploadFile

from softprompt.atomic import NEW, plain_disk_errors
from softprompt.config import NAME_RULE
from softprompt.errors import ArtifactError, BaseModelError, ResourceError
from softprompt.library.card import CARD_FILE
from softprompt.library.changed import FRONT_FILE
from softprompt.library.folder import Library
from softprompt.library.peft_format import CONFIG_FILE, WEIGHTS_FILE
from softprompt.serving.api.errors import ERRORS, ApiError, bad_request, no_such_model
from softprompt.serving.api.replies import LoadedModel
from softprompt.serving.api.strict import StrictRoute
from softprompt.serving.api.visit import Serving, serving_of
from softprompt.serving.builder import Builder
from softprompt.serving.engine import Engine

__all__ = ["FILES", "router"]

FILES = (CARD_FILE, "README.md", CONFIG_FILE, WEIGHTS_FILE, FRONT_FILE)
"""What an artifact that is sent may hold: prompts, prefixes and adapters, no whole models."""

_NAMES = ", ".join(FILES)

router = APIRouter(prefix="/v1/admin", route_class=StrictRoute, tags=["admin"])

_REFUSALS: dict[int | str, dict[str, Any]] = {
    status: ERRORS[status] for status in (400, 401, 403, 404, 413, 503)
}
_UPLOAD = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["files"],
                    "properties": {
                        "files": {
                            "type": "array",
                            "items": {"type": "string", "format": "binary"},
                            "maxItems": len(FILES),
                            "description": f"Named {_NAMES}; the card and the weights must be there.",
                        }
                    },
                }
            }
        },
    }
}

Name = Annotated[str, InPath(description="The name of a prompt.", pattern=f"^(?:{NAME_RULE.pattern})$")]


class Holding(BaseModel):
    """What is in memory, the base first."""

    data: list[LoadedModel]


class Done(BaseModel):
    """What was done."""

    name: str
    done: bool


@router.get("/prompts", response_model=Holding, responses=_REFUSALS)
async def loaded(request: Request) -> Any:
    """List what is in memory."""
    held = _engine(request).registry.loaded()
    return {
        "data": [
            {"name": h.name, "digest": h.digest, "bytes": h.nbytes, "users": h.users, "pinned": h.pinned}
            for h in held
            if h.current
        ]
    }


@router.put("/prompts/{name}", response_model=Done, responses=_REFUSALS, openapi_extra=_UPLOAD)
async def put(request: Request, name: Name) -> Any:
    """Add or replace a prompt: it is checked as a whole, then takes its place in one step.

    Requests under way are answered by the version they began with.
    """
    engine = _engine(request)
    if name == engine.base.name:
        raise bad_request("This is the base's own name; choose another.", "name")
    async with request.form(max_files=len(FILES), max_fields=0) as form:
        files: dict[str, BinaryIO] = {}
        for _, part in form.multi_items():
            if not isinstance(part, UploadFile) or part.filename not in FILES:
                raise bad_request(f"A prompt is made of files named {_NAMES}; send only these.", "files")
            if files.setdefault(part.filename, part.file) is not part.file:
                raise bad_request(f"{part.filename} was sent twice.", "files")
        await asyncio.to_thread(_store, serving_of(request), name, files)
    engine.registry.evict(name)
    return {"name": name, "done": True}


@router.delete("/prompts/{name}", response_model=Done, responses=_REFUSALS)
async def delete(request: Request, name: Name) -> Any:
    """Remove a prompt from the library; requests under way are still answered."""
    engine = _engine(request)
    try:
        await asyncio.to_thread(engine.library.remove, name)
    except ArtifactError:
        raise no_such_model(name) from None
    engine.registry.unpin(name)
    engine.registry.evict(name)
    return {"name": name, "done": True}


@router.post("/prompts/{name}/pin", response_model=Done, responses=_REFUSALS)
async def pin(request: Request, name: Name) -> Any:
    """Never evict a prompt."""
    registry = (await _found(request, name)).registry
    registry.pin(name)
    return {"name": name, "done": True}


@router.post("/prompts/{name}/unpin", response_model=Done, responses=_REFUSALS)
async def unpin(request: Request, name: Name) -> Any:
    """Let a prompt be evicted again."""
    registry = (await _found(request, name)).registry
    registry.unpin(name)
    return {"name": name, "done": True}


@router.post("/prompts/{name}/evict", response_model=Done, responses=_REFUSALS)
async def evict(request: Request, name: Name) -> Any:
    """Drop a prompt from memory, unless it is in use or pinned."""
    registry = (await _found(request, name)).registry
    return {"name": name, "done": registry.evict(name)}


def _engine(request: Request) -> Engine:
    return serving_of(request).service.engine


async def _found(request: Request, name: str) -> Engine:
    """The engine, if there is such a prompt, be it broken."""
    engine = _engine(request)
    try:
        await asyncio.to_thread(engine.library.size, name)
    except ArtifactError:
        raise no_such_model(name) from None
    return engine


def _store(serving: Serving, name: str, files: dict[str, BinaryIO]) -> None:
    """Write the files beside the library's artifacts, load them there, and give them their name."""
    library = serving.service.engine.library
    home = library.path  # on the disk where the prompt will lie
    if library.taken(name) and not _known(library, name):
        raise bad_request("Something that is no prompt has this name in the library; choose another.", "name")
    try:
        with plain_disk_errors(home / name):
            home.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=home, prefix=f".upload{NEW}") as aside:
                _write(Path(aside) / name, files)
                _check(serving, name, Path(aside))
                with library.put(name, replace=True) as staging:
                    for file in files:
                        os.rename(Path(aside) / name / file, staging / file)
    except ResourceError as error:
        raise ApiError(503, "The server cannot keep the prompt: its disk refuses.", code="disk") from error


def _write(folder: Path, files: dict[str, BinaryIO]) -> None:
    folder.mkdir()
    for file, content in files.items():
        with (folder / file).open("xb") as out:
            shutil.copyfileobj(content, out)


def _known(library: Library, name: str) -> bool:
    try:
        library.find(name)
    except ArtifactError:
        return False
    return True


def _check(serving: Serving, name: str, aside: Path) -> None:
    """Load the artifact as it will be loaded to answer, from a library of its own."""
    library, base = Library(aside), serving.service.engine.base
    try:
        card = library.card(name)
        if card.name != name:
            raise bad_request(f"The card speaks of {card.name!r}; put it under that name.", "name")
        Builder(library, serving.service.engine.frozen, base)(name)
    except (ArtifactError, BaseModelError) as error:
        said = str(error).replace(f"{aside / name}/", "").replace(f"{aside}/", "").replace(str(aside), "it")
        raise bad_request(said, "files") from None
