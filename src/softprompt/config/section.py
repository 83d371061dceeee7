"""What every section of a configuration shares: strictness, ``"none"`` for off, text that is Unicode."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import (
    BaseModel,
    ConfigDict,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from softprompt.config_io import NONE, BrokenRuleError, may_be_none

__all__ = ["Section", "as_unicode", "on_disk"]


class Section(BaseModel):
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        validate_default=True,
        use_attribute_docstrings=True,
    )
    later: ClassVar[tuple[str, ...]] = ()
    """Settings that came after others had been stored: where they are off, a section is written, and named by
    its digest, as if there were no such settings."""

    @model_serializer(mode="wrap")
    def _without_what_is_off(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written: dict[str, Any] = write(self)
        return {k: v for k, v in written.items() if v is not None or k not in self.later}

    @model_validator(mode="before")
    @classmethod
    def _read_none(cls, settings: Any) -> Any:
        if not isinstance(settings, Mapping):
            return settings
        off = {name for name, field in cls.model_fields.items() if may_be_none(field)}
        return {key: None if key in off and value == NONE else value for key, value in settings.items()}

    @field_validator("*")
    @classmethod
    def _text_isas_unicode(cls, value: Any) -> Any:
        return as_unicode(value) if isinstance(value, str) else value


def as_unicode(text: str) -> str:
    """Refuse the half characters that undecodable bytes of a command line turn into."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BrokenRuleError(f"expected text that can be written as UTF-8, got {text!a}") from error
    return text


def on_disk(folder: str) -> str:
    """Refuse an address where files are written that no object store takes."""
    if "://" in folder:
        raise BrokenRuleError(f"expected a folder of this machine, got {folder}; a library may lie there")
    return folder
