"""Reading rows from a file, the bundled sets or the hub: knows formats, not what the columns mean."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from softprompt.data import bundled, superglue
from softprompt.data.table import Table
from softprompt.errors import DataError, ResourceError
from softprompt.packages import require

__all__ = ["Table", "listed", "read"]

_Rows = list[dict[str, object]]
_Placed = tuple[_Rows, str, list[int]]
"""Rows, what they are counted by, and of each the line where it begins, as editors count, or its number."""

_HUB = re.compile(
    r"(?P<repo>[\w.-]+/[\w.-]+)(:(?P<config>[^@/]+))?(@(?P<revision>.+))?/(?P<split>[^/]+)", re.ASCII
)
# Above the largest field anybody trains on, and within the C long of every platform.
_LARGEST_FIELD = 2**31 - 1
_TAB = "\t"
_SEPARATORS = {",": "comma", ";": "semicolon", _TAB: "tab", "|": "bar"}


def read(spec: str, *, base_dir: Path | None = None, separator: str | None = None) -> Table:
    """Read the rows that ``spec`` names.

    Args:
        spec: a path ending in .csv, .tsv, .jsonl, .ndjson, .json (each also with .gz behind it) or .parquet;
            ``bundled:NAME/SPLIT``; ``superglue:TASK/SPLIT[@FOLDER]``; or
            ``hub:owner/name[:config][@revision]/SPLIT``.
        base_dir: the folder that relative paths start from; none means the working folder.
        separator: what stands between the columns of .csv and .tsv files; none means what their first line
            shows.

    Raises:
        DataError: no such source, or a fault in it; the message names the row.
        ResourceError: no network, no permission, or an optional package is missing.
    """
    if spec.startswith("bundled:"):
        return bundled.load(spec.removeprefix("bundled:"))
    if spec.startswith("superglue:"):
        task, source = superglue.locate(spec, base_dir)
        return superglue.flatten(task, read(source))
    if spec.startswith("hub:"):
        return _read_hub(spec)
    return _read_file(spec, base_dir, separator)


def _read_file(spec: str, base_dir: Path | None, separator: str | None) -> Table:
    path = (base_dir or Path()) / Path(spec).expanduser()
    try:
        found = _reader(path, separator)(path) if path.exists() else None
    except PermissionError as error:
        raise ResourceError(f"{path} may not be read: change its permissions.") from error
    except OSError as error:
        raise ResourceError(f"{path} cannot be read: {error.strerror or error}.") from error
    if found is None:
        raise DataError(f"There is no file {path}: give a path, bundled:NAME/SPLIT or hub:owner/name/SPLIT.")
    rows, unit, numbers = found
    if not rows:
        raise DataError(f"{path} is empty: it has no rows.")
    return Table(tuple(rows), str(path), tuple(f"{path}, {unit} {number}" for number in numbers))


def _reader(path: Path, separator: str | None) -> Callable[[Path], _Placed]:
    if path.is_dir():
        raise DataError(f"{path} is a folder: name one of the files in it.")
    inner = path.with_suffix("") if path.suffix.lower() == ".gz" else path
    reader = _READERS.get(inner.suffix.lower())
    if reader is None or (inner != path and reader is _read_parquet):
        ending = f"ends in {path.suffix!r}" if path.suffix else "has no suffix"
        raise DataError(f"{path} {ending}, which says no known format: use {', '.join(_READERS)}.")
    return partial(_read_delimited, separator=separator) if reader is _read_delimited else reader


def _text(path: Path) -> str:
    """The whole file as text, unpacked if need be and without its byte order mark."""
    raw = path.read_bytes()
    if path.suffix.lower() == ".gz":
        try:
            raw = gzip.decompress(raw)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(f"{path} is damaged or is not gzip: pack it again.") from error
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path} is not UTF-8 (line {line}): save it as UTF-8.") from error


def _read_delimited(path: Path, separator: str | None = None) -> _Placed:
    # Only ever raised: another thread may be reading, so it is not put back.
    csv.field_size_limit(max(csv.field_size_limit(), _LARGEST_FIELD))
    text = _text(path)
    delimiter = separator or _delimiter(path, text)
    # Strict, as otherwise a quote that is never closed silently swallows the rest of the file.
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    rows: _Rows = []
    starts: list[int] = []
    begins = 1
    try:
        for cells in lines:
            start, begins = begins, lines.line_num + 1
            if not cells:
                continue
            if header is None:
                header = _header(path, cells)
                continue
            if len(cells) != len(header) and not any(cell.strip() for cell in cells):
                continue  # a line of spaces or commas, as spreadsheets leave behind
            if len(cells) != len(header):
                raise DataError(
                    f"{path}, line {start} has {_count(len(cells), 'field')} "
                    f"where the header has {_count(len(header), 'column')}: put quotes around a field that "
                    f"holds a {_SEPARATORS.get(delimiter, repr(delimiter))}."
                )
            rows.append(dict(zip(header, cells, strict=True)))
            starts.append(start)
    except csv.Error as error:
        raise DataError(
            f"{path}, line {begins} is not well quoted ({error}): "
            "write a quote inside a quoted field twice, and close each."
        ) from error
    _leave_out_an_index(path, rows)
    return rows, "line", starts


def _delimiter(path: Path, text: str) -> str:
    """What the first line has between its columns: what the ending says, or else the mark it holds."""
    own = _TAB if ".tsv" in (suffix.lower() for suffix in path.suffixes) else ","
    first = next((line for line in io.StringIO(text) if line.strip()), "")
    unquoted = re.sub(r'"[^"]*"', "", first)
    return max((own, *_SEPARATORS), key=unquoted.count) if own not in unquoted else own


def _leave_out_an_index(path: Path, rows: _Rows) -> None:
    """Take out the numbers of the rows, which data frames write as a first column without a name."""
    if not rows or "" not in rows[0]:
        return
    if not all(re.fullmatch(r"\d+", str(row[""])) for row in rows):
        raise DataError(f"{path} has no name for column 1: the first line must name every column.")
    for row in rows:
        del row[""]


def _header(path: Path, cells: list[str]) -> list[str]:
    names = [cell.strip() for cell in cells]
    if "" in names[1:] or names == [""]:
        raise DataError(
            f"{path} has no header, or one without a name for column {names.index('') + 1}: "
            "the first line must name every column."
        )
    _unique(path, names)
    return names


def _unique(path: Path, names: list[str]) -> None:
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{path} has the column {twice!r} twice in its header: rename one of them.")


def _read_jsonl(path: Path) -> _Placed:
    text = _text(path)
    if text.lstrip().startswith("[") and text.rstrip().endswith("]"):
        with suppress(DataError):  # a list under this name after all; otherwise its lines are told of
            return _read_json(path)
    rows: _Rows = []
    starts: list[int] = []
    # Not splitlines(): JSON may hold other line separators inside a string.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}, line {number} is not JSON ({_reason(error)}).") from error
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number} is {_kind(row)}, not an object such as {{...}}.")
        rows.append(row)
        starts.append(number)
    return rows, "line", starts


def _read_json(path: Path) -> _Placed:
    text = _text(path)
    if not text.strip():
        return [], "row", []
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path} is not JSON ({_reason(error)}): if it holds one object a line, name it .jsonl."
        ) from error
    if not isinstance(rows, list):
        raise DataError(f"{path} holds {_kind(rows)}, not a list of objects such as [{{...}}, {{...}}].")
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise DataError(f"{path}, row {number} is {_kind(row)}, not an object such as {{...}}.")
    return rows, "row", list(range(1, len(rows) + 1))


def _read_parquet(path: Path) -> _Placed:
    require("a parquet file")
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    if path.stat().st_size == 0:
        return [], "row", []
    try:
        # Not read_table(), which would take a folder named a=b for a column.
        with parquet.ParquetFile(path) as file:
            table = file.read()
    except (arrow.ArrowException, OSError) as error:
        if isinstance(error, PermissionError):
            raise
        raise DataError(f"{path} is damaged or is not a parquet file: write it again.") from error
    _unique(path, table.column_names)
    rows: _Rows = table.to_pylist()
    return rows, "row", list(range(1, len(rows) + 1))


_READERS: dict[str, Callable[[Path], _Placed]] = {
    ".csv": _read_delimited,
    ".tsv": _read_delimited,
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".parquet": _read_parquet,
}


def _read_hub(spec: str) -> Table:
    parts = _HUB.fullmatch(spec.removeprefix("hub:"))
    if parts is None:
        raise DataError(
            f"{spec!r} is not a hub source: write hub:owner/name/SPLIT "
            "or hub:owner/name:config@revision/SPLIT."
        )
    require("a data set of the hub")
    import datasets

    try:
        # Code that comes with a dataset is never run: trust_remote_code is not passed.
        data = datasets.load_dataset(
            parts["repo"], parts["config"], split=parts["split"], revision=parts["revision"]
        )
        rows = tuple(listed(data))
    # Whatever a foreign library raises becomes one sentence; the cause stays attached.
    except Exception as error:
        raise _hub_fault(spec, error) from error
    if not rows:
        raise DataError(f"{spec} is empty: it has no rows.")
    return Table(rows, spec)


def listed(data: Any) -> list[dict[str, Any]]:
    """The rows of a ``datasets.Dataset``; a class label ``x`` has its name beside it in ``x_name``."""
    rows: list[dict[str, Any]] = data.to_list()
    for column, feature in data.features.items():
        names = getattr(feature, "names", None)
        if names is None or not hasattr(feature, "int2str") or f"{column}_name" in data.features:
            continue
        for row in rows:
            number = row[column]
            row[f"{column}_name"] = names[number] if number is not None and number >= 0 else None
    return rows


def _hub_fault(spec: str, error: BaseException) -> DataError | ResourceError:
    chain: BaseException | None = error
    while chain is not None:
        # By name too: httpx, requests and the hub's offline mode each have their own.
        if isinstance(chain, ConnectionError | TimeoutError) or re.search(
            "Connect|Timeout|Offline", type(chain).__name__
        ):
            return ResourceError(
                f"There is no network to read {spec} with, or the hub cannot be reached: "
                "connect and try again, or give a local file."
            )
        chain = chain.__cause__ or chain.__context__
    return DataError(
        f"{spec} cannot be read ({_reason(error)}): check its name, configuration, revision and split."
    )


def _reason(error: BaseException) -> str:
    """The first line of what ``error`` says, fit for brackets inside a sentence."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    said = str(error).strip().partition("\n")[0].rstrip(".: ")
    return said or type(error).__name__


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
