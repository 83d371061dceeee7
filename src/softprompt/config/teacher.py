"""The settings of ``[teacher]``: what a short prompt is to answer like, and how its answers are drawn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, field_validator, model_validator

from softprompt.config.section import Section
from softprompt.config_io import BrokenRuleError, shown

__all__ = ["ANSWER", "TeacherConfig"]

ANSWER = " {answer}"
"""The target of rows whose answers are the teacher's."""


class TeacherConfig(Section):
    """What the prompt is to answer like: a text the base has read, or a saved prompt."""

    text: str | None = Field(default=None, min_length=1)
    """The text, in which {demos:N} stands for N solved training rows; in a chat it is the system message."""
    file: str | None = Field(default=None, min_length=1)
    """A file with the text, braces and all."""
    prompt: str | None = Field(default=None, min_length=1)
    """A saved prompt or adapter, by its name in the library or by its folder."""
    positions: list[int] = Field(default=[32], min_length=1)
    """How long a prompt to learn; of several lengths each is a prompt of its own."""
    study: int = Field(default=0, ge=0, le=100_000)
    """How many questions about the text the base makes up itself, beside those of data.train, if any."""
    max_new_tokens: int = Field(default=64, ge=1)
    """The longest answer that is drawn, in tokens."""
    temperature: float = Field(default=0.0, ge=0)
    """How freely answers to the training questions are drawn; those to held-out ones are the likeliest."""
    stop: list[str] = Field(default_factory=list)
    """An answer ends before the first of these strings."""
    likeliest: int = Field(default=20, ge=1, le=100)
    """How many of the likeliest tokens are matched at each place; the others count as one."""

    @field_validator("positions", mode="before")
    @classmethod
    def _are_lengths(cls, positions: Any) -> Any:
        listed = list(positions) if isinstance(positions, list | tuple) else [positions]
        if any(type(one) is not int or not 2 <= one <= 4096 for one in listed) or not listed:
            raise BrokenRuleError(
                f"expected a whole number from 2 to 4096, or several, got {shown(positions)}"
            )
        if len(set(listed)) < len(listed):
            raise BrokenRuleError(f"expected different lengths, got {shown(positions)}")
        return listed

    @model_validator(mode="after")
    def _is_one_thing(self) -> TeacherConfig:
        given = [name for name in ("text", "file", "prompt") if getattr(self, name) is not None]
        if len(given) != 1:
            said = " and ".join(given) or "none of them"
            raise BrokenRuleError(f"expected one of text, file and prompt, got {said}")
        return self


def with_a_teacher(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of a run that has a teacher, with what such a run has by default where nothing is given."""
    data, method, train = (dict(settings.get(name) or {}) for name in ("data", "method", "train"))
    if "task" not in data and "messages" not in data:  # which say themselves how a row asks
        data = {"input": "{question}", "target": ANSWER} | data
    teacher = settings["teacher"] if isinstance(settings["teacher"], Mapping) else {}
    lengths = teacher.get("positions", 32)
    length = lengths[0] if isinstance(lengths, list | tuple) and lengths else lengths
    method = {"kind": "prefix-tuning"} | method
    if method["kind"] == "prefix-tuning":
        saved = teacher.get("prompt")
        start = {} if saved is None or "front" in method else {"init": "artifact", "init_artifact": saved}
        method = {"front": "", "keep": "matched", "positions": length} | start | method
        if method["keep"] == "matched":  # larger steps lead away from so good a start
            train = {"learning_rate": 0.005} | train
    elif method["kind"] == "prompt-tuning":
        method = {"front": f"{{soft:{length}}}"} | method
    return settings | {"data": data, "method": method, "train": {"batch_size": 8} | train}
