"""The API keys of a server and the file they lie in; knows nothing of requests and their limits.

A file of keys is TOML, a table a key. It holds no secret, only what proves one::

    [keys.k3f9a2]
    name = "the newsroom"
    sha256 = "9f86d081884c7d65..."
    prompts = ["bbc-topics", "summaries"]    # "*" for all of them and the bare base
    admin = false
    requests_per_minute = 60                 # left out or "none": any number
    tokens_per_minute = 20000                # read and written
    concurrent = 4
    weight = 2.0                             # its share of rows and queue beside others; 1 where left out
    created = 2026-10-01T12:00:00+00:00
    expires = 2027-01-01                     # refused from this day on, UTC
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import re
import secrets
import stat
import threading
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock
from pydantic import Field, ValidationError, field_validator

from softprompt.atomic import plain_disk_errors, write_bytes
from softprompt.config.section import Section
from softprompt.config_io import NONE, BrokenRuleError, faults, nearest, shown, toml_value
from softprompt.errors import ConfigError, ResourceError
from softprompt.harmless import visible

__all__ = ["Key", "KeyFile", "KeyRing", "NoKeysError", "add_key", "revoke_key"]

_ALL = "*"
"""Among a key's prompts: every prompt there is or will be, and the bare base."""
_ID = re.compile(r"[A-Za-z0-9_-]{1,40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MOST_PROMPTS = 1_000
_PREFIX = "sp-"
_LONGEST_SECRET = 200
_LARGEST_FILE = 1_000_000
_LETTERS = "23456789abcdefghjkmnpqrstuvwxyz"  # none that are mistaken for one another
_HEADING = (
    "# Made by `softprompt keys`. The secrets themselves are nowhere; a table removed is a key revoked.\n"
)


# One key -----------------------------------------------------------------------------------------


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
    tokens_per_minute: int | None = Field(default=None, ge=1, le=1_000_000_000)
    """How many tokens of text it may have read and written; None for any number."""
    concurrent: int | None = Field(default=None, ge=1, le=1_000_000)
    """How many of its requests may be under way at once; None for any number."""
    weight: float = Field(default=1.0, ge=0.01, le=100)
    """Its share of rows and of the queue beside other keys, counted in answers."""
    created: datetime
    """When it was made, in UTC."""
    expires: date | None = None
    """The first day, in UTC, on which it is refused; None for never."""

    def may(self, name: str) -> bool:
        """Whether it may ask for the prompt ``name``, or for the base of that name."""
        return _ALL in self.prompts or name in self.prompts

    def expired(self, today: date | None = None) -> bool:
        """Whether its time is over on ``today`` (default: today in UTC)."""
        return self.expires is not None and (today or datetime.now(UTC).date()) >= self.expires

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
                f'expected a list of names such as ["moods"], or ["{_ALL}"], got {shown(names)}'
            )
        if len(names) > _MOST_PROMPTS:
            raise BrokenRuleError(
                f'expected at most {_MOST_PROMPTS:,} names; give ["{_ALL}"] for all prompts'
            )
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


def _label(text: Any) -> str:
    if not isinstance(text, str) or not text.strip() or len(text) > 200 or not text.isprintable():
        raise BrokenRuleError(f"expected 1 to 200 printable characters, got {shown(text)}")
    return text


def _key(values: dict[str, Any], where: str) -> Key:
    """Check the values of a key; ``where`` begins the sentence about what is wrong with one.

    Raises:
        ConfigError: a value is missing, unknown or breaks its rule.
    """
    try:
        return Key.model_validate(values)
    except ValidationError as error:
        fault = visible(faults(error, Key)[0], keep="")
        raise ConfigError(f"{where}{fault}{'' if fault.endswith('?') else '.'}") from None


def _hash(secret: str) -> str:
    """SHA-256 of a secret, in hex.

    Passwords need salt and a slow hash since people choose few of them. A secret here is 256 random bits:
    nobody can try even a part of them, so a plain hash hides it for good, and a request costs microseconds.
    """
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


# All keys ----------------------------------------------------------------------------------------


class NoKeysError(ResourceError):
    """The file of keys cannot be used at the moment, so everybody is refused."""


@dataclass(frozen=True)
class KeyRing:
    """All keys of a server, as they were when the file was read; a change makes a new ring."""

    keys: tuple[Key, ...] = ()

    @staticmethod
    def load(path: str | Path) -> KeyRing:
        """Read a file of keys.

        Raises:
            ConfigError: it is missing, too large, malformed, or others may write to it.
            ResourceError: it cannot be read.
        """
        return _load(Path(path))[0]

    def save(self, path: str | Path) -> None:
        """Replace the file in one step; only its owner may read it.

        Raises:
            ConfigError: there are more keys than a file may hold.
            ResourceError: the disk refuses.
        """
        text = _HEADING
        for key in self.keys:
            usual = {"weight"} if key.weight == 1 else set()
            values = key.model_dump(exclude={"id"} | usual, exclude_none=True)
            lines = [f"{name} = {toml_value(value)}\n" for name, value in values.items()]
            text += "".join([f"\n[keys.{key.id}]\n", *lines])
        content = text.encode()
        if len(content) > _LARGEST_FILE:
            raise ConfigError(
                f"{path} would be larger than {_LARGEST_FILE:,} bytes; revoke keys that are not used."
            )
        write_bytes(Path(os.path.realpath(path)), content, private=True)  # behind a link, not in its place

    def add(
        self,
        name: str,
        *,
        prompts: Sequence[str] = (_ALL,),
        admin: bool = False,
        requests_per_minute: int | None = None,
        concurrent: int | None = None,
        tokens_per_minute: int | None = None,
        weight: float = 1.0,
        expires: date | None = None,
    ) -> tuple[KeyRing, str]:
        """The ring with one more key, its last, and that key's secret, which is nowhere else.

        Raises:
            ConfigError: a value breaks its rule, or the key would have expired already.
        """
        secret, taken = _PREFIX + secrets.token_urlsafe(32), {key.id for key in self.keys}
        while (id := "k" + "".join(secrets.choice(_LETTERS) for _ in range(5))) in taken:
            pass
        values: dict[str, Any] = {
            "id": id,
            "name": name,
            "sha256": _hash(secret),
            "prompts": prompts,
            "admin": admin,
            "requests_per_minute": requests_per_minute,
            "tokens_per_minute": tokens_per_minute,
            "concurrent": concurrent,
            "weight": weight,
            "created": datetime.now(UTC).replace(microsecond=0),
            "expires": expires,
        }
        key = _key(values, "The key's ")
        if key.expired():
            raise ConfigError(f"A key that expires on {expires} could not be used; give a later day.")
        return KeyRing((*self.keys, key)), secret

    def revoke(self, id: str) -> KeyRing:
        """The ring without the key ``id``.

        Raises:
            ConfigError: there is none.
        """
        rest = tuple(key for key in self.keys if key.id != id)
        if len(rest) < len(self.keys):
            return KeyRing(rest)
        if id.startswith(_PREFIX) or not _ID.fullmatch(id):  # perhaps a secret, which no message may repeat
            raise ConfigError(
                "That is no id of a key; ids, such as k3f9a2, are listed by `softprompt keys list`."
            )
        near = nearest(id, [key.id for key in rest])
        hint = f"did you mean {near}?" if near else "see `softprompt keys list`."
        raise ConfigError(f"There is no key {id}; {hint}")

    def find(self, secret: str, today: date | None = None) -> Key | None:
        """The key that ``secret`` belongs to, unless it has expired; None for any other text.

        The time it takes tells nothing about the keys: every hash is compared, and each to its end.
        """
        if len(secret) > _LONGEST_SECRET:
            return None
        digest, found = _hash(secret), None
        for key in self.keys:
            if hmac.compare_digest(key.sha256, digest):
                found = key  # and on: leaving here would tell where in the file it stands
        return None if found is None or found.expired(today) else found


class KeyFile:
    """The keys of a running server; a changed file is read again, so a key is revoked without a restart.

    It fails closed: while the file is missing, broken or writable for others, ``find`` refuses everybody.
    Going on with the last good ring would let in whoever was revoked by the change that broke the file. The
    operator is told why, once a fault, and the first sound file opens the door again. Any thread may call.

    Raises:
        ConfigError, ResourceError: as ``KeyRing.load``, when the server starts.
    """

    def __init__(self, path: str | Path, notify: Callable[[str], None] = lambda message: None) -> None:
        """Read the keys.

        Args:
            path: of the file.
            notify: told in a sentence, for the operator's log, that keys cannot be read, or can again.
        """
        self.path = Path(path)
        self._notify = notify
        self._lock = threading.Lock()
        self._ring: KeyRing | None
        self._stamp: _Stamp | None
        self._ring, self._stamp = _load(self.path)
        self._trouble = ""

    def find(self, secret: str) -> Key | None:
        """As ``KeyRing.find``, in the file as it is now; costs one ``stat`` where it has not changed.

        Raises:
            NoKeysError: the file cannot be used; the message tells a client nothing about it.
        """
        with self._lock:
            self._refresh()
            ring = self._ring
        if ring is None:
            raise NoKeysError(
                "The server cannot check API keys at the moment; its operator finds the reason in its log."
            )
        return ring.find(secret)

    def _refresh(self) -> None:
        try:
            stamp: _Stamp | None = _stamp(os.stat(self.path))
        except OSError:
            stamp = None  # reading will say why
        if stamp is not None and stamp == self._stamp:
            return
        # A fault of the content stays until the file changes; one of the machine, such as too many open
        # files, may be gone at the next request, so it is not remembered.
        self._ring, self._stamp = None, None
        try:
            self._ring, self._stamp = _load(self.path)
            self._tell("")
        except ConfigError as error:
            self._stamp = stamp
            self._tell(str(error))
        except ResourceError as error:
            self._tell(str(error))

    def _tell(self, trouble: str) -> None:
        if trouble == self._trouble:
            return
        self._trouble = trouble
        self._notify(
            f"Every request is refused until the file of keys is in order. {trouble}"
            if trouble
            else f"{self.path} is in order again; keys are accepted."
        )


def add_key(path: str | Path, name: str, **what: Any) -> tuple[Key, str]:
    """Add a key to a file, which need not exist yet; returns it and its secret, which is nowhere else.

    Args:
        path: of the file.
        name: whose key it is.
        what: as ``KeyRing.add`` takes it.

    Raises:
        ConfigError, ResourceError: as ``KeyRing.load``, ``add`` and ``save``.
    """
    with _alone(Path(path)):
        ring, secret = (KeyRing.load(path) if os.path.exists(path) else KeyRing()).add(name, **what)
        ring.save(path)
    return ring.keys[-1], secret


def revoke_key(path: str | Path, id: str) -> Key:
    """Take a key out of a file and return it; a running server refuses it from the next request on.

    Raises:
        ConfigError, ResourceError: as ``KeyRing.load``, ``revoke`` and ``save``.
    """
    KeyRing.load(path)  # a missing file is said before a lock lies beside it
    with _alone(Path(path)):
        ring = KeyRing.load(path)
        ring.revoke(id).save(path)
    return next(key for key in ring.keys if key.id == id)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold off other changes: of two at once the later would bring back what the earlier revoked."""
    if path.is_dir():
        raise ConfigError(f"{str(path)!r} is a folder; name the file of keys in it.")
    with plain_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f".{path.name}.lock")):
            yield


# The file ----------------------------------------------------------------------------------------

_Stamp = tuple[int, ...]


def _stamp(status: os.stat_result) -> _Stamp:
    """What changes whenever the file is written, replaced or has its permissions changed."""
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _load(path: Path) -> tuple[KeyRing, _Stamp]:
    """The keys, and the stamp of the very file they were read from."""
    try:
        # Where it is a pipe, do not wait for somebody to write to it.
        no_wait = getattr(os, "O_NONBLOCK", 0)
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | no_wait)) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ConfigError(
                    f"{str(path)!r} is not a file of keys but a pipe or a device; check the path."
                )
            if os.name == "posix" and status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                raise ConfigError(
                    f"Others may write to {path} and so give themselves keys; "
                    f"run `chmod 600 {path}` and look."
                )
            content = file.read(_LARGEST_FILE + 1)
    except FileNotFoundError as error:
        raise ConfigError(
            f"There is no file of keys at {str(path)!r}; `softprompt keys add NAME --file {path}` makes one."
        ) from error
    except IsADirectoryError as error:
        raise ConfigError(f"{str(path)!r} is a folder; name the file of keys in it.") from error
    except OSError as error:
        raise ResourceError(
            f"The file of keys {str(path)!r} cannot be read: {error.strerror or error}; check who owns it."
        ) from error
    if len(content) > _LARGEST_FILE:
        raise ConfigError(
            f"{path} is larger than {_LARGEST_FILE:,} bytes, which is no file of keys; check the path."
        )
    return KeyRing(_parse(content, path)), _stamp(status)


def _parse(content: bytes, path: Path) -> tuple[Key, ...]:
    try:
        tree = tomllib.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:  # of UTF-8, of TOML, of numbers too long to read
        reason = "nested too deeply" if isinstance(error, RecursionError) else visible(str(error), keep="")
        raise ConfigError(
            f"{path} is not valid TOML ({reason}); put that right or restore the file."
        ) from error
    tables = tree.pop("keys", {})
    if tree or not isinstance(tables, dict):
        found = shown(next(iter(tree), "keys"))
        raise ConfigError(f"{path} may hold tables such as [keys.k3f9a2] only, but has {found}; remove that.")
    keys: list[Key] = []
    seen: dict[str, str] = {}
    for id, table in tables.items():
        if not _ID.fullmatch(id):
            raise ConfigError(
                f"{path}: a key's id is made of letters, digits, _ and -, unlike {shown(id)}; rename it."
            )
        if not isinstance(table, dict):
            raise ConfigError(f"{path}: expected a table with the heading [keys.{id}], got {shown(table)}.")
        if "id" in table:
            raise ConfigError(f"{path}: keys.{id} says its id twice; remove the line that begins with id.")
        keys.append(key := _key({**table, "id": id}, f"{path}: keys.{id}."))
        if (other := seen.setdefault(key.sha256, key.id)) != key.id:
            raise ConfigError(f"{path}: {other} and {key.id} have the same secret; remove one of them.")
    return tuple(keys)
