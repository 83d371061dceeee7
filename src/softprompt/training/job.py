"""One job: a configuration met with a base, its rows read and its method built, nothing yet trained."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from softprompt.base.model import Base
from softprompt.config import Config
from softprompt.data.chat import chat_opening, in_chat
from softprompt.data.rows import Encoded
from softprompt.data.task import Task, load_task
from softprompt.errors import ArtifactError, DataError
from softprompt.evaluation.score import Scores, score
from softprompt.library.folder import Library, check_base
from softprompt.library.peft_format import to_front
from softprompt.methods.build import Material, build_method
from softprompt.methods.method import Method
from softprompt.prefix import Prefix

__all__ = ["Job", "identity_of", "learnt_vectors", "read_task", "tokens"]


@dataclass(frozen=True, eq=False)
class Job:
    """A configuration met with a base: everything that is needed to train, nothing yet trained.

    Attributes:
        config: resolved.
        base: the frozen model.
        task: rows and template.
        encoded: rows in tokens, by split.
        method: what will be trained.
        front_template: the front as it will be shown, chat marks included.
        remarks: what the method said when it was built.
    """

    config: Config
    base: Base
    task: Task
    encoded: Mapping[str, Encoded]
    method: Method
    front_template: str
    remarks: tuple[str, ...] = ()

    @classmethod
    def prepare(cls, base: Base, config: Config) -> Job:
        """Read the rows and build the method; every fault of the data shows here, before any training."""
        task, front = read_task(base, config)
        encoded = {name: tokens(task, name, base, config) for name in task.tables}
        remarks = list[str]()
        material = Material(
            demonstrations=lambda count: task.demonstrations(count, config.seed),
            artifact=lambda name: learnt_vectors(name, base, config.output.library),
            label_words=task.template.candidates() if task.template.labels else (),
            seed=config.seed,
            note=remarks.append,
        )
        method = build_method(config.method.model_copy(update={"front": front}), base, material)
        with torch.no_grad():
            built = method.front()
        positions = built.length if isinstance(built, Prefix) else len(built)
        rows = [example for split in encoded.values() for example in split.examples]
        longest = max(len(example.input_ids) + len(example.target_ids) for example in rows)
        room = base.max_positions
        if room is not None and positions + longest > room:
            raise DataError(
                f"The front takes {positions} positions and the longest row {longest}, but {base.name} holds "
                f"{room}; lower data.max_tokens to {max(8, room - positions)} or less."
            )
        return cls(config, base, task, encoded, method, front, tuple(remarks))

    @property
    def notes(self) -> tuple[str, ...]:
        """Plain sentences a reader of the results should know."""
        encoded = (note for split in self.encoded.values() for note in split.notes)
        return tuple(dict.fromkeys((*self.task.notes, *encoded, *self.remarks)))

    @property
    def identity(self) -> str:
        """Names settings, rows and base: what a checkpoint must share to be resumed."""
        digests = {name: table.digest for name, table in self.task.tables.items()}
        return identity_of(self.config.model_dump(mode="json"), digests, self.base.fingerprint)

    def score(self, split: str, progress: Callable[[int, int], None] | None = None) -> Scores:
        """Scores of the method as it stands."""
        return score(self.method.base, self.method.front(), self.encoded[split], progress)

    def score_untuned(self, split: str, progress: Callable[[int, int], None] | None = None) -> Scores:
        """Scores of the bare base behind the same template."""
        opening = chat_opening(self.base.render_chat) if self.config.data.chat else ""
        front = self.base.embed(self.base.opening(opening))
        return score(self.base, front, self.encoded[split], progress)


def identity_of(settings: Mapping[str, Any], digests: Mapping[str, str], fingerprint: str) -> str:
    """A hash of settings, rows by split and base; where results go does not count."""
    counting = {section: values for section, values in settings.items() if section != "output"}
    whole = json.dumps([counting, dict(digests), fingerprint], sort_keys=True)
    return hashlib.sha256(whole.encode()).hexdigest()


def read_task(base: Base, config: Config) -> tuple[Task, str]:
    """The rows a configuration names, and its front, both with the marks of a chat if they stand in one."""
    front, task_input = config.method.front, config.data.input
    if config.data.chat:
        front, task_input = in_chat(front, task_input, base.render_chat)
    draw = config.seed if config.data.draw is None else config.data.draw
    return load_task(config.data, draw, input=task_input), front


def tokens(task: Task, split: str, base: Base, config: Config) -> Encoded:
    """One split of a task as the base reads it."""
    end = (base.end_id,) if config.data.ends and base.end_id is not None else ()
    return task.encode(split, base.encode, max_tokens=config.data.max_tokens, end=end)


def learnt_vectors(name: str, base: Base, library: str | Path) -> Tensor:
    """The learnt front of another prompt, to start from."""
    artifact = Library(library).load(name)
    if artifact.card is not None:
        check_base(artifact, base)
    front = to_front(artifact.learnt, base)
    if isinstance(front, Prefix):
        raise ArtifactError(f"{name} is a KV prefix; a soft prompt can only start from another soft prompt.")
    return front
