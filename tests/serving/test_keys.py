"""A file of keys is read strictly and written whole; a secret opens what its key allows, while it lasts."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import stat
import threading
import tomllib
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from softprompt.errors import ConfigError, ResourceError
from softprompt.serving.keys import Key, KeyFile, KeyRing, NoKeysError, add_key, revoke_key

HASH = hashlib.sha256(b"sp-known").hexdigest()
TABLE = f'[keys.k1]\nname = "a"\nsha256 = "{HASH}"\nprompts = ["*"]\ncreated = 2026-01-01T00:00:00Z\n'
posix = pytest.mark.skipif(os.name != "posix", reason="permissions of files are POSIX's")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.toml"


@pytest.fixture(autouse=True)
def _private() -> Iterator[None]:
    """Files written here are nobody else's to write, whatever the machine's umask."""
    mask = os.umask(0o022)
    yield
    os.umask(mask)


def test_a_secret_finds_its_own_key_and_nothing_else_does(path: Path) -> None:
    ring, secrets = KeyRing(), []
    for name in ("a", "b", "c"):
        ring, secret = ring.add(name)
        secrets.append(secret)
    ring.save(path)
    for kept in (ring, KeyRing.load(path)):
        for key, secret in zip(ring.keys, secrets, strict=True):
            assert kept.find(secret) == key
        for wrong in (
            "",
            "sp-",
            secrets[0][:-1],
            secrets[0] + " ",
            secrets[0].swapcase(),
            "\udc80",
            "é" * 9_999,
        ):
            assert kept.find(wrong) is None
        assert kept.find(ring.keys[0].sha256) is None  # who steals the file has no key


def test_secrets_are_256_random_bits_of_which_the_file_knows_the_hash_only(path: Path) -> None:
    secrets = set()
    for _ in range(50):
        key, secret = add_key(path, "same name")
        assert re.fullmatch(r"sp-[A-Za-z0-9_-]{43}", secret)
        assert key.sha256 == hashlib.sha256(secret.encode()).hexdigest()
        assert key.sha256 not in repr(key)
        secrets.add(secret)
    assert len(secrets) == 50
    assert len({key.id for key in KeyRing.load(path).keys}) == 50
    written = path.read_text(encoding="utf-8")
    assert not any(secret in written or secret[3:] in written for secret in secrets)


def test_every_hash_is_compared_whoever_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    ring, first = KeyRing().add("a")
    ring, _ = ring.add("b")
    ring, last = ring.add("c")
    compare, seen = hmac.compare_digest, []

    def counted(one: str, other: str) -> bool:
        seen.append(one)
        return compare(one, other)

    monkeypatch.setattr(hmac, "compare_digest", counted)
    for secret in (first, last, "sp-unknown"):
        seen.clear()
        ring.find(secret)
        assert seen == [key.sha256 for key in ring.keys]


def test_all_that_a_key_says_is_kept(path: Path) -> None:
    values: dict[str, Any] = {
        "prompts": ['quo"te\\', "smollm2-135m"],
        "admin": True,
        "requests_per_minute": 7,
        "tokens_per_minute": 5_000,
        "concurrent": 2,
        "weight": 2.5,
        "expires": date(2999, 12, 31),
    }
    key, _ = add_key(path, "Zoë = [1] # x", **values)
    assert KeyRing.load(path).keys == (key,)
    assert key.model_dump(include=set(values)) == values | {"prompts": tuple(values["prompts"])}
    assert datetime.now(UTC) - timedelta(minutes=1) < key.created <= datetime.now(UTC)
    assert tomllib.loads(path.read_text(encoding="utf-8"))["keys"][key.id]["expires"] == date(2999, 12, 31)


def test_a_key_may_ask_for_what_it_names_and_the_base_by_name_or_star() -> None:
    ring, _ = KeyRing().add("some", prompts=["a", "b"])
    ring, _ = ring.add("all")
    some, everything = ring.keys
    assert [some.may(name) for name in ("a", "b", "A", "ab", "", "*", "base")] == [True, True] + [False] * 5
    assert everything.may("base")


def test_a_key_is_refused_from_its_last_day_on() -> None:
    ring, secret = KeyRing().add("a", expires=date(2999, 1, 1))
    assert ring.find(secret, date(2998, 12, 31)) == ring.keys[0]
    assert ring.find(secret, date(2999, 1, 1)) is None
    old = ring.keys[0].model_copy(update={"expires": datetime.now(UTC).date()})
    assert KeyRing((old,)).find(secret) is None


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"name": " "}, "name: expected 1 to 200 printable characters"),
        ({"name": "a\nb"}, "name: expected 1 to 200 printable characters"),
        ({"name": "x" * 201}, "name: expected 1 to 200"),
        ({"prompts": []}, "prompts: expected a list of names"),
        ({"prompts": "moods"}, "prompts: expected a list of names"),
        ({"prompts": ["a", "\udc80"]}, "prompts: expected 1 to 200 printable"),
        ({"requests_per_minute": 0}, "requests_per_minute: expected a whole number of at least 1"),
        ({"requests_per_minute": True}, "requests_per_minute: expected a whole number"),
        ({"concurrent": 10**30}, "at most 1000000"),
        ({"expires": date(2020, 1, 1)}, "expires on 2020-01-01"),
        ({"expires": "2027-01-01"}, "expires: expected a day"),
        ({"expires": datetime(2999, 1, 1)}, "expires: expected a day"),
    ],
    ids=str,
)
def test_a_value_out_of_bounds_is_refused_by_name(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)) as caught:
        KeyRing().add(**{"name": "a", **wrong})
    assert "\n" not in str(caught.value)


def test_the_secret_is_not_in_any_message(path: Path) -> None:
    _, secret = add_key(path, "a")
    with pytest.raises(ConfigError) as caught:
        revoke_key(path, secret)
    assert secret not in str(caught.value)


# The file ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[keys.k1", "not valid TOML"),
        ("x = " + "[" * 5_000, "not valid TOML"),
        ("x = " + "9" * 5_000, "not valid TOML"),
        (TABLE + TABLE, "not valid TOML"),
        ("admin = true\n", "but has 'admin'"),
        ("[other]\n" + TABLE, "but has 'other'"),
        ("keys = 3\n", "tables such as"),
        ("[keys]\nk1 = 3\n", "heading [keys.k1], got 3"),
        (TABLE.replace("keys.k1", 'keys."a b"'), "unlike 'a b'"),
        (TABLE + 'id = "k2"\n', "says its id twice"),
        (TABLE + "rate = 3\n", "keys.k1.rate is not known"),
        (TABLE + "concurent = 3\n", "did you mean concurrent?"),
        (TABLE + "concurrent = 1.5\n", "concurrent: expected a whole number"),
        (TABLE + "requests_per_minute = nan\n", "requests_per_minute: expected a whole number"),
        (TABLE + 'admin = "yes"\n', "admin: expected true or false"),
        (TABLE + 'expires = "2027-01-01"\n', "expires: expected a day"),
        (TABLE + "expires = 2027-01-01T00:00:00Z\n", "expires: expected a day"),
        (TABLE.replace('["*"]', '"*"'), "prompts: expected a list"),
        (TABLE.replace('["*"]', "[3]"), "prompts: expected 1 to 200"),
        (TABLE.replace('["*"]', repr(["a"] * 1_001)), "at most 1,000 names"),
        (TABLE.replace("T00:00:00Z", ""), "created: expected a time"),
        (TABLE.replace("00Z", "00"), "created: expected a time"),
        (TABLE.replace(HASH, HASH.upper()), "sha256: expected a SHA-256"),
        (TABLE.replace(HASH, HASH + "\\n"), "sha256: expected a SHA-256"),
        (TABLE.replace(f'sha256 = "{HASH}"\n', ""), "sha256: required and missing"),
        (TABLE + TABLE.replace("k1", "k2"), "k1 and k2 have the same secret"),
        (TABLE + "#" * 1_000_000, "larger than 1,000,000 bytes"),
    ],
)
def test_a_malformed_file_is_refused_in_one_sentence(path: Path, content: str, said: str) -> None:
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        KeyRing.load(path)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text_are_refused(path: Path) -> None:
    path.write_bytes(TABLE.encode() + b'# \xff"')
    with pytest.raises(ConfigError, match="not valid TOML"):
        KeyRing.load(path)


def test_a_file_by_hand_may_leave_out_what_has_a_default(path: Path) -> None:
    path.write_text("\ufeff" + TABLE + 'concurrent = "none"\n', encoding="utf-8")
    key = KeyRing.load(path).find("sp-known")
    assert isinstance(key, Key)
    assert (key.id, key.admin, key.requests_per_minute, key.concurrent, key.expires) == (
        "k1", False, None, None, None)  # fmt: skip


def test_what_is_no_file_is_refused(path: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="There is no file of keys"):
        KeyRing.load(path)
    for call in (KeyRing.load, lambda folder: add_key(folder, "a")):
        with pytest.raises(ConfigError, match="folder"):
            call(tmp_path)
    with pytest.raises(ConfigError, match="folder"):
        add_key("", "a")


@posix
def test_a_pipe_is_refused_without_waiting_for_it(path: Path) -> None:
    os.mkfifo(path, 0o600)
    with pytest.raises(ConfigError, match="pipe"):
        KeyRing.load(path)


@posix
def test_the_file_is_private_and_replaced_behind_a_link(path: Path, tmp_path: Path) -> None:
    os.umask(0)
    link = tmp_path / "link.toml"
    link.symlink_to(path)
    for _ in range(2):
        add_key(link, "a")
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert link.is_symlink()
        path.chmod(0o644)  # others may read hashes; the next change makes it private again
    assert len(KeyRing.load(path).keys) == 2


@posix
@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_may_write_gives_no_keys(path: Path, mode: int) -> None:
    add_key(path, "a")
    path.chmod(mode)
    with pytest.raises(ConfigError, match="chmod 600"):
        KeyRing.load(path)


def test_a_change_that_fails_leaves_the_file_as_it_was(path: Path) -> None:
    path.write_text(TABLE, encoding="utf-8")
    with pytest.raises(ConfigError):
        add_key(path, "")
    with pytest.raises(ConfigError, match="There is no key k2"):
        revoke_key(path, "k2")
    many = "".join(TABLE.replace("k1", f"k{i}").replace(HASH, f"{i:064x}") for i in range(6_000))
    path.write_text(many[: many.rindex("[keys.", 0, 999_990)], encoding="utf-8")
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="revoke keys that are not used"):
        add_key(path, "one more", prompts=["p" * 200] * 10)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir() if file.suffix != ".lock"] == ["keys.toml"]


def test_keys_made_at_the_same_time_are_all_kept(path: Path) -> None:
    threads = [threading.Thread(target=add_key, args=(path, f"key {i}")) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {key.name for key in KeyRing.load(path).keys} == {f"key {i}" for i in range(12)}


# While serving -----------------------------------------------------------------------------------


def test_a_running_server_sees_keys_come_and_go(path: Path) -> None:
    first, secret = add_key(path, "first")
    said: list[str] = []
    file = KeyFile(path, said.append)
    assert file.find(secret) == first
    second, other = add_key(path, "second")
    assert file.find(other) == second
    revoke_key(path, first.id)
    assert file.find(secret) is None
    assert file.find(other) == second
    assert said == []


def test_a_file_that_has_not_changed_is_not_read_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, secret = add_key(path, "a")
    file = KeyFile(path)
    really, opened = os.open, []

    def counted(*args: Any) -> int:
        opened.append(args[0])
        return really(*args)

    monkeypatch.setattr(os, "open", counted)
    assert file.find(secret) == key
    assert opened == []
    path.touch()
    assert file.find(secret) == key
    assert opened == [str(path)]
    path.write_text("[keys", encoding="utf-8")  # written by pathlib, which opens without os.open
    for _ in range(3):
        with pytest.raises(NoKeysError):
            file.find(secret)
    assert opened == [str(path)] * 2


def _torn(path: Path) -> None:
    path.write_text(path.read_text(encoding="utf-8")[:-20], encoding="utf-8")


def _gone(path: Path) -> None:
    path.unlink()


def _open_to_others(path: Path) -> None:
    path.chmod(0o666)


@posix
@pytest.mark.parametrize("breaking", [_torn, _gone, _open_to_others])
def test_a_broken_file_refuses_everybody_and_says_why_once(
    path: Path, breaking: Callable[[Path], None]
) -> None:
    key, secret = add_key(path, "a")
    sound = path.read_bytes()
    said: list[str] = []
    file = KeyFile(path, said.append)
    breaking(path)
    for _ in range(3):
        with pytest.raises(NoKeysError) as caught:
            file.find(secret)
        assert str(path) not in str(caught.value)
    (line,) = said
    assert "Every request is refused" in line
    assert str(path) in line
    path.unlink(missing_ok=True)
    path.write_bytes(sound)
    assert file.find(secret) == key
    assert len(said) == 2
    assert "in order again" in said[1]


def test_a_fault_of_the_machine_is_tried_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, secret = add_key(path, "a")
    file = KeyFile(path)
    path.touch()

    def too_many(*args: object) -> int:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", too_many)
        with pytest.raises(NoKeysError):
            file.find(secret)
        with pytest.raises(ResourceError, match="Too many open files"):
            KeyRing.load(path)
    assert file.find(secret) == key


def test_a_server_does_not_start_without_sound_keys(path: Path) -> None:
    with pytest.raises(ConfigError, match="softprompt keys add"):
        KeyFile(path)


def test_an_empty_file_lets_nobody_in(path: Path) -> None:
    path.touch()
    assert KeyFile(path).find("") is None
