"""Tasks of lm_eval run on a prompt: knows how to call lm_eval and how to say what went wrong there."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lm_eval import simple_evaluate

from softprompt.errors import ConfigError, DataError, SoftpromptError
from softprompt.harness import model as model_file
from softprompt.harness.model import SoftpromptLM
from softprompt.harness.opening import Subject
from softprompt.harness.tasks import check_task, first_line, load_tasks

__all__ = ["evaluate", "measures", "plainly"]


def evaluate(
    model: SoftpromptLM | Subject,
    tasks: Sequence[str],
    *,
    include_path: str | Path | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    gen_kwargs: Mapping[str, Any] | None = None,
    apply_chat_template: bool = False,
    log_samples: bool = False,
    bootstrap_iters: int = 1000,
) -> dict[str, Any]:
    """Run tasks of lm_eval, looked over before the model runs, and return what its ``simple_evaluate`` does.

    Args:
        model: a prompt, a base with a prefix, a bare base, or a ``SoftpromptLM`` made from one with options.
        tasks: names of tasks, groups or tags, or YAML files.
        include_path: a folder with more task files. They may run Python; its author must be trusted.
        limit: the first rows of each task only.
        num_fewshot: solved examples before each row, where the task leaves that open.
        gen_kwargs: generation options over those of the tasks.
        apply_chat_template: put every text into the base's chat template.
        log_samples: keep every row's text and answers under ``samples``.
        bootstrap_iters: draws behind the standard errors that have no formula.

    Raises:
        ConfigError: an unknown task or option, or a task that needs more than text.
        DataError: a task's file, rows or right answers are wrong.
        BaseModelError: the base cannot do what the task asks.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"limit must be at least 1, got {limit}.")
    lm = model if isinstance(model, SoftpromptLM) else SoftpromptLM(model)
    loaded, manager = load_tasks(tasks, include_path)
    for name, task in loaded["tasks"].items():
        check_task(name, task, limit)
    with plainly(f"The task {' and '.join(tasks)}"):
        found: dict[str, Any] = simple_evaluate(
            model=lm,
            tasks=_outermost(loaded),
            task_manager=manager,
            limit=limit,
            num_fewshot=num_fewshot,
            gen_kwargs=dict(gen_kwargs) if gen_kwargs else None,
            apply_chat_template=apply_chat_template,
            fewshot_as_multiturn=apply_chat_template,
            log_samples=log_samples,
            bootstrap_iters=bootstrap_iters,
        )
    return found


def measures(results: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """The numbers of ``evaluate`` by task: each metric under its own name, and its standard error.

    A metric that was taken behind a named filter keeps the filter's name: ``exact_match,strict``.
    """
    plain = {}
    for task, values in results["results"].items():
        numbers = {k: v for k, v in values.items() if isinstance(v, int | float) and "," in k}
        plain[task] = {name.removesuffix(",none"): float(value) for name, value in numbers.items()}
    return plain


@contextmanager
def plainly(what: str) -> Iterator[None]:
    """Turn an error of lm_eval or of a task into one sentence; faults of softprompt stay as they are."""
    try:
        yield
    except SoftpromptError:
        raise
    except Exception as error:
        if any(frame.filename == model_file.__file__ for frame in traceback.extract_tb(error.__traceback__)):
            raise
        raise DataError(f"{what} could not be run by lm_eval ({first_line(error)}).") from error


def _outermost(loaded: Mapping[str, Any]) -> list[Any]:
    """Groups and tasks that are in no other group; lm_eval finds the rest inside them."""
    inside = {child for children in loaded["group_map"].values() for child in children}
    everything = {**loaded["groups"], **loaded["tasks"]}
    return [thing for name, thing in everything.items() if name not in inside]
