"""Between text and settings: TOML, ``--set`` and the wording of faults; knows no setting by name."""

from __future__ import annotations

import difflib
import json
import math
import re
import tomllib
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from softprompt.errors import ConfigError, ResourceError

__all__ = [
    "NONE",
    "BrokenRuleError",
    "faults",
    "may_be_none",
    "nearest",
    "override",
    "read_toml",
    "setting_paths",
    "shown",
    "to_toml",
    "toml_value",
]

NONE = "none"
"""How a file says "off" or "no limit": TOML has no null."""

Tree = dict[str, Any]
Schema = type[BaseModel]

_KINDS: dict[Any, str] = {
    float: "a number",
    int: "a whole number",
    bool: "true or false",
    str: "text in quotes",
}
_BOUNDS = {"gt": "above {}", "ge": "of at least {}", "lt": "below {}", "le": "at most {}"}
_LINE_WIDTH = 100


class BrokenRuleError(ValueError):
    """A rule of ours that a value breaks, in words for the user; ``at`` names a key inside the value."""

    def __init__(self, message: str, at: str = "") -> None:
        super().__init__(message)
        self.at = at


# Reading -----------------------------------------------------------------------------------------


def read_toml(path: Path) -> Tree:
    """Return the content of a TOML file, or say which file and line is wrong."""
    text = _read_text(path)
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(_malformed(path, text, str(error))) from error
    except (RecursionError, ValueError) as error:
        raise ConfigError(
            f"{path} nests its values too deeply or holds a number that is too long."
        ) from error


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise ConfigError(f"There is no configuration file at {str(path)!r}; check the path.") from error
    except IsADirectoryError as error:
        raise ConfigError(f"{str(path)!r} is a folder; name the TOML file in it.") from error
    except OSError as error:
        raise ResourceError(f"The file {str(path)!r} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}, line {line}: this is not UTF-8 text; save the file as UTF-8.") from error


def _malformed(path: Path, text: str, message: str) -> str:
    place = re.search(r" \(at line (\d+), column (\d+)\)$", message)
    line = place[1] if place else str(max(1, len(text.splitlines())))
    reason = message[: place.start()] if place else message.removesuffix(" (at end of document)")
    reason = reason[:1].lower() + reason[1:]
    column = f" at column {place[2]}" if place else ""
    remedy = "; text needs quotes" if reason == "invalid value" else ""
    return f"{path}, line {line}: this is not valid TOML, {reason}{column}{remedy}."


# Overrides ---------------------------------------------------------------------------------------


def override(settings: Tree, assignments: Sequence[str], schema: Schema) -> list[str]:
    """Write each ``a.b=value`` into ``settings`` and return the faults found on the way."""
    found = (_assign(settings, assignment, schema) for assignment in assignments)
    return [fault for fault in found if fault]


def _assign(settings: Tree, assignment: str, schema: Schema) -> str | None:
    dotted, equals, text = assignment.partition("=")
    keys = _keys(dotted.strip())
    if not equals or not all(keys):
        return f"--set {assignment}: expected KEY=VALUE, such as train.epochs=3"
    node = settings
    for depth, key in enumerate(keys[:-1], start=1):
        node = node.setdefault(key, {})
        if not isinstance(node, dict):
            return f"{'.'.join(keys)}: {'.'.join(keys[:depth])} is a single value and has nothing inside"
    node[keys[-1]] = _value(text, takes_text=_takes_text(schema, keys))
    return None


def _keys(dotted: str) -> list[str]:
    """Split a path at its dots; a key in quotes may hold dots and spaces, as in TOML."""
    node: Any = _toml_or_none(f"{dotted} = 0")
    keys: list[str] = []
    while isinstance(node, dict) and len(node) == 1:
        key, node = next(iter(node.items()))
        keys.append(key)
    return keys if keys and node == 0 else [key.strip() for key in dotted.split(".")]


def _value(text: str, takes_text: bool) -> Any:
    """Read a TOML value, or bare text; where text is wanted, ``2024`` is text and spaces count."""
    parsed = _toml_or_none(f"value = {text}")
    if parsed and set(parsed) == {"value"} and (isinstance(parsed["value"], str) or not takes_text):
        return parsed["value"]
    return text if takes_text else text.strip()


def _toml_or_none(text: str) -> Tree | None:
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError):
        return None


def _takes_text(schema: Schema, keys: Sequence[str]) -> bool:
    owners: list[Schema] = [schema]
    fields: list[FieldInfo] = []
    for key in keys:
        fields = [owner.model_fields[key] for owner in owners if key in owner.model_fields]
        owners = [section for field in fields for section in _sections(field)]
    return any(str in _options(field) for field in fields)


# Writing -----------------------------------------------------------------------------------------


def to_toml(model: BaseModel) -> str:
    """Write every setting as TOML; a setting that is off and off by default is left out."""
    return "\n".join(_table(model, [])) + "\n"


def _table(section: BaseModel | Mapping[str, Any], heading: list[str]) -> list[str]:
    """The lines of a table: its heading, its values, then the tables inside it."""
    items = section
    if isinstance(section, BaseModel):
        off = {name for name, field in type(section).model_fields.items() if field.default is None}
        given = {name: getattr(section, name) for name in type(section).model_fields}
        items = {k: NONE if v is None else v for k, v in given.items() if v is not None or k not in off}
    lines = [f"[{'.'.join(heading)}]"] if heading else []
    tables: list[str] = []
    for name, value in dict(items).items():
        key = name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else toml_value(name)
        if isinstance(value, BaseModel | Mapping):
            tables += ["", *_table(value, [*heading, key])]
            continue
        text = toml_value(value)
        if isinstance(value, list | tuple) and len(text) > _LINE_WIDTH:
            text = "[\n" + "".join(f"    {toml_value(item)},\n" for item in value) + "]"
        lines.append(f"{key} = {text}")
    return lines + tables


def toml_value(value: Any) -> str:
    """A value as TOML, on one line: what it says is read back as the same."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):  # JSON's escapes are TOML's, except that TOML also escapes DEL
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{toml_value(key)} = {toml_value(word)}" for key, word in value.items()) + "}"
    return f"[{', '.join(map(toml_value, value))}]"


# Faults in words ---------------------------------------------------------------------------------


def faults(error: ValidationError, schema: Schema) -> list[str]:
    """Say each thing that is wrong in one plain line, in the order of the schema."""
    found = (_fault(dict(one), schema) for one in error.errors(include_url=False))
    return list(dict.fromkeys(found))


def _fault(error: Tree, schema: Schema) -> str:
    names, owner, field = _locate(schema, error["loc"])
    path, got = ".".join(names), error["input"]
    rule = error.get("ctx", {}).get("error")
    if isinstance(rule, BrokenRuleError):
        return f"{'.'.join(filter(None, [path, rule.at]))}: {rule}"
    if field is None:
        return _unknown(names, owner, schema)
    if error["type"] == "missing":
        return f"{path}: required and missing; it is {_decapitalised(field.description)}"
    if error["type"] == "union_tag_invalid":
        tag = str(field.discriminator)
        return f"{path}.{tag}: {_one_of(_tags(field), got.get(tag) if isinstance(got, Mapping) else got)}"
    if _sections(field):
        return f"{path}: expected a section with the heading [{path}], got {shown(got)}"
    if choices := _choices(field):
        return f"{path}: {_one_of(choices, got)}"
    return f"{path}: expected {_expected(field, got)}, got {shown(got)}"


def _locate(schema: Schema, parts: Sequence[int | str]) -> tuple[list[str], Schema, FieldInfo | None]:
    """Follow pydantic's location: the keys a user wrote, the section that holds the last, its field."""
    names: list[str] = []
    owner, field = schema, None
    rest = iter(parts)
    for part in rest:
        names.append(str(part))
        field = owner.model_fields.get(str(part))
        sections = _sections(field) if field else []
        if not field or not sections:
            break
        if _is_list(field) and (number := next(rest, None)) is not None:
            names[-1] += f"[{number}]"
        tag = next(rest, None) if field.discriminator else None
        owner = _tags(field).get(str(tag), sections[0])
    return names, owner, field


def _unknown(names: list[str], owner: Schema, schema: Schema) -> str:
    path, key = ".".join(names), names[-1]
    for tag, sibling in _siblings(owner, schema).items():
        if key in sibling.model_fields:
            return f"{path} is a setting of {names[0]}s of the kind {tag}, not of this one"
    section = ".".join(names[:-1])
    guess = _guess(key, section, list(owner.model_fields), list(setting_paths(schema)))
    if guess:
        return f"{path} is not known; did you mean {guess}?"
    return f"{path} is not known; {section or 'the top level'} knows {', '.join(owner.model_fields)}"


def _guess(key: str, section: str, here: list[str], everywhere: list[str]) -> str | None:
    """Prefer the same key in another section, then a near one in this section, then a near one anywhere."""
    leaves = {path.rpartition(".")[2]: path for path in reversed(everywhere)}
    if key in leaves:
        return leaves[key]
    if near := nearest(key, here):
        return f"{section}.{near}" if section else near
    far = nearest(key, leaves, cutoff=0.8)
    return leaves[far] if far else None


def nearest(word: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return the known word most like this one, whatever its case and hyphens."""
    plain = {name.lower().replace("-", "_"): name for name in known}
    matches = difflib.get_close_matches(word.lower().replace("-", "_"), plain, n=1, cutoff=cutoff)
    return plain[matches[0]] if matches else None


def _one_of(choices: Iterable[str], got: Any) -> str:
    choices = list(choices)
    near = nearest(got, choices) if isinstance(got, str) else None
    hint = f"; did you mean {near}?" if near else ""
    return f"expected one of {', '.join(choices)}, got {shown(got)}{hint}"


def _expected(field: FieldInfo, got: Any) -> str:
    words = _KINDS.get(_options(field)[0], "a list or a table")
    if isinstance(got, float) and not math.isfinite(got):
        words = words.replace("a number", "a finite number")
    bounds = [
        words_for.format(bound)
        for mark, words_for in _BOUNDS.items()
        for limit in field.metadata
        if (bound := getattr(limit, mark, None)) is not None
    ]
    if any(getattr(limit, "min_length", None) for limit in field.metadata):
        bounds.append("that is not empty")
    return " ".join(filter(None, [words, " and ".join(bounds), f'or "{NONE}"' if may_be_none(field) else ""]))


def shown(value: Any) -> str:
    """Show a value as the user wrote it, shortened."""
    if isinstance(value, bool):
        return "true" if value else "false"
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _decapitalised(description: str | None) -> str:
    text = (description or "a required setting").rstrip(".")
    return text[:1].lower() + text[1:]


# The schema, walked ------------------------------------------------------------------------------


def may_be_none(field: FieldInfo) -> bool:
    """Whether the word "none" turns this setting off; where text is wanted it is just text."""
    return types.NoneType in _arms(field) and str not in _options(field)


def _arms(field: FieldInfo) -> tuple[Any, ...]:
    union = get_origin(field.annotation) in (Union, types.UnionType)
    return get_args(field.annotation) if union else (field.annotation,)


def _options(field: FieldInfo) -> list[Any]:
    return [arm for arm in _arms(field) if arm is not types.NoneType]


def _choices(field: FieldInfo) -> list[str]:
    return [str(c) for arm in _options(field) if get_origin(arm) is Literal for c in get_args(arm)]


def _sections(field: FieldInfo) -> list[Schema]:
    arms = [a for arm in _options(field) for a in (get_args(arm) if get_origin(arm) is list else (arm,))]
    return [arm for arm in arms if isinstance(arm, type) and issubclass(arm, BaseModel)]


def _is_list(field: FieldInfo) -> bool:
    """Whether a field holds a list of sections."""
    return any(get_origin(arm) is list for arm in _options(field)) and bool(_sections(field))


def _tags(field: FieldInfo) -> dict[str, Schema]:
    tag = field.discriminator
    if not isinstance(tag, str):
        return {}
    return {str(section.model_fields[tag].default): section for section in _sections(field)}


def _siblings(owner: Schema, schema: Schema) -> dict[str, Schema]:
    """Return the other kinds of a section that has kinds."""
    families = (_tags(field) for field in schema.model_fields.values())
    family = next((tags for tags in families if owner in tags.values()), {})
    return {tag: section for tag, section in family.items() if section is not owner}


def setting_paths(schema: Schema, prefix: str = "") -> Iterator[str]:
    """Every setting by its dotted name, those of all kinds of a section included."""
    for name, field in schema.model_fields.items():
        yield prefix + name
        for section in _sections(field):
            yield from setting_paths(section, f"{prefix}{name}.")
