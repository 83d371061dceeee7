"""SuperGLUE (Wang et al. 2019): knows where its rows lie and how they become plain columns, not their use.

Rows come in the official JSONL files or, much alike, from the hub. They differ in small things: labels are
words or numbers, MultiRC and ReCoRD nested or flat, ``val`` or ``validation``. What comes out is the same.
A row without an answer, as in the official test files, has ``None`` for it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from softprompt.config.presets import ANSWERS, TASKS
from softprompt.config_io import nearest
from softprompt.data.table import Row, Table
from softprompt.errors import DataError

__all__ = ["FOLDER", "HUB", "NAMES", "flatten", "locate"]

FOLDER = "SOFTPROMPT_SUPERGLUE"
"""The environment variable that names the folder of the official files."""
HUB = "aps/super_glue"
"""The repository on the hub that is read where there is no folder."""
NAMES = tuple(task.removeprefix("superglue:") for task in TASKS)

_SPLITS = {"train": ("train",), "validation": ("validation", "val"), "test": ("test",)}
_OFFICIAL = {"boolq": "BoolQ", "multirc": "MultiRC", "record": "ReCoRD", "wic": "WiC"}
_LINKS = {"cause": "because", "effect": "so"}
_BLANK = "_____"

_Rows = Iterator[dict[str, object]]


def locate(spec: str, base_dir: Path | None = None) -> tuple[str, str]:
    """Return the task that ``superglue:TASK/SPLIT[@FOLDER]`` names, and the source its rows are read from.

    The folder, or else that of ``SOFTPROMPT_SUPERGLUE``, holds ``cb/train.jsonl``, ``CB/train.jsonl`` or
    ``superglue_cb/train.jsonl``, or is the one of the task itself. Without a folder the hub is read.

    Raises:
        DataError: no such task or split, or its file is not in the folder.
    """
    name, _, folder = spec.removeprefix("superglue:").partition("@")
    task, _, split = name.partition("/")
    if task not in NAMES or split not in _SPLITS:
        near = nearest(task, NAMES)
        hint = f" Did you mean {near}?" if near and near != task else ""
        raise DataError(
            f"There is no SuperGLUE data {name!r}: the tasks are {', '.join(NAMES)}, the splits "
            f"{', '.join(_SPLITS)}, so write for example superglue:cb/train.{hint}"
        )
    if folder:
        return task, _file((base_dir or Path()) / Path(folder).expanduser(), task, split)
    if os.environ.get(FOLDER):
        return task, _file(Path(os.environ[FOLDER]).expanduser(), task, split)
    return task, f"hub:{HUB}:{task}/{split}"


def _file(folder: Path, task: str, split: str) -> str:
    within = (task, _OFFICIAL.get(task, task.upper()), f"superglue_{task}", "")
    for place in within:
        for name in _SPLITS[split]:
            path = folder / place / f"{name}.jsonl"
            if path.is_file():
                return str(path.absolute())
    raise DataError(
        f"There is no {split} file of SuperGLUE's {task} in {folder}: it should be "
        f"{folder / task / f'{split}.jsonl'}."
    )


def flatten(task: str, table: Table) -> Table:
    """Make plain columns of the official rows of a task.

    ====================  ==================================================================================
    boolq                 passage, question, label (false, true)
    cb, rte               premise, hypothesis, label (its official word)
    copa                  premise, choice1, choice2, question, label (0, 1); statement and link, which begin
                          the sentence that each of choices ends
    multirc               one row for each answer option: passage, question, answer, label (false, true),
                          question_id, which its options share
    record                one row for each query: passage, query with a blank, entities, answers
    wic                   word, sentence1, sentence2, label (false, true)
    wsc                   text, span1_text, span2_text, label (false, true)
    ====================  ==================================================================================

    Raises:
        DataError: a row is not of this task.
    """
    rows: list[dict[str, object]] = []
    places: list[str] = []
    for number, row in enumerate(table.rows):
        try:
            rows += _FLAT[task](row, number)
            places += [table.place(number)] * (len(rows) - len(places))
        except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
            raise DataError(
                f"{table.place(number)} is no row of SuperGLUE's {task} ({_said(error)}): use the "
                "official files."
            ) from error
    return Table(tuple(rows), table.origin, tuple(places))


def _said(error: Exception) -> str:
    return f"it has no {error}" if isinstance(error, KeyError) else str(error)


def _plain(task: str, *columns: str) -> Callable[[Row, int], _Rows]:
    """Rows that are flat already: their texts and their label."""

    def rows(row: Row, number: int) -> _Rows:
        yield {column: _text(row[column]) for column in columns} | {"label": _label(task, row)}

    return rows


def _copa(row: Row, number: int) -> _Rows:
    premise, first, second = (_text(row[column]) for column in ("premise", "choice1", "choice2"))
    question, label = _text(row["question"]), row.get("label")
    if question not in _LINKS:
        raise ValueError(f"the question is {question!r}, not cause or effect")
    yield {
        "premise": premise,
        "choice1": first,
        "choice2": second,
        "question": question,
        "statement": premise.rstrip(" ."),
        "link": _LINKS[question],
        "choices": [_continuing(first), _continuing(second)],
        "label": None if label is None or int(str(label)) < 0 else int(str(label)),
    }


def _continuing(sentence: str) -> str:
    """A sentence as the end of another."""
    return sentence if sentence.startswith(("I ", "I'")) else sentence[:1].lower() + sentence[1:]


def _multirc(row: Row, number: int) -> _Rows:
    if "answer" in row:  # as on the hub: an answer option is a row
        place: Any = row.get("idx", {})
        key = (
            f"{place['paragraph']}-{place['question']}" if place else f"{row['paragraph']}-{row['question']}"
        )
        yield _option(row["paragraph"], row["question"], row["answer"], _label("multirc", row), key)
        return
    passage = _mapping(row["passage"])
    for place, question in enumerate(passage["questions"]):
        key = f"{row.get('idx', number)}-{question.get('idx', place)}"
        for answer in question["answers"]:
            label = _label("multirc", answer)
            yield _option(passage["text"], question["question"], answer["text"], label, key)


def _option(
    passage: object, question: object, answer: object, label: str | None, key: str
) -> dict[str, object]:
    return {
        "passage": _text(passage),
        "question": _text(question),
        "answer": _text(answer),
        "label": label,
        "question_id": key,
    }


def _record(row: Row, number: int) -> _Rows:
    if "query" in row:  # as on the hub: a query is a row, spans are cut out already
        yield _query(row["passage"], row["query"], _listed(row["entities"]), row.get("answers"))
        return
    passage = _mapping(row["passage"])
    text = _text(passage["text"])
    # The end of a span is its last letter.
    entities = [text[span["start"] : span["end"] + 1] for span in passage["entities"]]
    for query in _listed(row["qas"]):
        answers = query.get("answers")
        yield _query(text, query["query"], entities, answers and [answer["text"] for answer in answers])


def _query(passage: object, query: object, entities: Iterable[object], answers: object) -> dict[str, object]:
    return {
        "passage": _text(passage).replace("@highlight\n", "- "),
        "query": _text(query).replace("@placeholder", _BLANK),
        "entities": list(dict.fromkeys(_text(entity) for entity in entities)),
        "answers": list(dict.fromkeys(map(_text, _listed(answers)))) if answers else None,
    }


def _wsc(row: Row, number: int) -> _Rows:
    spans = _mapping(row.get("target", row))  # nested in the official files, flat on the hub
    yield {
        "text": _text(row["text"]),
        "span1_text": _text(spans["span1_text"]),
        "span2_text": _text(spans["span2_text"]),
        "label": _label("wsc", row),
    }


def _label(task: str, row: Row) -> str | None:
    """The label's word, from a word, a truth value or the number it has on the hub."""
    value, words = row.get("label"), ANSWERS[task]
    if value is None or value in (-1, ""):
        return None
    if isinstance(value, str) and value.lower() in words:
        return value.lower()
    if isinstance(value, bool | int) and words[:1] == ("false",) and value in (0, 1):
        return words[int(value)]
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(words):
        return words[value]
    raise ValueError(f"its label is {value!r}, not one of {', '.join(words)}")


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"it has {value!r} where a text should be")
    return value


def _mapping(value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"it has {value!r} where an object should be")
    return value


def _listed(value: object) -> Sequence[Any]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"it has {value!r} where a list should be")
    return value


_FLAT: dict[str, Callable[[Row, int], _Rows]] = {
    "boolq": _plain("boolq", "passage", "question"),
    "cb": _plain("cb", "premise", "hypothesis"),
    "copa": _copa,
    "multirc": _multirc,
    "record": _record,
    "rte": _plain("rte", "premise", "hypothesis"),
    "wic": _plain("wic", "word", "sentence1", "sentence2"),
    "wsc": _wsc,
}
