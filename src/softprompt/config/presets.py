"""Settings of ``[data]`` for tasks known by name: templates, labels and sources; knows no file and no row."""

from __future__ import annotations

from typing import Any

__all__ = ["ANSWERS", "TASKS", "preset"]

_YES_NO = {"false": "no", "true": "yes"}

_SUPERGLUE: dict[str, dict[str, Any]] = {
    "boolq": {
        "input": "{passage}\nQuestion: {question}?\nAnswer:",
        "target": " {label}",
        "labels": _YES_NO,
    },
    "cb": {
        "input": "{premise}\nQuestion: {hypothesis}. True, False, or Neither?\nAnswer:",
        "target": " {label}",
        "labels": {"entailment": "True", "contradiction": "False", "neutral": "Neither"},
    },
    "copa": {
        "input": "{statement} {link}",
        "target": " {choice}",
        "choices": "choices",
        "label_column": "label",
    },
    "multirc": {
        "input": "{passage}\nQuestion: {question}\nProposed answer: {answer}\nIs it right?",
        "target": " {label}",
        "labels": _YES_NO,
        "group": "passage",
    },
    "record": {
        "input": "{passage}\nFill in the blank: {query}\nThe blank is",
        "target": " {choice}",
        "choices": "entities",
        "label_column": "answers",
        "end_of_text": True,
        "group": "passage",
    },
    "rte": {
        "input": "{premise}\nQuestion: {hypothesis} True or False?\nAnswer:",
        "target": " {label}",
        "labels": {"entailment": "True", "not_entailment": "False"},
    },
    "wic": {
        "input": "{sentence1}\n{sentence2}\nQuestion: Does {word} mean the same in both sentences?\nAnswer:",
        "target": " {label}",
        "labels": _YES_NO,
    },
    "wsc": {
        "input": '{text}\nQuestion: In this text, does "{span2_text}" stand for "{span1_text}"?\nAnswer:',
        "target": " {label}",
        "labels": _YES_NO,
    },
}

ANSWERS: dict[str, tuple[str, ...]] = {
    name: tuple(settings["labels"]) for name, settings in _SUPERGLUE.items() if "labels" in settings
}
"""The labels of each SuperGLUE task (Wang et al. 2019), in order; none for those with choices."""

TASKS = tuple(f"superglue:{name}" for name in _SUPERGLUE)
"""Every task that has settings of its own."""


def preset(task: str) -> dict[str, Any]:
    """The settings of a task of ``TASKS``.

    Its rows are the official ones. The official test rows have no labels, so the validation rows stand
    in for them, to be read once, and rows of train are held back to choose by.
    """
    sources = {"train": f"{task}/train", "test": f"{task}/validation"}
    return sources | _SUPERGLUE[task.removeprefix("superglue:")]
