"""Tasks of lm_eval, found, loaded and looked over before a model reads them; knows no models."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lm_eval.tasks import TaskManager

from softprompt.config_io import nearest
from softprompt.errors import ConfigError, DataError

__all__ = ["check_task", "first_line", "load_tasks"]

_SHOWN = 10
_FIELD = re.compile(r"\s*\{\{\s*(\w+)\s*\}\}\s*")
"""A template of one field: a row without it is rendered as the word None."""


def load_tasks(names: Sequence[str], include_path: str | Path | None = None) -> tuple[Any, TaskManager]:
    """The tasks by name, group, tag or YAML file, as lm_eval holds them, and the manager that knows them.

    A task file may name Python functions, which are run: ``include_path`` is a folder whose author you trust.

    Raises:
        ConfigError: there is no such task or folder.
        DataError: a task's file or rows cannot be read.
    """
    if not names:
        raise ConfigError("No task was named; name at least one.")
    manager = _manager(names, include_path)
    try:
        return manager.load(list(names)), manager
    except Exception as error:  # whatever a YAML file, a data set or a function of theirs raises
        why = "it has no rows" if isinstance(error, StopIteration) else first_line(error)
        raise DataError(
            f"The task {' and '.join(names)} cannot be loaded ({why}); put its file or its data right."
        ) from error


def check_task(name: str, task: Any, limit: int | None = None) -> None:
    """Look at the first ``limit`` rows before anything is computed.

    lm_eval counts a row without a right answer as wrong; here it is refused.

    Raises:
        ConfigError: a task of a kind that no text model can do, or that runs the code a model writes.
        DataError: a row has no text, no choices or no right answer.
    """
    if getattr(task, "MULTIMODAL", False):
        raise ConfigError(f"The task {name} shows pictures or sounds; softprompt reads text only.")
    if getattr(task, "UNSAFE_CODE", False):
        raise ConfigError(
            f"The task {name} runs code that the model writes; start it with python -m softprompt.harness "
            "--confirm_run_unsafe_code if you mean that."
        )
    number = 0
    try:
        for number, row in enumerate(itertools.islice(task.eval_docs, limit), 1):
            fault = _fault(task, row)
            if fault:
                raise DataError(f"Row {number} of the task {name} {fault}.")
    except DataError:
        raise
    except Exception as error:  # a template or a function of the task
        raise DataError(f"Row {number} of the task {name} does not fit it ({first_line(error)}).") from error


def first_line(error: BaseException) -> str:
    """What an error of lm_eval's says, short enough to stand in a sentence."""
    said = next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
    return f"{type(error).__name__}: {said.strip(chr(34)).rstrip('.')[:300]}"


def _manager(names: Sequence[str], include_path: str | Path | None) -> TaskManager:
    """A manager that knows all the names; lm_eval's own thousands are read only where they are needed."""
    if include_path is not None:
        if not Path(include_path).is_dir():
            raise ConfigError(f"There is no folder {include_path} of tasks; check the path.")
        own = TaskManager(include_path=str(include_path), include_defaults=False)
        if not _unknown(names, own):
            return own
        manager = TaskManager(include_path=str(include_path))
    else:
        manager = TaskManager()
    missing = _unknown(names, manager)
    if missing:
        known = manager.all_tasks if include_path is None else [*own.all_tasks, *manager.all_tasks]
        near = nearest(missing[0], known)
        there = ", ".join(own.all_tasks[:_SHOWN]) if include_path is not None else ""
        hint = f"did you mean {near}?" if near else _where(there, include_path)
        raise ConfigError(f"There is no task {missing[0]!r}; {hint}")
    return manager


def _where(there: str, include_path: str | Path | None) -> str:
    if include_path is None:
        return "lm-eval ls tasks lists those that come with lm_eval, and --include-path adds a folder."
    return f"{include_path} holds {there or 'none that can be read'}."


def _unknown(names: Sequence[str], manager: TaskManager) -> list[str]:
    known = set(manager.all_tasks)
    return [name for name in names if name not in known and not _is_file(name)]


def _is_file(name: str) -> bool:
    return name.endswith((".yaml", ".yml")) and Path(name).is_file()


def _fault(task: Any, row: Any) -> str | None:
    """What is wrong with a row, or nothing. Tasks that score by a function of their own may lack answers."""
    config = task.config
    if getattr(config, "doc_to_target", None) is None or callable(config.process_results):
        return None if callable(getattr(config, "process_results", None)) else "has no right answer"
    field = _FIELD.fullmatch(str(config.doc_to_target))
    gold = None if field and row.get(field[1], "") is None else task.doc_to_target(row)
    if gold is None or gold == [] or (gold == "" and config.output_type != "generate_until"):
        return "has no right answer"
    if config.output_type == "loglikelihood_rolling":
        return None
    text = task.doc_to_text(row)
    if text is None:
        return "has no text"
    if config.doc_to_choice is None:
        return None
    choices = task.doc_to_choice(row)
    if not choices:
        return "has no choices"
    right = text if getattr(task, "multiple_input", 0) else gold
    wrong = [one for one in (right if isinstance(right, list) else [right]) if not _is_choice(one, choices)]
    if not wrong:
        return None
    return f"has the right answer {wrong[0]!r}, which is not one of its {len(choices)} choices"


def _is_choice(answer: Any, choices: Sequence[str]) -> bool:
    return 0 <= answer < len(choices) if isinstance(answer, int) else answer in choices
