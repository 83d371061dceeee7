"""The verb ``keys``: a file of API keys in, the same with one more or one fewer out, or a line for each."""

from __future__ import annotations

from datetime import date
from typing import TYPE_CHECKING

import click

from softprompt.cli.options import examples, json_option

if TYPE_CHECKING:
    from softprompt.serving.keys import Key

__all__ = ["command"]

_HEADS = (
    "id",
    "name",
    "prompts",
    "admin",
    "a minute",
    "tokens",
    "at once",
    "weight",
    "created",
    "expires",
)
_USUAL = {"tokens": "any", "weight": "1"}
"""Columns that are left out where every key has this."""
_NUMBERS = ("a minute", "tokens", "at once", "weight")
_EXAMPLES = """
softprompt keys add newsroom --prompts bbc-topics,summaries --rate 60 --expires 2027-01-01
softprompt keys list --json
softprompt keys revoke k3f9a2
"""

_COUNT = click.IntRange(1, 1_000_000)
_TOKENS = click.IntRange(1, 1_000_000_000)
_file_option = click.option(
    "--file", default="keys.toml", show_default=True, metavar="FILE", help="The file of keys."
)


@click.group(
    "keys", epilog=examples(_EXAMPLES), subcommand_metavar="add|list|revoke ...", no_args_is_help=False
)
def command() -> None:
    """Make, list and revoke the API keys of a server.

    The file holds no secrets, only what proves one, and only its owner may read it. A running server notices
    changes by itself.
    """


@command.command("add")
@click.argument("name")
@click.option(
    "--prompts",
    default="*",
    show_default=True,
    metavar="A,B",
    help="The prompts it may ask for; * for all, and the base itself.",
)
@click.option("--rate", type=_COUNT, metavar="N", help="Requests a minute.  [default: any number]")
@click.option("--concurrent", type=_COUNT, metavar="N", help="Requests at once.  [default: any number]")
@click.option(
    "--tokens", type=_TOKENS, metavar="N", help="Tokens a minute, read and written.  [default: any number]"
)
@click.option(
    "--weight",
    type=click.FloatRange(0.01, 100),
    default=1.0,
    show_default=True,
    metavar="X",
    help="Its share of the server beside other keys.",
)
@click.option("--admin", is_flag=True, help="Let it also see and change what the server holds.")
@click.option("--expires", metavar="DAY", help="Refuse it from this day on (UTC), such as 2027-01-01.")
@_file_option
@json_option
def add(
    name: str,
    prompts: str,
    rate: int | None,
    concurrent: int | None,
    tokens: int | None,
    weight: float,
    admin: bool,
    expires: str | None,
    file: str,
    as_json: bool,
) -> None:
    """Make a key for NAME and show its secret, once."""
    from softprompt.cli import screen
    from softprompt.serving.keys import add_key

    key, secret = add_key(
        file,
        name,
        prompts=[prompt.strip() for prompt in prompts.split(",")],
        admin=admin,
        requests_per_minute=rate,
        concurrent=concurrent,
        tokens_per_minute=tokens,
        weight=weight,
        expires=None if expires is None else _day(expires),
    )
    if as_json:
        screen.print_json({"file": file, "secret": secret, "key": _json(key)})
        return
    screen.say(f"The key {key.id} for {name} is in {file}. This is its secret, shown only now; keep it safe:")
    print(secret, flush=True)


@command.command("list")
@_file_option
@json_option
def list_keys(file: str, as_json: bool) -> None:
    """List the keys, without their secrets, which are nowhere."""
    from pathlib import Path

    from softprompt.cli import screen
    from softprompt.serving.keys import KeyRing

    keys = KeyRing.load(file).keys if Path(file).exists() else ()
    if as_json:
        screen.print_json({"file": file, "keys": [_json(key) for key in keys]})
        return
    if not keys:
        screen.out().print(
            f"There are no keys in {screen.clean(file)} yet; `softprompt keys add NAME` makes one."
        )
        return
    rows = [_row(key) for key in keys]
    shown = [n for n, head in enumerate(_HEADS) if any(row[n] != _USUAL.get(head) for row in rows)]
    heads = [_HEADS[n] for n in shown]
    numbers = [place for place, head in enumerate(heads) if head in _NUMBERS]
    screen.print_grid(heads, [[row[n] for n in shown] for row in rows], right=numbers)


@command.command("revoke")
@click.argument("id")
@_file_option
@json_option
def revoke(id: str, file: str, as_json: bool) -> None:
    """Take the key ID out of the file; a running server refuses it from then on."""
    from softprompt.cli import screen
    from softprompt.serving.keys import revoke_key

    key = revoke_key(file, id)
    if as_json:
        screen.print_json({"file": file, "revoked": _json(key)})
        return
    screen.out().print(screen.clean(f"The key {key.id} of {key.name} is revoked."), soft_wrap=True)


def _day(text: str) -> date:
    from softprompt.config_io import shown
    from softprompt.errors import ConfigError

    try:
        return date.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"--expires: expected a day such as 2027-01-01, got {shown(text)}.") from None


def _row(key: Key) -> tuple[str, ...]:
    expires = "never" if key.expires is None else key.expires.isoformat()
    return (
        key.id,
        key.name,
        ", ".join(key.prompts),
        "yes" if key.admin else "no",
        _limit(key.requests_per_minute),
        _limit(key.tokens_per_minute),
        _limit(key.concurrent),
        f"{key.weight:g}",
        key.created.date().isoformat(),
        f"{expires} (past)" if key.expired() else expires,
    )


def _limit(count: int | None) -> str:
    return "any" if count is None else str(count)


def _json(key: Key) -> dict[str, object]:
    """All that is known of a key but its hash."""
    return {**key.model_dump(mode="json", exclude={"sha256"}), "expired": key.expired()}
