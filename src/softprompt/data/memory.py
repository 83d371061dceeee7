"""Rows as Python holds them: lists of dicts, data frames, data sets. It knows how each gives its rows, and
imports none of them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from softprompt.atomic import write_bytes
from softprompt.data.sources import listed, read
from softprompt.data.table import Table, Text
from softprompt.errors import DataError

__all__ = ["Rows", "as_table", "as_texts", "is_frame", "kept_rows"]

Rows = Any
"""A list of dicts, a pandas or polars data frame, an Arrow table, a ``datasets.Dataset``, a ``Table``, or
what ``data.sources.read`` takes: a path, ``bundled:NAME/SPLIT``, ``hub:OWNER/NAME/SPLIT``."""


def as_table(rows: Rows, called: str = "the rows", separator: str | None = None) -> Table:
    """The rows as a table, in the order they have.

    Args:
        rows: see ``Rows``.
        called: names them in messages.
        separator: of a file, as ``data.sources.read`` takes it.

    Raises:
        DataError: they are nothing of the kind, or there are none.
        ResourceError: a source cannot be read.
    """
    if isinstance(rows, Table):
        return rows
    if isinstance(rows, str | os.PathLike):
        return read(os.fspath(rows), separator=separator)
    found = _listed(rows, called)
    for number, row in enumerate(found, start=1):
        if not isinstance(row, Mapping):
            raise DataError(
                f"{called[0].upper()}{called[1:]} must be dicts with a value for each column, such as "
                f"{{'text': ..., 'label': ...}}, but row {number} is {_kind(row)}."
            )
    if not found:
        raise DataError(f"There are no rows in {called}.")
    return Table(tuple({str(k): _plain(v) for k, v in row.items()} for row in found), called)


def as_texts(texts: Any) -> list[Text]:
    """Texts or rows to answer, in order: a list of them, a data frame, a data set.

    Raises:
        DataError: one of them is neither a text nor a row.
    """
    found = _listed(texts, "the texts")
    for number, text in enumerate(found, start=1):
        if not isinstance(text, str | Mapping):
            raise DataError(
                f"Text {number} is {_kind(text)}; give a text, or a dict with a value for each column."
            )
    return [text if isinstance(text, str) else {str(k): _plain(v) for k, v in text.items()} for text in found]


def is_frame(value: object) -> bool:
    """Whether a value is a data frame, an Arrow table or a data set."""
    return any(hasattr(value, name) for name in ("to_dicts", "to_pylist", "to_list")) or _is_pandas(value)


def kept_rows(rows: Rows, folder: Path, called: str) -> str:
    """A source that a configuration can name: what is one already, or a file the rows are kept in.

    A run can then be resumed and looked into when the rows are in memory no more. The file is called after
    its content, so the same rows are written once.
    """
    if isinstance(rows, str | os.PathLike):
        return os.fspath(rows)
    table = as_table(rows, called)
    lines = (json.dumps(row, ensure_ascii=False, default=str) for row in table.rows)
    content = "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogatepass")
    path = folder / f"{sha256(content).hexdigest()[:16]}.jsonl"
    if not path.exists():
        write_bytes(path, content)
    return str(path)


def _listed(rows: Any, called: str) -> list[Any]:
    if hasattr(rows, "features") and hasattr(rows, "to_list"):
        return list(listed(rows))
    for name in ("to_dicts", "to_pylist", "to_list"):  # polars, Arrow, others of the kind
        if hasattr(rows, name):
            return list(getattr(rows, name)())
    if _is_pandas(rows):
        return list(rows.to_dict(orient="records"))
    if isinstance(rows, Iterable) and not isinstance(rows, str | bytes | Mapping):
        return list(rows)
    raise DataError(
        f"{called[0].upper()}{called[1:]} must be a list of dicts, a data frame, a data set or a path, not "
        f"{_kind(rows)}."
    )


def _is_pandas(rows: Any) -> bool:
    return hasattr(rows, "to_dict") and hasattr(rows, "columns") and not isinstance(rows, Mapping)


def _plain(value: Any) -> object:
    """A value without NumPy's wrapping; a missing one is None."""
    if type(value).__module__ == "numpy":
        value = value.tolist()
    return None if value is None or _is_missing(value) else value


def _is_missing(value: Any) -> bool:
    """Whether a value differs from itself, or will not say whether it does, as pandas' NA."""
    if isinstance(value, str | int | list | dict | tuple):
        return False
    differs = value != value
    return differs is True or type(differs).__name__ == "NAType"


def _kind(value: object) -> str:
    kinds = {str: "a text", dict: "one dict", type(None): "nothing", bytes: "bytes"}
    return kinds.get(type(value), f"a value of the type {type(value).__name__}")
