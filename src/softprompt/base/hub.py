"""The Hugging Face hub: knows whether a repository can be reached and why not, nothing of what is in it."""

from __future__ import annotations

import errno
import re

from softprompt.errors import BaseModelError, ResourceError

__all__ = ["is_hub_id", "must_stay_local", "trouble_on_the_way"]

_TIMEOUT = 8.0  # seconds


def is_hub_id(source: str) -> bool:
    """Whether ``source`` is spelt like ``name`` or ``owner/name``."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", source) is not None


def must_stay_local(source: str, revision: str | None, *, hint: str = "") -> bool:
    """Whether the hub cannot be asked now and ``source`` has to come from its local cache.

    One question with a short time limit and no retries: the loaders behind it would retry for most of a
    minute before they said that there is no network.

    Args:
        source: a hub id.
        revision: branch, tag or commit; the default branch if None.
        hint: a half-sentence on what else the user may have meant, put at the end of the message.

    Raises:
        BaseModelError: the repository or revision does not exist, is gated, or holds no model.
        ResourceError: no network and nothing in the local cache.
    """
    import huggingface_hub as hub
    from huggingface_hub import errors

    cached = isinstance(hub.try_to_load_from_cache(source, "config.json", revision=revision), str)
    try:
        url = hub.hf_hub_url(source, "config.json", revision=revision)
        hub.get_hf_file_metadata(url, timeout=_TIMEOUT)
    except errors.GatedRepoError as error:
        raise BaseModelError(
            f"The hub model {source} is gated: ask for access on its page, then run `hf auth login`."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise BaseModelError(
            f"The hub model {source} has no revision {revision!r}: look at the branches and tags on its page."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise BaseModelError(
            f"There is no folder, bundled base or hub model called {source!r}{hint}: check the spelling, or "
            "run `hf auth login` if it is private."
        ) from error
    except errors.EntryNotFoundError as error:
        raise BaseModelError(
            f"The hub repository {source} has no config.json, so it is no transformers model: choose another."
        ) from error
    except Exception as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403):
            raise BaseModelError(
                f"The hub refuses {source} to your login: run `hf auth login` with a token that may read it."
            ) from error
        # All that is left is the way to the hub: the HTTP library's errors, offline mode, a server's bad day.
        if cached:
            return True
        raise ResourceError(
            f"There is no network, or the hub does not answer, and {source} is not in the local cache{hint}: "
            "connect and try again, or name a folder, a .gguf file or a bundled base."
        ) from error
    return False


def trouble_on_the_way(source: str, error: BaseException) -> ResourceError | None:
    """What to raise if ``error`` came from the network or the disk on the way to ``source``, else None."""
    from huggingface_hub import errors

    link: BaseException | None = error
    while link is not None:
        number = link.errno if isinstance(link, OSError) else None
        if number in (errno.ENOSPC, errno.EDQUOT):
            return ResourceError(
                f"There is no space left on the disk for {source}: free some, or set HF_HOME to another disk."
            )
        if number in (errno.EACCES, errno.EPERM, errno.EROFS):
            return ResourceError(
                f"The hub's local cache may not be written for {source}: set HF_HOME to a folder of your own."
            )
        if isinstance(link, (errors.LocalEntryNotFoundError, errors.HfHubHTTPError, ConnectionError)):
            return ResourceError(
                f"The files of {source} could not all be read from the hub or its local cache: connect and "
                "try again, what has arrived is kept."
            )
        link = link.__cause__ or link.__context__
    return None
