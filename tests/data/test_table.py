from __future__ import annotations

import datetime
import subprocess
import sys

import pytest

from softprompt.data.table import Table
from softprompt.errors import DataError


def test_the_package_imports_neither_torch_nor_datasets() -> None:
    names = ("table", "sources", "bundled", "splits", "template", "rows")
    code = "".join(f"import softprompt.data.{name}\n" for name in names)
    code += "import sys\nassert not {'torch', 'transformers', 'datasets', 'pyarrow'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_digest_is_fixed_forever() -> None:
    table = Table(({"text": "a é", "label": 1}, {"text": "b", "label": None}), "t")
    assert table.digest == "f0673fb678b8f53df761759fe3ceaefb996bc9b70c86c673b3f8b7a9ef2cc1ec"


def test_digest_ignores_origin_and_column_order_but_not_row_order() -> None:
    one: dict[str, object] = {"a": "1", "b": "2"}
    two: dict[str, object] = {"b": "3", "a": "4"}
    digest = Table((one, two), "x").digest
    assert Table(({"b": "2", "a": "1"}, two), "y").digest == digest
    assert Table((two, one), "x").digest != digest
    assert Table(({"a": "1", "b": 2}, two), "x").digest != digest


def test_digest_takes_any_value() -> None:
    row = {"when": datetime.date(2024, 1, 2), "half": "\ud800", "nan": float("nan"), "nested": [{"a": 1}]}
    assert len(Table((row,), "t").digest) == 64


def test_columns_and_length() -> None:
    table = Table(({"a": 1}, {"b": 1, "a": 2}), "t")
    assert table.columns == ("a", "b")
    assert len(table) == 2


def test_a_missing_column_is_named_with_its_nearest() -> None:
    table = Table(({"text": "a", "label": "b"},), "t.csv")
    with pytest.raises(DataError) as caught:
        table.require_columns(("label", "Txt"))
    assert str(caught.value) == (
        "t.csv: there is no column 'Txt', the columns are text, label; did you mean 'text'?"
    )
    with pytest.raises(DataError, match=r"the columns are text, label\.$"):
        table.require_columns(("question",))
