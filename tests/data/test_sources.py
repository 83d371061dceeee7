from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest

from softprompt.data.memory import as_table
from softprompt.data.sources import listed, read
from softprompt.errors import DataError, ResourceError, SoftpromptError

ROWS: list[dict[str, Any]] = [{"text": "good, really", "label": "yes"}, {"text": 'a "b"\nc é', "label": "no"}]
CSV = 'text,label\n"good, really",yes\n"a ""b""\nc é",no\n'


def write(folder: Path, name: str, content: str | bytes) -> str:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def fault(spec: str, kind: type[SoftpromptError] = DataError) -> str:
    with pytest.raises(kind) as caught:
        read(spec)
    said = str(caught.value)
    assert "\n" not in said
    assert said.endswith(".")
    return said


def parquet(folder: Path, rows: list[dict[str, Any]], name: str = "t.parquet") -> str:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (folder / name).parent.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / name)
    return str(folder / name)


def test_every_format_gives_the_same_rows(tmp_path: Path) -> None:
    lines = "\n".join(json.dumps(row) for row in ROWS)
    specs = [
        write(tmp_path, "t.csv", CSV),
        write(tmp_path, "t.TSV", CSV.replace(",yes", "\tyes").replace(",no", "\tno").replace("t,l", "t\tl")),
        write(tmp_path, "t.jsonl", lines),
        write(tmp_path, "t.ndjson", lines + "\n\n"),
        write(tmp_path, "t.json", json.dumps(ROWS)),
        parquet(tmp_path, ROWS),
        write(
            tmp_path,
            "semicolons.csv",
            CSV.replace("t,l", "t;l").replace(",yes", ";yes").replace(",no", ";no"),
        ),
        write(
            tmp_path, "tabs.csv", CSV.replace("t,l", "t\tl").replace(",yes", "\tyes").replace(",no", "\tno")
        ),
        write(tmp_path, "bars.tsv", CSV.replace("t,l", "t|l").replace(",yes", "|yes").replace(",no", "|no")),
        write(tmp_path, "t.csv.gz", gzip.compress(CSV.encode())),
        write(tmp_path, "t.jsonl.gz", gzip.compress(lines.encode())),
        write(tmp_path, "list.jsonl", json.dumps(ROWS, indent=1)),
        write(
            tmp_path,
            "frame.csv",
            'text,label\n0,"good, really",yes\n1,"a ""b""\nc é",no\n'.replace("t", ",t", 1),
        ),
    ]
    tables = [read(spec) for spec in specs]
    assert all(list(table.rows) == ROWS for table in tables)
    assert len({table.digest for table in tables}) == 1
    assert [table.origin for table in tables] == specs


def test_types_are_kept(tmp_path: Path) -> None:
    rows = [{"n": 1, "ok": True, "none": None, "x": 1.5}]
    assert list(read(parquet(tmp_path, rows)).rows) == rows
    assert list(read(write(tmp_path, "t.json", json.dumps(rows))).rows) == rows


def test_relative_paths_start_from_base_dir(tmp_path: Path) -> None:
    write(tmp_path, "t.csv", CSV)
    assert len(read("t.csv", base_dir=tmp_path)) == 2
    assert len(read(str(tmp_path / "t.csv"), base_dir=tmp_path / "other")) == 2


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.json"])
def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path, name: str) -> None:
    content = {"t.csv": "a\n1\n", "t.jsonl": '{"a": "1"}', "t.json": '[{"a": "1"}]'}[name]
    assert read(write(tmp_path, name, b"\xef\xbb\xbf" + content.encode())).rows == ({"a": "1"},)


def test_csv_details(tmp_path: Path) -> None:
    table = read(write(tmp_path, "t.csv", "a , b\r\n\r\n1,\r\nx\u2028y\x85z,2"))
    assert table.rows == ({"a": "1", "b": ""}, {"a": "x\u2028y\x85z", "b": "2"})


def test_large_fields(tmp_path: Path) -> None:
    big = "word " * 200_000
    assert read(write(tmp_path, "t.csv", f'a,b\n1,"{big}"\n')).rows[0]["b"] == big


def test_a_separator_that_is_told_is_taken_whatever_the_first_line_holds(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("a;b|c\n1;2|3\n")
    assert read(str(path)).columns == ("a", "b|c")
    assert read(str(path), separator="|").rows == ({"a;b": "1;2", "c": "3"},)
    path.write_text("a#b\n1#2#3\n")
    with pytest.raises(DataError, match="put quotes around a field that holds a '#'"):
        read(str(path), separator="#")


def test_line_separators_inside_json_strings(tmp_path: Path) -> None:
    assert read(write(tmp_path, "t.jsonl", '{"a": "x\u2028y"}\r\n{"a": "z"}')).rows[0] == {"a": "x\u2028y"}


def test_a_parquet_folder_name_is_no_column(tmp_path: Path) -> None:
    assert read(parquet(tmp_path, [{"a": 1}], "split=x/t.parquet")).columns == ("a",)


def test_where_the_file_is_wrong(tmp_path: Path) -> None:
    assert fault(str(tmp_path / "no.csv")).startswith(f"There is no file {tmp_path / 'no.csv'}:")
    assert f"{tmp_path} is a folder" in fault(str(tmp_path))
    said = fault(write(tmp_path, "t.xlsx", "x"))
    assert "'.xlsx'" in said
    assert ".csv, .tsv, .jsonl, .ndjson, .json, .parquet" in said
    assert "has no suffix" in fault(write(tmp_path, "rows", "x"))
    fault("x" * 5000 + ".csv", ResourceError)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", ""),
        ("t.csv", "\n\n"),
        ("t.csv", "a,b\n"),
        ("t.jsonl", " \n"),
        ("t.json", ""),
        ("t.json", "[]"),
    ],
)
def test_no_rows(tmp_path: Path, name: str, content: str) -> None:
    assert f"{name} is empty" in fault(write(tmp_path, name, content))


def test_empty_parquet(tmp_path: Path) -> None:
    assert "is empty" in fault(write(tmp_path, "t.parquet", ""))
    assert "is empty" in fault(parquet(tmp_path, [{"a": 1}][:0]))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "t.csv",
            'a,b\n1,2\n"x\ny",2\n1,2,3\n',
            "t.csv, line 5 has 3 fields where the header has 2 col",
        ),
        ("t.csv", "a,b\n1\n", "t.csv, line 2 has 1 field where"),
        ("t.tsv", "a\tb\n1\n", "holds a tab"),
        ("t.csv", "a,,b\n1,2,3\n", "has no header, or one without a name for column 2"),
        ("t.csv", ",a\n1,2\nx,3\n", "has no name for column 1"),
        ("t.csv.gz", b"a,b\n1,2\n", "is damaged or is not gzip"),
        ("t.csv.gz", gzip.compress(b"a,b\n1,2\n", mtime=0)[:-9], "is damaged or is not gzip"),
        ("t.parquet.gz", b"PAR1", "says no known format"),
        ("t.csv", "a;b\n1;2;3\n", "holds a semicolon"),
        ("t.csv", "a,b, a\n1,2,3\n", "the column 'a' twice"),
        ("t.csv", 'a,b\n1,2\n3,"open\n4,5\n', "t.csv, line 3 is not well quoted"),
        ("t.jsonl", '{"a": 1}\n\n[1]\n', "t.jsonl, line 3 is a list, not an object"),
        ("t.jsonl", '{"a": 1}\nnull\n', "line 2 is null"),
        ("t.jsonl", '{"a": 1}\n{"a": \n', "line 2 is not JSON (Expecting value"),
        ("t.jsonl", "[" * 100_000, "line 1 is not JSON (nested too deeply)"),
        ("t.json", '{"a": 1}\n{"a": 2}', "name it .jsonl"),
        ("t.json", '{"a": 1}', "holds an object, not a list"),
        ("t.json", '[{"a": 1}, 2]', "row 2 is a number"),
        ("t.csv", b"a\nok\ncaf\xe9\n", "is not UTF-8 (line 3)"),
        ("t.jsonl", '{"a": 1}'.encode("utf-16"), "is not UTF-8 (line 1)"),
        ("t.parquet", b"PAR1 and then nothing", "is damaged or is not a parquet file"),
    ],
)
def test_each_fault_is_one_sentence(tmp_path: Path, name: str, content: str | bytes, said: str) -> None:
    path = write(tmp_path, name, content)
    assert said in fault(path)
    assert path in fault(path)


def test_a_cut_parquet_file_is_damaged(tmp_path: Path) -> None:
    path = Path(parquet(tmp_path, ROWS * 100))
    path.write_bytes(path.read_bytes()[:-100])
    assert "is damaged" in fault(str(path))


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    path = write(tmp_path, "t.csv", CSV)
    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert "may not be read" in fault(path, ResourceError)


class Hub(ModuleType):
    """Stands in for the datasets library and records how it was called."""

    features: ClassVar[dict[str, Any]] = {}

    def __init__(self, rows: list[dict[str, Any]], error: Exception | None = None) -> None:
        super().__init__("datasets")
        self.rows, self.error, self.calls = rows, error, list[Any]()

    def load_dataset(self, *args: Any, **kwargs: Any) -> Hub:
        self.calls.append((args, kwargs))
        if self.error:
            raise self.error
        return self

    def to_list(self) -> list[dict[str, Any]]:
        return self.rows


@pytest.mark.parametrize(
    ("spec", "args", "split", "revision"),
    [
        ("hub:o/n/train", ("o/n", None), "train", None),
        ("hub:o/n.x:cfg/test", ("o/n.x", "cfg"), "test", None),
        ("hub:o/n@refs/convert/parquet/test", ("o/n", None), "test", "refs/convert/parquet"),
        ("hub:o/n:c-1@v2/train[:50]", ("o/n", "c-1"), "train[:50]", "v2"),
    ],
)
def test_hub_specs(
    monkeypatch: pytest.MonkeyPatch, spec: str, args: tuple[str, ...], split: str, revision: str | None
) -> None:
    hub = Hub(ROWS)
    monkeypatch.setitem(sys.modules, "datasets", hub)
    table = read(spec)
    assert list(table.rows) == ROWS
    assert table.origin == spec
    # Nothing else is passed, above all no trust_remote_code.
    assert hub.calls == [(args, {"split": split, "revision": revision})]


def test_the_names_of_class_labels_stand_beside_their_numbers() -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        text=datasets.Value("string"), label=datasets.ClassLabel(names=["World", "Sports"])
    )
    rows = [{"text": "a", "label": 1}, {"text": "b", "label": -1}]  # a test split has no labels
    data = datasets.Dataset.from_list(rows, features=features)
    assert listed(data) == [
        {"text": "a", "label": 1, "label_name": "Sports"},
        {"text": "b", "label": -1, "label_name": None},
    ]
    assert list(as_table(data).rows) == listed(data)
    own = datasets.Dataset.from_list([{"label": 0, "label_name": "mine"}], features=None)
    assert listed(own) == [{"label": 0, "label_name": "mine"}]


@pytest.mark.parametrize(
    "spec", ["hub:imdb/train", "hub:o/n", "hub:", "hub:o/n/", "hub:o/n:/train", "hub:a/b/c/d"]
)
def test_malformed_hub_specs(monkeypatch: pytest.MonkeyPatch, spec: str) -> None:
    monkeypatch.setitem(sys.modules, "datasets", Hub(ROWS))
    assert "write hub:owner/name/SPLIT" in fault(spec)


def test_hub_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    def with_error(error: Exception) -> None:
        monkeypatch.setitem(sys.modules, "datasets", Hub([], error))

    class OfflineModeIsEnabledError(Exception):
        pass

    for error in (ConnectionError("x"), OfflineModeIsEnabledError("x"), TimeoutError()):
        with_error(error)
        assert "no network to read hub:o/n/train" in fault("hub:o/n/train", ResourceError)
    wrapped = ValueError("outer")
    wrapped.__cause__ = ConnectionError("inner")
    with_error(wrapped)
    assert "no network" in fault("hub:o/n/train", ResourceError)
    with_error(ValueError("Unknown split 'x'.\nmore"))
    assert "hub:o/n/train cannot be read (Unknown split 'x')" in fault("hub:o/n/train")
    monkeypatch.setitem(sys.modules, "datasets", Hub([]))
    assert "is empty" in fault("hub:o/n/train")


@pytest.mark.parametrize(("module", "name"), [("datasets", "hub:o/n/train"), ("pyarrow", "t.parquet")])
def test_a_missing_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, name: str) -> None:
    spec = name if name.startswith("hub:") else write(tmp_path, name, "x")
    monkeypatch.setitem(sys.modules, module, None)
    assert "pip install 'softprompt[data]'" in fault(spec, ResourceError)
