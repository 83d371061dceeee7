"""The verb ``serve``: a library and a base in, an HTTP server with OpenAI's interface until it is stopped."""

from __future__ import annotations

import json
import logging
import shlex
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from softprompt.cli.options import (
    BaseChoice,
    examples,
    json_option,
    library_option,
    ray_option,
    refuse_missing,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from softprompt.base.model import Base
    from softprompt.library.card import Card
    from softprompt.serving.api.traces import Traces
    from softprompt.serving.engine import Backend
    from softprompt.serving.keys import KeyFile

__all__ = ["WhichBase", "cards_of", "command", "served_base", "tell", "url_of", "which_base"]

BUNDLED = "smollm2-135m"
"""What is served where neither --model nor a prompt names a base."""

_EXAMPLES = """
softprompt serve
softprompt serve --library prompts --port 9000 --budget 2GB --pin bbc-topics
softprompt serve --host 0.0.0.0 --keys keys.toml
softprompt serve --engine vllm --engine-arg tensor_parallel_size=2
softprompt serve --ray --replicas 2:8 --library s3://bucket/prompts
"""


@click.command("serve", epilog=examples(_EXAMPLES))
@library_option
@click.option(
    "--model",
    "--base",
    "model",
    metavar="M",
    help="The base: a bundled name, hub id, folder or .gguf file.  [default: that of the prompts]",
)
@click.option("--host", default="127.0.0.1", show_default=True, metavar="H", help="The address to listen at.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    metavar="N",
    help="0 for any that is free.",
)
@click.option("--keys", metavar="FILE", help="API keys, made by `softprompt keys`; needed for other hosts.")
@click.option("--admin", is_flag=True, help="Open the admin paths where there are no keys.")
@click.option(
    "--allowed-origins",
    "origins",
    multiple=True,
    metavar="URL",
    help="A site whose pages may ask from a browser, such as https://example.org; may repeat.",
)
@click.option("--budget", metavar="SIZE", help="Memory for loaded prompts, such as 2GB.  [default: no limit]")
@click.option(
    "--kv-memory", metavar="SIZE", help="Memory for keys and values of texts at work.  [default: 2GiB]"
)
@click.option("--pin", "pinned", multiple=True, metavar="NAME", help="Load now, never evict; may repeat.")
@click.option(
    "--rows",
    type=click.IntRange(1),
    default=32,
    show_default=True,
    metavar="N",
    help="Answers at once.",
)
@click.option(
    "--queue",
    type=click.IntRange(1),
    default=256,
    show_default=True,
    metavar="N",
    help="Answers waiting.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    default=600.0,
    show_default=True,
    metavar="S",
    help="Seconds a request may take.",
)
@click.option(
    "--drain",
    type=click.FloatRange(0),
    default=20.0,
    show_default=True,
    metavar="S",
    help="Seconds to finish requests in when stopped.",
)
@click.option("--dtype", default="auto", metavar="T", help="auto, float32, bfloat16 or float16.")
@click.option(
    "--batch-invariant",
    is_flag=True,
    help="Give the same answer, bit for bit, in any company, also in bfloat16; costs speed.",
)
@click.option("--device", default="auto", metavar="D", help="auto, cpu, cuda, cuda:1 or mps.")
@click.option(
    "--engine",
    type=click.Choice(["own", "vllm"]),
    default="own",
    show_default=True,
    help="What computes: softprompt's own engine, or a vLLM that is installed beside it.",
)
@click.option(
    "--engine-arg",
    "engine_args",
    multiple=True,
    metavar="KEY=VALUE",
    help="An engine argument of vLLM's, such as tensor_parallel_size=2; may repeat.",
)
@ray_option
@click.option(
    "--replicas", metavar="MIN:MAX", help="How many replicas there are, with --ray.  [default: 1:1]"
)
@click.option(
    "--replica-cpus",
    type=click.FloatRange(0, min_open=True),
    default=1.0,
    show_default=True,
    metavar="N",
    help="Cores of each replica, with --ray.",
)
@click.option("--trust-remote-code", is_flag=True, help="Run Python code that comes with a hub model.")
@click.option("--log", "verbose", is_flag=True, help="Print a line for every request.")
@click.option("--log-json", is_flag=True, help="Print it, and all that is logged, as JSON.")
@click.option(
    "--otlp-traces-endpoint",
    "traces_at",
    metavar="URL",
    help="Send OpenTelemetry spans of requests there, such as http://localhost:4318/v1/traces.",
)
@json_option
def command(
    library: str,
    model: str | None,
    host: str,
    port: int,
    keys: str | None,
    admin: bool,
    budget: str | None,
    kv_memory: str | None,
    pinned: tuple[str, ...],
    origins: tuple[str, ...],
    timeout: float,
    drain: float,
    engine: str,
    engine_args: tuple[str, ...],
    ray: str | None,
    replicas: str | None,
    replica_cpus: float,
    verbose: bool,
    log_json: bool,
    traces_at: str | None,
    as_json: bool,
    **how: Any,
) -> None:
    """Serve the prompts of a library over HTTP, in OpenAI's form.

    Any client made for OpenAI works: give it this server's address with /v1, and as model the name of a
    prompt, or of the base. Stop it with Ctrl-C or SIGTERM; requests under way are finished.
    """
    from softprompt.packages import require

    require("serving")
    if engine == "vllm":
        require("vLLM", otherwise="serve with --engine own")
    if traces_at is not None:
        require("traces", otherwise="leave --otlp-traces-endpoint out")
    refuse_missing(library)
    from softprompt.errors import ConfigError
    from softprompt.planning.sizes import parse_size
    from softprompt.serving.api.app import create_app
    from softprompt.serving.api.gate import Bounds, Drain
    from softprompt.serving.api.page import page_routes
    from softprompt.serving.api.server import bind, serve
    from softprompt.serving.engine import Engine
    from softprompt.serving.service import Service

    memory = None if budget is None else parse_size(budget)
    kv_bytes = None if kv_memory is None else parse_size(kv_memory)
    ring = _keys(keys, host)
    if engine_args and engine != "vllm":
        raise ConfigError("--engine-arg is for --engine vllm; leave it out.")
    if how["batch_invariant"] and engine != "own":
        raise ConfigError("--batch-invariant is for --engine own; leave one of them out.")
    # Beside vLLM the base is only read for soft prompts and the probe, and leaves the device to vLLM.
    device = "cpu" if engine == "vllm" and how["device"] == "auto" else how["device"]
    choice = BaseChoice(model, how["dtype"], device, how["trust_remote_code"])
    if ray is not None:
        from softprompt.cli.serve_cluster import refuse_what_is_not_there, replicas_of, serve_by_ray

        refuse_what_is_not_there(ray, engine, origins, traces_at)
        shape = {
            "rows": how["rows"],
            "queue": how["queue"],
            "kv_memory": kv_bytes,
            "budget": memory,
            "batch_invariant": how["batch_invariant"],
        }
        scale: dict[str, Any] = {
            "cpus": replica_cpus,
            "gpus": float(device.startswith("cuda")),
            "drain": drain,
        }
        _log(verbose or log_json, log_json)
        serve_by_ray(
            ray,
            replicas_of(replicas),
            scale,
            library,
            choice,
            {**shape, "pinned": pinned},
            ring,
            at=(host, port),
            admin=admin,
            timeout=timeout,
            as_json=as_json,
        )
        return
    if replicas is not None:
        raise ConfigError("--replicas is for --ray; leave it out, or give --ray.")
    with bind(host, port) as sock:
        cards = cards_of(library)
        base = served_base(choice, cards)
        _log(verbose or log_json, log_json)
        shape = {"rows": how["rows"], "queue": how["queue"], "kv_memory": kv_bytes}
        backend = _vllm(base, library, engine_args, shape) if engine == "vllm" else None
        served = Engine(
            base,
            library,
            budget=memory,
            pinned=pinned,
            batch_invariant=how["batch_invariant"],
            backend=backend,
            **shape,
        )
        for name in pinned:
            served.registry.lease(name).close()
        service, stopping = Service(served), Drain()
        traces = None if traces_at is None else _traces(traces_at)
        app = create_app(
            service,
            keys=ring,
            bounds=Bounds(seconds=timeout),
            drain=stopping,
            admin_open=admin,
            page=page_routes,
            origins=origins,
            traces=traces,
        )
        served.library.sweep()
        url = url_of(host, *sock.getsockname()[:2])
        fitting = [card for card in cards if card.base.fingerprint == base.fingerprint]
        served.start()
        try:
            serve(
                app,
                sock,
                stopping,
                seconds=drain,
                abandon=lambda: served.close(0.0),
                ready=lambda: tell(url, base.name, fitting, ring is not None, as_json),
            )
        finally:
            served.close(0.0)
            service.close()
            if traces is not None:
                traces.close()


def _traces(endpoint: str) -> Traces:
    """What sends spans to a collector."""
    from softprompt.errors import ConfigError
    from softprompt.serving.api.traces import exporting

    if not endpoint.startswith(("http://", "https://")):
        raise ConfigError(
            f"--otlp-traces-endpoint takes a URL, such as http://localhost:4318/v1/traces, not {endpoint!r}."
        )
    return exporting(endpoint)


def _keys(path: str | None, host: str) -> KeyFile | None:
    """The keys, without which only this machine is served."""
    from softprompt.cli import screen
    from softprompt.errors import ConfigError
    from softprompt.serving.api.gate import is_loopback
    from softprompt.serving.keys import KeyFile

    if path is not None:
        return KeyFile(path, screen.say)
    if not is_loopback(host):
        raise ConfigError(
            f"Without keys everybody who reaches {host!r} could use this server; make some with `softprompt "
            "keys add NAME` and give --keys keys.toml, or listen at 127.0.0.1."
        )
    return None


def cards_of(library: str) -> list[Card]:
    """Cards of the sound prompts of a library."""
    from softprompt.library.folder import Library

    return [entry.card for entry in Library(library).list() if entry.card is not None]


def served_base(choice: BaseChoice, cards: Sequence[Card]) -> Base:
    """The base to serve: the one asked for, that of the prompts, or the bundled one."""
    which = which_base(choice, cards)
    base = choice.load(which.model, which.revision, which.quantisation)
    return base if which.called is None else replace(base, name=which.called)


class WhichBase(NamedTuple):
    """A base to load, and what it is called if not by the name it is loaded by."""

    model: str
    revision: str | None = None
    quantisation: str | None = None
    called: str | None = None


def which_base(choice: BaseChoice, cards: Sequence[Card]) -> WhichBase:
    from softprompt.errors import ConfigError

    bases = {(c.base.name, c.base.revision, c.base.quantisation): None for c in cards}
    if choice.model is not None:
        kinds = {quantisation for name, _, quantisation in bases if name == choice.model}
        return WhichBase(choice.model, quantisation=kinds.pop() if len(kinds) == 1 else None)
    if len(bases) > 1:
        names = ", ".join(sorted({card.base.called for card in cards}))
        raise ConfigError(
            f"The prompts of this library are for several bases ({names}); say with --model which to serve."
        )
    if not cards:
        return WhichBase(BUNDLED)
    about = cards[0].base
    return WhichBase(about.name, about.revision, about.quantisation, about.called)


def _vllm(base: Base, library: str, engine_args: Sequence[str], shape: dict[str, Any]) -> Backend:
    """A vLLM that holds the base, with room for the LoRA adapters that the library has now."""
    from softprompt.cli import screen
    from softprompt.errors import ConfigError
    from softprompt.vllm.engine import VllmEngine, greatest_rank

    options = {}
    for word in engine_args:
        name, equals, value = word.partition("=")
        if not equals:
            raise ConfigError(f"--engine-arg takes KEY=VALUE, not {word!r}.")
        try:
            options[name.replace("-", "_")] = json.loads(value)
        except json.JSONDecodeError:
            options[name.replace("-", "_")] = value
    with screen.waiting("Starting vLLM and holding it against the base"):
        return VllmEngine(base, rank=greatest_rank(base, library), options=options, **shape)


class _JsonLines(logging.Formatter):
    """A JSON object a line: of a request with its facts, of all else with what is said."""

    def format(self, record: logging.LogRecord) -> str:
        facts = record.args if isinstance(record.args, dict) else {"message": record.getMessage()}
        if record.exc_info:
            facts = {**facts, "traceback": self.formatException(record.exc_info)}
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        return json.dumps({"time": moment, "level": record.levelname.lower(), **facts})


def _log(verbose: bool, as_json: bool) -> None:
    """Warnings go to stderr, and with ``verbose`` a line for every request."""
    logger = logging.getLogger("softprompt.serving")
    logger.setLevel(logging.INFO if verbose else logging.WARNING)
    handler = logging.StreamHandler()
    plain = logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    handler.setFormatter(_JsonLines() if as_json else plain)
    logger.handlers = [handler]
    logger.propagate = False


def url_of(host: str, address: str, port: int) -> str:
    """An address one can call: a server that listens everywhere is at this machine, too."""
    name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, host)
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


def tell(url: str, base: str, cards: Sequence[Card], keyed: bool, as_json: bool) -> None:
    from softprompt.cli import screen

    if as_json:
        names = [card.name for card in cards]
        screen.print_json({"url": url, "base": base, "prompts": names})
        return
    count = f"{len(cards)} prompt{'' if len(cards) == 1 else 's'}"
    print(screen.clean(f"Serving {count} on {base} at {url}; stop it with Ctrl-C. Try:"))
    print(screen.clean(_curl(url, base, cards, keyed)), flush=True)


def _curl(url: str, base: str, cards: Sequence[Card], keyed: bool) -> str:
    """A line to try, with a prompt that plain text will do for."""
    one = next((card for card in cards if len(card.template.template.input_fields) == 1), None)
    key = ' -H "Authorization: Bearer $KEY"' if keyed else ""
    path, words = (
        "completions",
        {"model": base if one is None else one.name, "prompt": "Once upon a time"},
    )
    if one is not None and one.template.labels is not None:
        path, words = "classify", {"model": one.name, "input": "your text"}
    asked = shlex.quote(json.dumps(words))
    return f"  curl {url}/v1/{path}{key} -H 'Content-Type: application/json' -d {asked}"
