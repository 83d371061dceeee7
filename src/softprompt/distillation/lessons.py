"""Questions, a teacher's answers to them, drawn once, and what it expected at every token of those.

It knows encoded rows and a folder; it does not know who learns from them. Answers lie in ``answers.jsonl``, a
line each, which a reader may mend; what was expected lies beside it and follows the answers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from softprompt.atomic import plain_disk_errors, write_bytes
from softprompt.base.model import Base
from softprompt.base.packing import TokenRow
from softprompt.base.targets import TopTokens
from softprompt.config import TeacherConfig
from softprompt.data.rows import Encoded, Ids
from softprompt.distillation.teacher import Teacher
from softprompt.errors import DataError
from softprompt.evaluation.divergence import Divergence, divergence, expectations
from softprompt.evaluation.intervals import bootstrap_ratio
from softprompt.evaluation.score import Scores, judge
from softprompt.generation.offline import generate
from softprompt.generation.request import Event, Finished, GenerateRequest, TextDelta
from softprompt.generation.sampler import Sampling
from softprompt.prefix import Front

__all__ = ["ANSWERS", "Lessons", "TeacherAnswer", "draw"]

ANSWERS = "answers.jsonl"
_TOGETHER = 64
"""So many answers are drawn before they are put on disk."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class TeacherAnswer:
    """What the teacher said to one question: its text, and its tokens to the end that closed it.

    That is the end of the text, or the stop string, of which the text has nothing.
    """

    text: str
    ids: Ids


@dataclass(frozen=True, eq=False)
class Lessons:
    """All that is to be learnt, and to be held against.

    Attributes:
        answers: by split, one a question.
        rows: by split, questions with their answers behind, of which the answers are scored by what the
            teacher expected.
        bare: what stands in front of a question where the text does not.
        teacher: who answered.
        digest: of all answers.
    """

    answers: Mapping[str, Sequence[TeacherAnswer]]
    rows: Mapping[str, Sequence[TokenRow]]
    bare: Front
    teacher: Teacher
    digest: str

    def score(
        self, base: Base, front: Front, split: str, progress: Callable[[int, int], None] | None = None
    ) -> Scores:
        """How far a front is from the teacher; the loss is the divergence in nats a token of the answers."""
        (found,) = divergence(base, [front], self.rows[split], progress)
        return as_scores(found)


def as_scores(found: Divergence) -> Scores:
    """A divergence in the form that training chooses by."""
    interval = bootstrap_ratio(found.nats, found.tokens)
    return Scores(len(found.nats), found.per_token, interval, losses=found.nats, tokens=found.tokens)


def draw(
    teacher: Teacher,
    bare: Front,
    encoded: Mapping[str, Encoded],
    config: TeacherConfig,
    folder: Path,
    *,
    end: Ids = (),
    seed: int = 0,
    progress: Progress = lambda what, done, total: None,
) -> Lessons:
    """Ask the teacher every question, or take from disk what it answered before.

    Args:
        teacher: who answers.
        bare: what stands in front of a question where nothing was learnt.
        encoded: the questions by split; where a row has candidates the likeliest of them is the answer.
        config: how answers are drawn.
        folder: of all teachers' answers; these get one of their own, named after all they depend on.
        end: ids that close an answer which came to its end.
        seed: of the draws.
        progress: told (what, done, total).

    Raises:
        DataError: a question does not fit into the context, or an answer is empty.
        ResourceError: the disk refuses.
    """
    _check_room(teacher, encoded, config)
    identity = _identity(teacher, encoded, config, end, seed)
    folder = folder / identity[:16]
    with plain_disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    answers = _answers(teacher, encoded, config, folder / ANSWERS, end, seed, progress)
    rows = {}
    for split, found in encoded.items():
        pairs = zip(found.examples, answers[split], strict=True)
        whole = [TokenRow(e.input_ids + a.ids, len(e.input_ids)) for e, a in pairs]
        rows[split] = _with_expectations(teacher, whole, config.likeliest, folder / f"{split}.safetensors")
    digest = hashlib.sha256(json.dumps([[a.ids for a in answers[s]] for s in sorted(answers)]).encode())
    return Lessons(answers, rows, bare, teacher, digest.hexdigest())


def _check_room(teacher: Teacher, encoded: Mapping[str, Encoded], config: TeacherConfig) -> None:
    room = teacher.base.max_positions
    longest = max(len(example.input_ids) for found in encoded.values() for example in found.examples)
    needed = teacher.prefix.length + longest + config.max_new_tokens
    if room is not None and needed > room:
        raise DataError(
            f"The text has {teacher.prefix.length:,} positions, the longest question {longest} and an answer "
            f"up to {config.max_new_tokens}, but {teacher.base.name} holds {room:,}; shorten the text, or "
            "lower data.max_tokens or teacher.max_new_tokens."
        )


def _identity(
    teacher: Teacher, encoded: Mapping[str, Encoded], config: TeacherConfig, end: Ids, seed: int
) -> str:
    """Names all that the answers and what was expected at them depend on."""
    questions = {
        split: [[e.input_ids, e.candidates or found.candidate_ids] for e in found.examples]
        for split, found in encoded.items()
    }
    drawn = config.model_dump(exclude={"text", "file", "prompt"})
    return hashlib.sha256(
        json.dumps([teacher.identity, questions, drawn, end, seed], sort_keys=True).encode()
    ).hexdigest()


# Answers ------------------------------------------------------------------------------------------


def _answers(
    teacher: Teacher,
    encoded: Mapping[str, Encoded],
    config: TeacherConfig,
    path: Path,
    end: Ids,
    seed: int,
    progress: Progress,
) -> dict[str, list[TeacherAnswer]]:
    """Those on disk and, in groups that are written as they come, those that are missing there."""
    known = _read(path, teacher.base, config.stop)
    total = sum(len(found.examples) for found in encoded.values())
    if len(known) < total:
        with plain_disk_errors(path), path.open("w", encoding="utf-8") as file:
            file.writelines(_line(key, answer, teacher.base, encoded) for key, answer in known.items())
            for split, found in encoded.items():
                missing = [n for n in range(len(found.examples)) if (split, n) not in known]
                sampling = Sampling(
                    max_new_tokens=config.max_new_tokens,
                    temperature=config.temperature if split == "train" else 0.0,
                    stop=tuple(config.stop),
                    seed=seed,
                    logprobs=0,
                )
                for start in range(0, len(missing), _TOGETHER):
                    group = missing[start : start + _TOGETHER]
                    for number, answer in zip(group, _ask(teacher, found, group, sampling, end), strict=True):
                        known[split, number] = answer
                        file.write(_line((split, number), answer, teacher.base, encoded))
                    file.flush()
                    progress("answers", len(known), total)
    return {
        split: [known[split, number] for number in range(len(found.examples))]
        for split, found in encoded.items()
    }


def _ask(
    teacher: Teacher, encoded: Encoded, numbers: Sequence[int], sampling: Sampling, end: Ids
) -> list[TeacherAnswer]:
    """The teacher's answers to some questions: the likeliest candidate, or what it writes."""
    examples = [encoded.examples[number] for number in numbers]
    if any(map(encoded.candidates, examples)):
        judged = judge(teacher.base, teacher.prefix, replace(encoded, examples=tuple(examples)))
        best = judged.weights.argmax(1).tolist()
        chosen = [encoded.candidates(example)[place] for example, place in zip(examples, best, strict=True)]
        return [TeacherAnswer(teacher.base.decode(candidate), candidate) for candidate in chosen]
    ids: list[list[int]] = [[] for _ in examples]
    ended = [False] * len(examples)

    def tell(number: int, event: Event) -> None:
        if isinstance(event, TextDelta):
            ids[number] += [token.id for token in event.tokens]
        elif isinstance(event, Finished):
            ended[number] = event.reason == "stop"

    requests = [
        GenerateRequest(
            model=teacher.base, prefix=teacher.prefix, ids=e.input_ids, sampling=sampling, row=number
        )
        for number, e in zip(numbers, examples, strict=True)
    ]
    texts = generate(requests, on_event=tell)
    found = []
    for text, tokens, whole in zip(texts, ids, ended, strict=True):
        closed = whole and teacher.base.decode(tokens) == text  # by the model, not by a stop string
        found.append(TeacherAnswer(text, (*tokens, *(end if closed else ()))))
    return found


def _line(key: tuple[str, int], answer: TeacherAnswer, base: Base, encoded: Mapping[str, Encoded]) -> str:
    split, number = key
    question = base.decode(encoded[split].examples[number].input_ids)
    values = {"split": split, "row": number, "question": question, "answer": answer.text, "ids": answer.ids}
    return json.dumps(values, ensure_ascii=False) + "\n"


def _read(path: Path, base: Base, stop: Sequence[str]) -> dict[tuple[str, int], TeacherAnswer]:
    """The answers in a file: tokenised anew where the text was mended, without a line a kill cut off."""
    found: dict[tuple[str, int], TeacherAnswer] = {}
    for line in _lines(path):
        try:
            values: dict[str, Any] = json.loads(line)
            key, text = (str(values["split"]), int(values["row"])), str(values["answer"])
            ids = tuple(map(int, values["ids"]))
        except (ValueError, KeyError, TypeError):
            break
        drawn = base.decode(ids)
        if drawn != text and not any(drawn.startswith(text + closing) for closing in stop):
            end = ids[-1:] if ids[-1:] == (base.end_id,) else ()
            ids = (*base.encode(text), *end)
        found[key] = TeacherAnswer(text, ids)
    return found


def _lines(path: Path) -> Iterator[str]:
    if path.exists():
        with plain_disk_errors(path):
            yield from path.read_text(encoding="utf-8").splitlines()


# What was expected --------------------------------------------------------------------------------


def _with_expectations(teacher: Teacher, rows: Sequence[TokenRow], k: int, path: Path) -> list[TokenRow]:
    """Rows with what the teacher expected at their scored tokens, from disk if it is there."""
    digest = hashlib.sha256(json.dumps([[row.ids, row.scored_from] for row in rows]).encode()).hexdigest()
    whole = _expected_on_disk(path, digest)
    if whole is None:
        whole = TopTokens.joined(expectations(teacher.base, teacher.prefix, rows, k))
        tensors: dict[str, Tensor] = {"ids": whole.ids.to(torch.int32), "probabilities": whole.probabilities}
        write_bytes(path, save(tensors, {"rows": digest}))
    found, at = [], 0
    for row in rows:
        found.append(replace(row, teacher=whole[at : at + row.scored]))
        at += row.scored
    return found


def _expected_on_disk(path: Path, digest: str) -> TopTokens | None:
    """What a file holds of exactly these rows; None if it is missing, damaged or of others."""
    try:
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("rows") != digest:
                return None
            return TopTokens(file.get_tensor("ids").long(), file.get_tensor("probabilities"))
    except (OSError, SafetensorError, KeyError):
        return None
