"""One job: a configuration met with a base, its rows read and its method built, nothing yet trained."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from softprompt.base.matching import Matching
from softprompt.base.model import Base
from softprompt.base.packing import TokenRow
from softprompt.config import Config
from softprompt.data.chat import chat_opening, in_chat
from softprompt.data.rows import Encoded, Scaling
from softprompt.data.splits import split
from softprompt.data.task import Task, load_task
from softprompt.distillation.lessons import Lessons, draw
from softprompt.distillation.teacher import teacher_of, text_of
from softprompt.errors import DataError
from softprompt.evaluation.choices import fitted_scaling
from softprompt.evaluation.doubts import too_few
from softprompt.evaluation.score import Scores, judge, score, target_rows
from softprompt.library.card import DataCard
from softprompt.library.folder import Library, check_base
from softprompt.listener import SILENT, Listener
from softprompt.methods.attended import attention_to
from softprompt.methods.build import Material, build_method
from softprompt.methods.front import parse_front, with_demonstrations
from softprompt.methods.method import Method
from softprompt.methods.text import word_ids
from softprompt.prefix import Front, Prefix
from softprompt.team import ALONE, Team

__all__ = ["Job", "identity_of", "learnt_front", "read_task", "tokens"]


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
        material: what the method was built from.
        lessons: what the teacher answers, if there is one.
        remarks: what the method said when it was built.
        team: the processes that train it together, each of which has prepared the same.
    """

    config: Config
    base: Base
    task: Task
    encoded: Mapping[str, Encoded]
    method: Method
    front_template: str
    material: Material
    lessons: Lessons | None = None
    remarks: tuple[str, ...] = ()
    team: Team = ALONE

    @classmethod
    def prepare(
        cls,
        base: Base,
        config: Config,
        listener: Listener = SILENT,
        *,
        reserve: bool = False,
        team: Team = ALONE,
    ) -> Job:
        """Read the rows and build the method; every fault of the data shows here, before any training.

        Where there is a teacher, it is asked, which takes a while if its answers are not on disk yet.

        Args:
            base: the frozen model.
            config: resolved.
            listener: told how far the teacher is.
            reserve: keep half of the validation rows as test rows where there are none.
            team: the processes that prepare and train it together.
        """
        task, front = read_task(base, config)
        if reserve and "test" not in task.tables:
            held = dict(zip(("validation", "test"), split(task.tables["validation"], 0.5, 0), strict=True))
            task = replace(task, tables={**task.tables, **held})
        if config.data.scale_labels and not task.solved:
            raise DataError("data.scale_labels needs the label of every row, and some have none.")
        encoded = {name: tokens(task, name, base, config) for name in task.tables}
        lessons = None
        if config.teacher is not None:
            with team.leader_first():  # what the teacher answered to the leader, the others find on disk
                lessons = _lessons(base, config, task, encoded, listener)
        readers = _Readers(base, _rows(config, encoded, lessons))
        material = Material(
            demonstrations=lambda count: _solved(task, lessons, count, config.seed),
            artifact=lambda name: learnt_front(name, base, config.output.library),
            label_words=task.template.candidates() if task.template.labels else (),
            seed=config.seed,
            looks=readers.looks,
            matched=readers.matched,
        )
        return replace(cls._built(config, base, task, encoded, front, lessons, material), team=team)

    def with_method(self, config: Config) -> Job:
        """The same rows and answers with another method, or another name."""
        return Job._built(
            config, self.base, self.task, self.encoded, self.front_template, self.lessons, self.material
        )

    @classmethod
    def _built(
        cls,
        config: Config,
        base: Base,
        task: Task,
        encoded: Mapping[str, Encoded],
        front: str,
        lessons: Lessons | None,
        material: Material,
    ) -> Job:
        remarks = list[str]()
        told = replace(material, note=remarks.append)
        method = build_method(config.method.model_copy(update={"front": front}), base, told)
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
        return cls(config, base, task, encoded, method, front, material, lessons, tuple(remarks))

    @property
    def rows(self) -> list[TokenRow]:
        """The training rows; their scored tokens make the loss."""
        return _rows(self.config, self.encoded, self.lessons)

    @property
    def data(self) -> dict[str, DataCard]:
        """What is learnt from and chosen by, the teacher's answers among it."""
        used = {
            name: DataCard(origin=table.origin, rows=len(table), digest=table.digest)
            for name, table in self.task.tables.items()
        }
        if self.lessons is not None:
            count = sum(map(len, self.lessons.rows.values()))
            used["teacher"] = DataCard(
                origin=self.lessons.teacher.about, rows=count, digest=self.lessons.digest
            )
        return used

    @property
    def notes(self) -> tuple[str, ...]:
        """Plain sentences a reader of the results should know."""
        encoded = (note for split in self.encoded.values() for note in split.notes)
        few = too_few(self.encoded["validation"], "validation")
        return tuple(dict.fromkeys((*self.task.notes, *encoded, *few, *self.remarks)))

    @property
    def identity(self) -> str:
        """Names settings, rows and base: what a checkpoint must share to be resumed."""
        digests = {name: about.digest for name, about in self.data.items()}
        return identity_of(self.config.model_dump(mode="json"), digests, self.base.fingerprint)

    def score(self, split: str, progress: Callable[[int, int], None] | None = None) -> Scores:
        """Scores of the method as it stands; where there is a teacher, against that."""
        return self._scored(self.method.base, self.method.front(), split, progress)

    def fitted_scaling(self) -> Scaling:
        """The scale and shift of the labels' scores under which the training rows' labels are likeliest."""
        encoded = self.encoded["train"]
        with torch.no_grad():
            judged = judge(self.method.base, self.method.front(), encoded)
        return fitted_scaling(judged.weights, [e.label for e in encoded.examples if e.label is not None])

    def scaled(self, scaling: Scaling) -> Job:
        """The same job with the labels' scores scaled and shifted."""
        encoded = {name: replace(split, scaling=scaling) for name, split in self.encoded.items()}
        return replace(self, encoded=encoded)

    def score_untuned(self, split: str, progress: Callable[[int, int], None] | None = None) -> Scores:
        """Scores of the bare base behind the same template."""
        if self.lessons is not None:
            return self._scored(self.base, self.lessons.bare, split, progress)
        opening = chat_opening(self.base.render_chat) if self.config.data.chat else ""
        return self._scored(self.base, self.base.embed(self.base.opening(opening)), split, progress)

    def _scored(
        self, base: Base, front: Front, split: str, progress: Callable[[int, int], None] | None
    ) -> Scores:
        """Of a team each process scores its share of the rows; all get the scores of the whole."""
        if self.lessons is None:
            return score(base, front, self.encoded[split], progress, self.team)
        found = self.lessons.score(base, front, split, progress) if self.team.leads else None
        return Scores.from_json(self.team.told(found and found.to_json()))


class _Readers:
    """Training rows as readers of a prefix; each is shown to them once, whatever is then asked of them."""

    def __init__(self, base: Base, rows: Sequence[TokenRow]) -> None:
        self._base, self._rows = base, rows
        self._looks: dict[str, Tensor] = {}
        self._matching: dict[str, Matching] = {}

    def looks(self, prefix: Prefix) -> Tensor:
        """How much they look at its positions, [L, P]."""
        if prefix.digest not in self._looks:
            self._looks[prefix.digest] = attention_to(self._base, prefix, self._rows)
        return self._looks[prefix.digest]

    def matched(self, prefix: Prefix, count: int) -> Prefix:
        """So many positions behind which they attend as behind the whole prefix."""
        if prefix.digest not in self._matching:
            self._matching = {prefix.digest: Matching(self._base, prefix, self._rows)}
        return self._matching[prefix.digest].to(count)


def identity_of(settings: Mapping[str, Any], digests: Mapping[str, str], fingerprint: str) -> str:
    """A hash of settings, rows by split and base; where results go does not count."""
    counting = {section: values for section, values in settings.items() if section != "output"}
    whole = json.dumps([counting, dict(digests), fingerprint], sort_keys=True)
    return hashlib.sha256(whole.encode()).hexdigest()


def read_task(base: Base, config: Config) -> tuple[Task, str]:
    """The rows a configuration names, and its front, both with the marks of a chat if they stand in one."""
    front, task_input = config.method.front, config.data.input
    if config.teacher is not None:
        front = front or text_of(config.teacher) or ""
    if config.data.chat:
        front, task_input = in_chat(front, task_input, base.render_chat)
    draw = config.seed if config.data.draw is None else config.data.draw
    unsolved = config.teacher is not None
    task = load_task(config.data, draw, input=task_input, unsolved=unsolved, render=base.render_chat)
    if config.data.long_targets == "drop" and task.solved:
        most, end = config.data.max_tokens, _end(base, config)
        task = task.without_long_targets(base.encode, max_tokens=most, end=end)
    return task, front


def tokens(task: Task, split: str, base: Base, config: Config) -> Encoded:
    """One split of a task as the base reads it."""
    return task.encode(split, base.encode, max_tokens=config.data.max_tokens, end=_end(base, config))


def _end(base: Base, config: Config) -> tuple[int, ...]:
    return (base.end_id,) if config.data.ends and base.end_id is not None else ()


def learnt_front(name: str, base: Base, library: str | Path) -> Front:
    """The learnt front of another prompt, to start from."""
    artifact = Library(library).load(name)
    if artifact.card is not None:
        check_base(artifact, base)
    return artifact.front(base)


def _rows(config: Config, encoded: Mapping[str, Encoded], lessons: Lessons | None) -> list[TokenRow]:
    if lessons is not None:
        return list(lessons.rows["train"])
    return target_rows(encoded["train"].examples, whole_text=config.data.loss_on == "text")


def _solved(task: Task, lessons: Lessons | None, count: int, seed: int) -> str:
    """So many solved rows as text; where rows have no answers, solved by the teacher."""
    if task.solved:
        return task.demonstrations(count, seed)
    if lessons is None:
        raise DataError(
            f"The front asks for {count} solved training rows, but not every row has its answer; give rows "
            "with answers, or write the demonstrations into the text."
        )
    pairs = zip(task.tables["train"].rows[:count], lessons.answers["train"], strict=False)
    return "".join(f"{task.template.input_text(row)}{answer.text}\n\n" for row, answer in pairs)


def _lessons(
    base: Base, config: Config, task: Task, encoded: Mapping[str, Encoded], listener: Listener
) -> Lessons:
    """What the teacher answers to the rows' inputs."""
    assert config.teacher is not None
    text, bare = text_of(config.teacher) or "", ""
    if config.data.chat:
        text, bare = (in_chat(front, config.data.input, base.render_chat)[0] for front in (text, bare))
    parts, nothing = (
        with_demonstrations(parse_front(front), lambda count: _solved(task, None, count, config.seed))
        for front in (text, bare)
    )
    teacher = teacher_of(config.teacher, base, parts, config.output.library)
    return draw(
        teacher,
        base.embed(word_ids(base, nothing)),
        encoded,
        config.teacher,
        Path(config.output.runs) / "answers",
        end=_end(base, config),
        seed=config.seed,
        progress=listener.progress,
    )
