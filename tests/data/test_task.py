"""The splits of a job: read, cut, held apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from softprompt.config import DataConfig
from softprompt.data.task import load_task, refuse_retrieval
from softprompt.errors import ConfigError, DataError


def write(path: Path, count: int, first: int = 0) -> str:
    rows = ({"text": f"row {i}", "label": "ab"[i % 2]} for i in range(first, first + count))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def config(tmp_path: Path, **options: Any) -> DataConfig:
    sources = {"train": write(tmp_path / "train.jsonl", 20)} | options
    return DataConfig(input="T: {text}\nL:", target=" {label}", labels=["a", "b"], **sources)


def test_validation_is_held_back_when_none_is_named(tmp_path: Path) -> None:
    task = load_task(config(tmp_path, validation_fraction=0.25), seed=3)
    assert {name: len(table) for name, table in task.tables.items()} == {"train": 15, "validation": 5}
    texts = [row["text"] for table in task.tables.values() for row in table.rows]
    assert len(set(texts)) == 20
    assert load_task(config(tmp_path, validation_fraction=0.25), seed=3).tables == task.tables
    assert load_task(config(tmp_path, validation_fraction=0.25), seed=4).tables != task.tables


def test_subsets_are_stratified(tmp_path: Path) -> None:
    task = load_task(config(tmp_path, validation=write(tmp_path / "v.jsonl", 8, 50), train_rows=6), seed=0)
    assert sorted(str(row["label"]) for row in task.tables["train"].rows) == ["a"] * 3 + ["b"] * 3


def test_rows_in_two_splits_are_told(tmp_path: Path) -> None:
    task = load_task(config(tmp_path, validation=write(tmp_path / "v.jsonl", 8, 17)), seed=0)
    assert "3 of 8 validation rows have the input of a training row." in task.notes


def test_rows_without_an_input_are_not_told_to_be_in_two_splits(tmp_path: Path) -> None:
    for text, input in (("", "{text}"), (" ", "{text}"), ("x", "")):
        rows = "".join(f"{json.dumps({'text': text, 'label': f'saying {i}'})}\n" for i in range(12))
        (tmp_path / "empty.jsonl").write_text(rows, encoding="utf-8")
        options = {
            "train": str(tmp_path / "empty.jsonl"),
            "input": input,
            "target": "{label}",
            "labels": None,
        }
        task = load_task(config(tmp_path).model_copy(update=options), seed=0)
        assert not [note for note in task.notes if "input of a training row" in note]


def test_a_fault_names_the_line_of_the_file_through_every_cut(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    lines = [f"row {i},{'ab'[i % 2]}" for i in range(40)]
    path.write_text("\n".join(["text,label", *lines]), encoding="utf-8")
    for options in ({}, {"train_rows": 9, "validation_rows": 5}, {"group": "text"}):
        task = load_task(config(tmp_path, train=str(path)).model_copy(update=options), seed=3)
        for table in task.tables.values():
            for number, row in enumerate(table.rows):
                line = int(str(row["text"]).removeprefix("row ")) + 2  # the header is the first
                assert table.place(number) == f"{path}, line {line}"


def test_faults_of_all_parts_are_counted_together_and_a_misspelt_label_has_its_nearest(
    tmp_path: Path,
) -> None:
    rows = [{"text": f"row {i}", "label": ("pos", "neg", "negg")[(i > 9) + i % 2]} for i in range(12)]
    for name, part in (("train", rows), ("validation", rows[8:]), ("test", rows[9:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in part))
    sources: dict[str, Any] = {
        name: str(tmp_path / f"{name}.jsonl") for name in ("train", "validation", "test")
    }
    with pytest.raises(DataError) as caught:
        load_task(DataConfig(input="{text}", target=" {label}", labels=["pos", "neg"], **sources), 0)
    assert str(caught.value) == (
        f"{tmp_path}/train.jsonl, line 12 and 2 more with a fault: the label 'negg' in column 'label' is not "
        "one of 'pos', 'neg'; did you mean 'neg'?"
    )


def test_rows_with_long_targets_are_left_out_of_every_part(tmp_path: Path) -> None:
    rows = [{"q": f"question {i}", "a": "b" * (90 if i % 4 == 0 else 9)} for i in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    data = DataConfig(input="{q}:", target=" {a}", train=str(tmp_path / "rows.jsonl"), long_targets="drop")
    task = load_task(data, 0)
    kept = task.without_long_targets(letters, max_tokens=60, end=(0,))
    assert sorted(str(row["q"]) for table in kept.tables.values() for row in table.rows) == sorted(
        str(row["q"]) for i, row in enumerate(rows) if i % 4
    )
    gone = {name: len(table) - len(kept.tables[name]) for name, table in task.tables.items()}
    assert [note for note in kept.notes if "were left out" in note] == [
        f"{count} of {len(task.tables[name])} {name} rows were left out, because their targets are too long "
        "for 60 tokens."
        for name, count in gone.items()
        if count
    ]
    for name in kept.tables:
        kept.encode(name, letters, max_tokens=60, end=(0,))
    with pytest.raises(DataError, match=r"data\.long_targets"):
        task.encode("train", letters, max_tokens=60, end=(0,))
    cut = load_task(data.model_copy(update={"long_targets": "cut"}), 0)
    assert "lost their end" in cut.encode("train", letters, max_tokens=60, end=(0,)).notes[-1]


def test_a_separator_may_be_set(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text,more:label\n" + "".join(f"a, b {i}:x\n" for i in range(5)))
    data = DataConfig(input="{text,more}", target=" {label}", train=str(tmp_path / "rows.csv"), separator=":")
    assert load_task(data, 0).tables["train"].columns == ("text,more", "label")
    with pytest.raises(DataError, match="there is no column"):
        load_task(data.model_copy(update={"separator": None}), 0)


def test_demonstrations_are_solved_training_rows(tmp_path: Path) -> None:
    text = load_task(config(tmp_path), seed=0).demonstrations(2, seed=1)
    assert text.count("T: row ") == 2
    assert "\nL: a\n\n" in text
    assert text.endswith("\n\n")


def test_faults(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.train is missing"):
        load_task(config(tmp_path).model_copy(update={"train": None}), 0)
    with pytest.raises(DataError, match="100"):
        load_task(config(tmp_path, train_rows=100), 0)
    with pytest.raises(DataError, match="no column 'txt'"):
        load_task(config(tmp_path).model_copy(update={"input": "{txt}"}), 0)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_label_without_rows_is_told(tmp_path: Path, split: str) -> None:
    sources = {
        name: write(tmp_path / f"{name}-rows.jsonl", 6, 10 * i)
        for i, name in enumerate(("train", "validation", "test"))
    }
    loaded = load_task(config(tmp_path, **sources), seed=0)
    assert loaded.notes == ()
    labels = ["a", "b", "c"]
    more = write(tmp_path / "more.jsonl", 6, 50)
    with Path(more).open("a") as file:
        file.write('{"text": "a row", "label": "c"}\n')
    settings = config(tmp_path, **dict.fromkeys(sources, more) | {split: sources[split]})
    (note,) = (n for n in load_task(settings.model_copy(update={"labels": labels}), 0).notes if "No " in n)
    follows = "what is learnt" if split == "train" else "its scores say nothing"
    assert note.startswith(f"No {split} row has the label 'c', so {follows}")


def letters(text: str) -> list[int]:
    return [ord(letter) for letter in text]


def text_of(ids: tuple[int, ...]) -> str:
    return "".join(map(chr, ids))


def retrieving(tmp_path: Path, **options: Any) -> DataConfig:
    animals = [
        ("cat sat", "a"),
        ("cat sat down", "a"),
        ("dog ran", "b"),
        ("dog ran off", "b"),
        ("cat sat", "a"),
    ]
    for name, rows in (("t", animals), ("v", [("a dog ran", "b"), ("the cat", "a")])):
        lines = (json.dumps({"text": text, "label": label, "part": text[:3]}) for text, label in rows)
        (tmp_path / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines))
    sources = {"train": str(tmp_path / "t.jsonl"), "validation": str(tmp_path / "v.jsonl")}
    return config(tmp_path, **sources | {"retrieve": 2} | options)


def test_similar_training_rows_stand_solved_before_a_row_the_most_similar_last(tmp_path: Path) -> None:
    loaded = load_task(retrieving(tmp_path), 0)
    encoded = loaded.encode("validation", letters, max_tokens=99, end=())
    assert [text_of(e.input_ids) for e in encoded.examples] == [
        "T: dog ran off\nL: b\n\nT: dog ran\nL: b\n\nT: a dog ran\nL:",
        "T: cat sat\nL: a\n\nT: cat sat\nL: a\n\nT: the cat\nL:",
    ]
    assert [e.target_ids for e in encoded.examples] == [tuple(letters(" b")), tuple(letters(" a"))]


def test_a_training_row_is_never_shown_itself(tmp_path: Path) -> None:
    train = load_task(retrieving(tmp_path), 0).encode("train", letters, max_tokens=99, end=())
    for place in (0, 4):  # the same row twice, so neither is shown to the other
        shown = text_of(train.examples[place].input_ids)
        assert shown.count("T: cat sat\n") == 1
        assert shown.endswith("T: cat sat down\nL: a\n\nT: cat sat\nL:")
    apart = load_task(retrieving(tmp_path, group="part", retrieve=3), 0)
    shown = text_of(apart.encode("train", letters, max_tokens=99, end=()).examples[0].input_ids)
    assert shown.count("cat") == 1
    assert shown.count("dog") == 2


def test_demonstrations_that_do_not_fit_are_left_out_whole(tmp_path: Path) -> None:
    loaded = load_task(retrieving(tmp_path), 0)
    row = len("T: a dog ran\nL: b")
    for room in range(len("T: dog ran off\nL: b\n\n") + len("T: dog ran\nL: b\n\n") + 2):
        encoded = loaded.encode("validation", letters, max_tokens=row + room, end=())
        ids = encoded.examples[0].input_ids
        assert text_of(ids).endswith("T: a dog ran\nL:")
        assert len(ids) + 2 <= row + room
        pieces = text_of(ids).split("\n\n")
        assert all(piece in ("T: dog ran\nL: b", "T: dog ran off\nL: b") for piece in pieces[:-1])
        assert encoded.truncated == 0
        if len(pieces) < 3:
            assert any("did not fit into" in note for note in encoded.notes)


def test_a_saved_prompt_cannot_retrieve(tmp_path: Path) -> None:
    refuse_retrieval(config(tmp_path))
    with pytest.raises(ConfigError, match=r"data\.retrieve is for softprompt compare only"):
        refuse_retrieval(retrieving(tmp_path))


def test_calibration_reads_the_input_without_its_content(tmp_path: Path) -> None:
    loaded = load_task(retrieving(tmp_path, retrieve=1, calibrate=True), 0)
    example = loaded.encode("validation", letters, max_tokens=99, end=()).examples[0]
    assert text_of(example.neutral_ids or ()) == "T: dog ran\nL: b\n\nT: N/A\nL:"
    plain = load_task(config(tmp_path), 0).encode("validation", letters, max_tokens=99, end=())
    assert all(example.neutral_ids is None for example in plain.examples)


def messy(tmp_path: Path, rows: list[tuple[str | None, str | None]], **options: Any) -> DataConfig:
    path = tmp_path / "messy.jsonl"
    path.write_text(
        "".join(json.dumps({"id": i, "text": t, "label": x}) + "\n" for i, (t, x) in enumerate(rows))
    )
    return DataConfig(input="{text}", target=" {label}", train=str(path), **options)


MESSY: list[tuple[str | None, str | None]] = [
    *((f"row {i}", "ab"[i % 2]) for i in range(20)),
    (" ", None),
    ("odd", "A"),
    ("", ""),
]


def test_labels_are_found_in_the_training_rows_but_for_other_spellings(tmp_path: Path) -> None:
    task = load_task(messy(tmp_path, MESSY, labels="auto"), 0)
    assert list(task.template.labels or ()) == ["A", "a", "b"]
    joined = load_task(messy(tmp_path, MESSY, labels="auto", label_aliases={"A": "a"}), 0)
    assert list(joined.template.labels or ()) == ["a", "b"]
    rows = [row for table in joined.tables.values() for row in table.rows]
    assert {row["label"] for row in rows if row["text"] == "odd"} == {"a"}
    assert any("'A' (1 row) looks like 'a' (10 rows)" in note for note in task.notes)
    assert not any("looks like" in note for note in joined.notes)


def test_empty_rows_are_left_out_and_said_so(tmp_path: Path) -> None:
    task = load_task(messy(tmp_path, MESSY, labels=["a", "b", "A"]), 0)
    assert sum(map(len, task.tables.values())) == 21
    path = tmp_path / "messy.jsonl"
    assert f"2 empty rows were left out of {path}, the first at {path}, line 21." in task.notes
    half = messy(tmp_path, [*MESSY, ("no label", None)], labels="auto")
    with pytest.raises(DataError, match="line 24 and 1 more with a fault: the column 'label' has no value"):
        load_task(half.model_copy(update={"validation": half.train}), 0)


def test_a_free_text_with_few_values_asks_whether_labels_were_meant(tmp_path: Path) -> None:
    def asked(rows: list[tuple[str | None, str | None]]) -> bool:
        return any('set data.labels = "auto"' in note for note in load_task(messy(tmp_path, rows), 0).notes)

    assert asked(MESSY[:20])
    assert not asked([(f"row {i}", f"answer {i // 2}") for i in range(20)])


def test_rows_without_input_raise_no_alarm(tmp_path: Path) -> None:
    quotes = messy(tmp_path, [("", f"word {i}") for i in range(20)])
    assert not load_task(quotes.model_copy(update={"input": ""}), 0).notes
