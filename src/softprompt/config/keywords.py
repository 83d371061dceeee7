"""Settings as keywords, ``epochs=3`` for ``train.epochs``: knows sections and names, not what they do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from softprompt.config.data import SOURCES
from softprompt.config_io import nearest, setting_paths
from softprompt.errors import ConfigError

__all__ = ["settings_of"]


def settings_of(keywords: Mapping[str, Any], schema: type[BaseModel]) -> dict[str, Any]:
    """The settings that keywords stand for, by section.

    A keyword is a setting's own name, whatever section it stands in (``labels``, ``front``, ``epochs``), a
    section as a mapping, or ``method`` with the name of a kind.

    Raises:
        ConfigError: there is no such setting.
    """
    known = dict(_known(schema))
    found: dict[str, Any] = {}
    for keyword, value in keywords.items():
        if keyword == "method" and isinstance(value, str):
            path = "method.kind"
        elif keyword in schema.model_fields:
            found[keyword] = {**found.get(keyword, {}), **value} if isinstance(value, Mapping) else value
            continue
        elif keyword in known:
            path = known[keyword]
        else:
            near = nearest(keyword, (*known, *schema.model_fields))
            raise ConfigError(f"There is no setting {keyword!r}{f'; did you mean {near}?' if near else '.'}")
        section, _, name = path.partition(".")
        found[section] = {**found.get(section, {}), name: value}
    return found


def _known(schema: type[BaseModel]) -> Iterator[tuple[str, str]]:
    """From the name of each setting to where it is, the first of a name; rows are arguments of their own."""
    seen = {*schema.model_fields, *SOURCES}
    for path in setting_paths(schema):
        section, dot, name = path.partition(".")
        if dot and name not in seen and "." not in name and section != "methods":
            seen.add(name)
            yield name, path
