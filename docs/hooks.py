"""Makes links out of the documents into names of files: the site has pages, the repository has the rest."""

from __future__ import annotations

import posixpath
import re
from typing import Any

_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)#:\s]+)(#[^)\s]*)?\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Keep what leads to another page; of what leads out of ``docs`` the words, and where it is."""
    folder = posixpath.dirname(page.file.src_uri)

    def inside(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, link[2]))
        if not target.startswith("../"):
            return link[0]
        path = target.removeprefix("../")
        return link[1] if link[1].strip("`") == path else f"{link[1]} (`{path}`)"

    return _LINK.sub(inside, markdown)
