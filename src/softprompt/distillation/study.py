"""Questions about a text that the base makes up itself: it reads a piece and goes on with a question.

It knows a base, a text in tokens and a file; it does not know who answers. Five kinds of questions are asked
for in turn, as in self-study (Eyuboglu et al. 2025, "Cartridges"): facts, structure, summary, use and doubt.
The file has a line for each question, to be read and mended; one that lies there already is gone on from.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from softprompt.atomic import plain_disk_errors
from softprompt.base.model import Base
from softprompt.distillation.lessons import Progress
from softprompt.errors import DataError
from softprompt.evaluation.metrics import normalised
from softprompt.generation.offline import generate
from softprompt.generation.request import GenerateRequest
from softprompt.generation.sampler import Sampling

__all__ = ["study"]

CHUNK = 256
"""Tokens of the text that one question is about."""

_LEADS = (
    ("facts", "A question about a detail in the text above.\nQuestion: Who"),
    ("facts", "A question about a detail in the text above.\nQuestion: When"),
    ("facts", "A question about a detail in the text above.\nQuestion: How many"),
    ("facts", "A question about a detail in the text above.\nQuestion: What"),
    ("structure", "A question about how the text above is built.\nQuestion: Which part"),
    ("summary", "A request to sum up what the text above says about one thing.\nRequest: Summarise"),
    ("use", "A question of somebody who needs the text above in daily life.\nQuestion: How can I"),
    ("use", "A question of somebody who needs the text above in daily life.\nQuestion: May I"),
    ("doubt", "A question that doubts something in the text above.\nQuestion: Is it true that"),
    ("doubt", "A question that doubts something in the text above.\nQuestion: Why"),
)
_TOGETHER = 32
_SHORTEST, _LONGEST = 3, 40
"""Words of a question that is worth asking."""


def study(
    base: Base,
    ids: Sequence[int],
    count: int,
    field: str,
    path: Path,
    *,
    seed: int = 0,
    progress: Progress = lambda what, done, total: None,
) -> int:
    """Write questions about a text to a file, until it holds ``count`` different ones.

    Args:
        base: who asks.
        ids: the text.
        count: how many questions.
        field: the column they stand in.
        path: the file; what is in it already counts.
        seed: of the draws.
        progress: told (what, done, total).

    Returns:
        how many the file holds, which is fewer where the base has run out of questions.

    Raises:
        DataError: it made none.
        ResourceError: the disk refuses.
    """
    chunks = [ids[at : at + CHUNK] for at in range(0, len(ids), CHUNK)]
    with plain_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        known = _known(path, field)
        tried = known[-1][1] + 1 if known else 0
        seen = {normalised(text) for text, _ in known}
        with torch.no_grad(), path.open("a", encoding="utf-8") as file:
            while len(seen) < count and tried < 6 * count + len(_LEADS):
                numbers = range(tried, tried + min(_TOGETHER, count - len(seen) + 4))
                for number, text in zip(numbers, _asked(base, chunks, numbers, seed), strict=True):
                    short = normalised(text)
                    if short in seen or not _SHORTEST <= len(text.split()) <= _LONGEST or len(seen) >= count:
                        continue
                    seen.add(short)
                    values = {field: text, "kind": _lead(number, len(chunks))[0], "try": number}
                    file.write(json.dumps(values, ensure_ascii=False) + "\n")
                file.flush()
                tried = numbers.stop
                progress("questions", len(seen), count)
    if not seen:
        raise DataError("The base made no question about the text; give rows of your own in data.train.")
    return len(seen)


def _known(path: Path, field: str) -> list[tuple[str, int]]:
    """Questions in a file and the try each is of; a line cut off by a kill ends them and is taken away."""
    found: list[tuple[str, int]] = []
    if not path.exists():
        return found
    whole = ""
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            values = json.loads(line)
            found.append((str(values[field]), int(values.get("try", 0))))
        except (ValueError, KeyError, TypeError):
            break
        whole += line
    path.write_text(whole, encoding="utf-8")
    return found


def _asked(base: Base, chunks: Sequence[Sequence[int]], numbers: Sequence[int], seed: int) -> list[str]:
    """The questions of some tries, each about the next piece of the text."""
    prefixes = {}
    requests = []
    for number in numbers:
        place = number % len(chunks)
        if place not in prefixes:
            prefixes[place] = base.prefill(base.embed([*base.start_ids, *chunks[place]])).detached()
        _, lead = _lead(number, len(chunks))
        requests.append(
            GenerateRequest(
                model=base,
                prefix=prefixes[place],
                ids=tuple(base.encode(f"\n\n{lead}")),
                sampling=Sampling(max_new_tokens=40, temperature=0.8, top_p=0.95, stop=("\n",), seed=seed),
                row=number,
            )
        )
    texts = generate(requests)
    openings = [_lead(number, len(chunks))[1].rpartition(": ")[2] for number in numbers]
    return [opening + text.rstrip() for opening, text in zip(openings, texts, strict=True)]


def _lead(number: int, chunks: int) -> tuple[str, str]:
    """The kind of a try and how it is asked for; moved on by one whenever the text has been gone through."""
    return _LEADS[(number + number // chunks) % len(_LEADS)]
