"""One API key: what it allows, its rules and its table in a file of keys; knows no file and no request.

A table holds no secret, only what proves one::

    [keys.k3f9a2]
    name = "the newsroom"
    sha256 = "9f86d081884c7d65..."
    prompts = ["bbc-topics", "summaries"]    # "*" for all of them and the bare base
    admin = false
    requests_per_minute = 60                 # left out or "none": any number
    concurrent = 4
    created = 2026-10-01T12:00:00+00:00
    expires = 2027-01-01                     # refused from this day on, UTC
"""

from __future__ import annotations

import hashlib
import json
import re
from datetime import UTC, date, datetime
from typing import Any

from pydantic import Field, ValidationError, field_validator

from softprompt.config.section import Section
from softprompt.config_io import NONE, BrokenRuleError, faults, shown
from softprompt.errors import ConfigError

__all__ = ["ALL", "ID_RULE", "Key", "hash_of", "key_of", "one_line", "table_of"]

ALL = "*"
"""Among a key's prompts: every prompt there is or will be, and the bare base."""

ID_RULE = re.compile(r"[A-Za-z0-9_-]{1,40}")

_SHA256 = re.compile(r"[0-9a-f]{64}")
_MOST_PROMPTS = 1_000


class Key(Section):
    """One key, without its secret."""

    id: str
    """A short public handle, such as ``k3f9a2``; the name of its table."""
    name: str
    """Whose it is, in the operator's words."""
    sha256: str = Field(repr=False)
    """SHA-256 of the secret, in hex."""
    prompts: tuple[str, ...]
    """Names it may ask for; ``"*"`` for all, the bare base included."""
    admin: bool = False
    """Whether it may also see and change what the server holds."""
    requests_per_minute: int | None = Field(default=None, ge=1, le=1_000_000)
    """How often it may ask; None for any number."""
    concurrent: int | None = Field(default=None, ge=1, le=1_000_000)
    """How many of its requests may be under way at once; None for any number."""
    created: datetime
    """When it was made, in UTC."""
    expires: date | None = None
    """The first day, in UTC, on which it is refused; None for never."""

    def may(self, name: str) -> bool:
        """Whether it may ask for the prompt ``name``, or for the base of that name."""
        return ALL in self.prompts or name in self.prompts

    def expired(self, today: date | None = None) -> bool:
        """Whether its time is over on ``today`` (default: today in UTC)."""
        return self.expires is not None and (today or _today()) >= self.expires

    @field_validator("name")
    @classmethod
    def _name_is_a_label(cls, name: str) -> str:
        return _label(name)

    @field_validator("sha256")
    @classmethod
    def _is_a_digest(cls, digest: str) -> str:
        if not _SHA256.fullmatch(digest):
            raise BrokenRuleError(
                "expected a SHA-256 as 64 hexadecimal digits; make keys with `softprompt keys`"
            )
        return digest

    @field_validator("prompts", mode="before")
    @classmethod
    def _prompts_are_names(cls, names: Any) -> tuple[str, ...]:
        if not isinstance(names, list | tuple) or not names:
            raise BrokenRuleError(
                f'expected a list of names such as ["moods"], or ["{ALL}"], got {shown(names)}'
            )
        if len(names) > _MOST_PROMPTS:
            raise BrokenRuleError(f'expected at most {_MOST_PROMPTS:,} names; give ["{ALL}"] for all prompts')
        return tuple(_label(name) for name in names)

    @field_validator("created", mode="before")
    @classmethod
    def _created_is_a_moment(cls, moment: Any) -> Any:
        if not isinstance(moment, datetime) or moment.tzinfo is None:
            raise BrokenRuleError(f"expected a time such as 2026-10-01T12:00:00Z, got {shown(moment)}")
        return moment

    @field_validator("expires", mode="before")
    @classmethod
    def _expires_on_a_day(cls, day: Any) -> Any:
        if day is not None and type(day) is not date:  # a datetime is a date too, and means something else
            raise BrokenRuleError(
                f'expected a day such as 2027-01-01, without quotes, or "{NONE}", got {shown(day)}'
            )
        return day


def key_of(values: dict[str, Any], where: str) -> Key:
    """Check the values of a key; ``where`` begins the sentence about what is wrong with one.

    Raises:
        ConfigError: a value is missing, unknown or breaks its rule.
    """
    try:
        return Key.model_validate(values)
    except ValidationError as error:
        fault = one_line(faults(error, Key)[0])
        raise ConfigError(f"{where}{fault}{'' if fault.endswith('?') else '.'}") from None


def table_of(key: Key) -> str:
    """The key as TOML."""
    values = key.model_dump(exclude={"id"}, exclude_none=True)
    return "".join(
        [f"\n[keys.{key.id}]\n", *(f"{name} = {_literal(value)}\n" for name, value in values.items())]
    )


def _literal(value: Any) -> str:
    """A value as TOML: JSON's truths, whole numbers, printable texts and lists are TOML's too."""
    return value.isoformat() if isinstance(value, date) else json.dumps(value, ensure_ascii=False)


def hash_of(secret: str) -> str:
    """SHA-256 of a secret, in hex.

    Passwords need salt and a slow hash since people choose few of them. A secret here is 256 random bits:
    nobody can try even a part of them, so a plain hash hides it for good, and a request costs microseconds.
    """
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def one_line(text: str) -> str:
    """Text for one line of a log, without what would steer a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _label(text: Any) -> str:
    if not isinstance(text, str) or not text.strip() or len(text) > 200 or not text.isprintable():
        raise BrokenRuleError(f"expected 1 to 200 printable characters, got {shown(text)}")
    return text


def _today() -> date:
    return datetime.now(UTC).date()
