"""The settings of ``[method]``: one class a kind, told apart by ``kind``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from softprompt.config.section import Section
from softprompt.config_io import BrokenRuleError

__all__ = ["MethodConfig", "PromptTuningConfig", "TextConfig"]


class PromptTuningConfig(Section):
    """A soft prompt: vectors in front of the text, learnt while the model stays as it is."""

    kind: Literal["prompt-tuning"] = "prompt-tuning"
    """The method."""
    front: str = "{soft:20}"
    """What stands in front of every row: text, and {soft:N} for N learnt vectors."""
    init: Literal["text", "labels", "vocabulary", "random", "artifact"] = "vocabulary"
    """What the vectors start from; when not given: the labels, else init_text, else init_artifact, if any."""
    init_text: str | None = Field(default=None, min_length=1)
    """The text to start from."""
    init_artifact: str | None = Field(default=None, min_length=1)
    """The saved prompt to start from."""
    reparametrisation: Literal["none", "residual"] = "none"
    """Whether the vectors pass through a small network while they are learnt."""
    reparametrisation_width: int = Field(default=64, ge=1)
    """The width of that network."""

    @field_validator("init_text", "init_artifact")
    @classmethod
    def _init_has_its_source(cls, source: str | None, info: ValidationInfo) -> str | None:
        if source is None and f"init_{info.data.get('init')}" == info.field_name:
            raise BrokenRuleError(f'required and missing, because method.init is "{info.data["init"]}"')
        return source


class TextConfig(Section):
    """Text only: an instruction or nothing; no training."""

    kind: Literal["text"] = "text"
    """The method."""
    front: str = ""
    """The text that stands in front of every row."""


# A new method is a new class here with a `kind` of its own.
MethodConfig = Annotated[PromptTuningConfig | TextConfig, Field(discriminator="kind")]
