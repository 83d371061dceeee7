"""The Hugging Face hub: knows how to bring a repository's files or why not, nothing of what is in them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from softprompt.atomic import disk_fault
from softprompt.errors import BaseModelError, ResourceError

__all__ = ["CODE", "DESCRIPTION", "WEIGHTS", "bring", "is_hub_id", "must_stay_local", "push"]

DESCRIPTION = ("*.json", "*.txt", "*.jinja", "*.model", "*.tiktoken")
"""Patterns of the small files: configuration and tokenizer."""

WEIGHTS = ("model*.safetensors", "model.safetensors.index.json")
CODE = ("*.py",)

_KINDS = {
    "config.json": "transformers model",
    "softprompt.json": "prompt of softprompt",
    "adapter_config.json": "adapter of PEFT",
}
"""What a repository is by the file it has."""
_TIMEOUT = 8.0  # seconds


def is_hub_id(source: str) -> bool:
    """Whether ``source`` is spelt like ``name`` or ``owner/name``."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", source) is not None


def must_stay_local(
    source: str, revision: str | None, *, hint: str = "", files: Sequence[str] = ("config.json",)
) -> bool:
    """Whether the hub cannot be asked now and ``source`` has to come from its local cache.

    Questions with a short time limit and no retries, since the downloads after it would retry for a while
    before they said that there is no network.

    Args:
        source: a hub id.
        revision: branch, tag or commit; the default branch if None.
        files: one of which has to be in it; asked for in turn.
        hint: a half-sentence on what else the user may have meant, put at the end of the message.

    Raises:
        BaseModelError: the repository or revision does not exist, is gated, or holds no model.
        ResourceError: no network and nothing in the local cache.
    """
    import huggingface_hub as hub
    from huggingface_hub import errors

    cached = any(
        isinstance(hub.try_to_load_from_cache(source, file, revision=revision), str) for file in files
    )
    missing: Exception | None = None
    for file in files:
        try:
            hub.get_hf_file_metadata(hub.hf_hub_url(source, file, revision=revision), timeout=_TIMEOUT)
            return False
        except errors.GatedRepoError as error:
            raise BaseModelError(
                f"The hub model {source} is gated: ask for access on its page, then run `hf auth login`."
            ) from error
        except errors.RevisionNotFoundError as error:
            raise BaseModelError(
                f"The hub model {source} has no revision {revision!r}: look at the branches and tags on its "
                "page."
            ) from error
        except errors.RepositoryNotFoundError as error:
            raise BaseModelError(
                f"There is no folder, bundled base or hub model called {source!r}{hint}: check the spelling, "
                "or run `hf auth login` if it is private."
            ) from error
        except errors.EntryNotFoundError as error:
            missing = error
        except Exception as error:
            status = getattr(getattr(error, "response", None), "status_code", None)
            if status in (401, 403):
                raise BaseModelError(
                    f"The hub refuses {source} to your login: run `hf auth login` with a token that may read "
                    "it."
                ) from error
            # All that is left is the way there: the HTTP library's errors, offline mode, a server's bad day.
            if cached:
                return True
            raise ResourceError(
                f"There is no network, or the hub does not answer, and {source} is not in the local cache"
                f"{hint}: connect and try again, or name a folder, a .gguf file or a bundled base."
            ) from error
    kinds = " or ".join(_KINDS[file] for file in files)
    raise BaseModelError(
        f"The hub repository {source} has no {' or '.join(files)}, so it is no {kinds}: choose another."
    ) from missing


def bring(source: str, revision: str | None, patterns: tuple[str, ...], *, offline: bool) -> Path:
    """The folder of one commit of ``source``, holding the files of its top level that match ``patterns``.

    The folder is called by its commit and shared with everything that uses the hub's cache: give its name as
    ``revision`` to add more files of the same commit. Nothing is contacted if ``offline``.

    Raises:
        ResourceError: the network, the disk or the rights to it failed on the way.
    """
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            source,
            revision=revision,
            allow_patterns=list(patterns),
            ignore_patterns=["*/*"],
            local_files_only=offline,
        )
    except Exception as error:
        raise _trouble(source, error) from error
    return Path(folder)


def push(folder: Path, repo: str, *, private: bool) -> str:
    """Put the files of a folder into the repository ``repo``, made if need be; its address.

    Raises:
        ResourceError: nobody is logged in, the hub refuses, or it cannot be reached.
    """
    import huggingface_hub as hub

    try:
        address = hub.create_repo(repo, private=private, exist_ok=True)
        hub.upload_folder(repo_id=repo, folder_path=folder, commit_message="Pushed by softprompt")
    except Exception as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403) or type(error).__name__ == "LocalTokenNotFoundError":
            raise ResourceError(
                f"The hub does not let you write to {repo}; run `hf auth login` with a token that may."
            ) from error
        if status is not None:
            said = str(error).strip().splitlines()[0].rstrip(".")
            raise ResourceError(f"The hub refuses {repo} ({said}); check the name, or try again.") from error
        raise ResourceError(
            f"{repo} could not be pushed: there is no network, or the hub does not answer; try again."
        ) from error
    return str(address)


def _trouble(source: str, error: BaseException) -> ResourceError:
    """What to say of ``error``, whose reason may lie behind other errors."""
    link: BaseException | None = error
    while link is not None:
        reason = disk_fault(link, "set HF_HOME to another folder")
        if reason is not None:
            return ResourceError(f"The hub's local cache cannot be written for {source}: {reason}.")
        link = link.__cause__ or link.__context__
    return ResourceError(
        f"The files of {source} could not all be had from the hub or its local cache: connect and try again, "
        "what has arrived is kept."
    )
