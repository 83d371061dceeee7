"""Keys from the command line: a secret once, the list without it, and a revoked key that is gone."""

from __future__ import annotations

import os
from datetime import date
from pathlib import Path

import pytest

from cli.shell import Shell
from softprompt.serving.keys import KeyRing


@pytest.fixture
def file(shell: Shell) -> Path:
    return shell.folder / "keys.toml"


def test_add_prints_the_secret_alone_and_a_sentence_beside_it(shell: Shell, file: Path) -> None:
    done = shell("keys", "add", "the newsroom")
    assert done.code == 0
    key = KeyRing.load(file).find(done.out.removesuffix("\n"))
    assert key is not None
    assert (key.name, key.prompts, key.admin, key.expires) == ("the newsroom", ("*",), False, None)
    assert f"The key {key.id} for the newsroom is in keys.toml." in done.err
    assert "shown only now" in done.err
    if os.name == "posix":
        assert file.stat().st_mode & 0o777 == 0o600


def test_add_takes_every_limit(shell: Shell, file: Path) -> None:
    done = shell("keys", "add", "a", "--prompts", "moods, topics", "--rate", "60", "--concurrent", "4",
                 "--admin", "--expires", "2999-01-02", "--file", "sub/other.toml", "--json")  # fmt: skip
    assert done.code == 0
    assert done.json["file"] == "sub/other.toml"
    key = KeyRing.load(shell.folder / "sub" / "other.toml").find(done.json["secret"])
    assert key is not None
    assert done.json["key"] == {
        "id": key.id,
        "name": "a",
        "prompts": ["moods", "topics"],
        "admin": True,
        "requests_per_minute": 60,
        "tokens_per_minute": None,
        "concurrent": 4,
        "weight": 1.0,
        "created": key.created.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "expires": "2999-01-02",
        "expired": False,
    }
    assert not file.exists()


def test_list_shows_all_but_secrets_and_hashes(shell: Shell, file: Path) -> None:
    assert "There are no keys in keys.toml yet" in shell("keys", "list").out
    assert shell("keys", "list", "--json").json == {"file": "keys.toml", "keys": []}
    secrets = [
        shell("keys", "add", "first", "--prompts", "moods", "--rate", "61").out.strip(),
        shell("keys", "add", "second", "--expires", "2999-01-02").out.strip(),
    ]
    keys = KeyRing.load(file).keys
    past = keys[1].model_copy(update={"id": "kpast", "sha256": "0" * 64, "expires": date(2020, 1, 1)})
    KeyRing((*keys, past)).save(file)
    table, listed = shell("keys", "list").out, shell("keys", "list", "--json")
    for word in (keys[0].id, keys[1].id, "first", "second", "moods", "61", "2999-01-02", "2020-01-01 (past)"):
        assert word in table
    assert [key["expired"] for key in listed.json["keys"]] == [False, False, True]
    for hidden in (*secrets, *(key.sha256 for key in keys)):
        assert hidden not in table
        assert hidden not in listed.out


def test_revoke_takes_the_key_out(shell: Shell, file: Path) -> None:
    first = shell("keys", "add", "first", "--json").json
    second = shell("keys", "add", "second", "--json").json
    done = shell("keys", "revoke", first["key"]["id"])
    assert done.code == 0
    assert f"The key {first['key']['id']} of first is revoked." in done.out
    assert KeyRing.load(file).find(first["secret"]) is None
    assert KeyRing.load(file).find(second["secret"]) is not None
    assert shell("keys", "revoke", second["key"]["id"], "--json").json["revoked"]["name"] == "second"
    assert KeyRing.load(file).keys == ()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("add", "x", "--rate", "0"), "--rate"),
        (("add", "x", "--concurrent", "many"), "--concurrent"),
        (("add", "x", "--prompts", "a,,b"), "prompts: expected 1 to 200 printable characters"),
        (("add", "x", "--expires", "tomorrow"), "--expires: expected a day such as 2027-01-01"),
        (("add", "x", "--expires", "2020-01-01"), "expires on 2020-01-01"),
        (("add", "a\x1bb"), "name: expected 1 to 200 printable characters"),
        (("add", "x", "--file", "."), "is a folder"),
        (("revoke", "k1", "--file", "none.toml"), "There is no file of keys"),
        (("list", "--file", "torn.toml"), "not valid TOML"),
        (("lst",), "Did you mean"),
        ((), "softprompt keys --help"),
    ],
    ids=str,
)
def test_what_is_wrong_is_said_in_a_sentence(shell: Shell, args: tuple[str, ...], said: str) -> None:
    shell.folder.joinpath("torn.toml").write_text("[keys", encoding="utf-8")
    before = set(shell.folder.iterdir())
    done = shell("keys", *args)
    assert done.code == 2
    assert done.out == ""
    assert said in done.err
    assert len(done.err.splitlines()) == 1
    assert set(shell.folder.iterdir()) <= before | {shell.folder / ".keys.toml.lock"}


def test_a_fault_is_json_for_programs_and_never_repeats_a_secret(shell: Shell) -> None:
    secret = shell("keys", "add", "a").out.strip()
    done = shell("keys", "revoke", secret, "--json")
    assert done.code == 2
    assert done.json["error"]["type"] == "ConfigError"
    assert secret not in done.out + done.err


@pytest.mark.parametrize("verb", ["add", "list", "revoke"])
def test_every_part_has_help(shell: Shell, verb: str) -> None:
    done = shell("keys", verb, "--help")
    assert done.code == 0
    assert f"softprompt keys {verb}" in done.out
    assert "--json" in done.out
