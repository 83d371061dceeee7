"""``serve --ray``: replicas on a cluster behind one address, which is this process."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from softprompt.cli.options import require_ray
from softprompt.cli.serve import cards_of, tell, url_of, which_base

if TYPE_CHECKING:
    from collections.abc import Sequence

    from softprompt.cli.options import BaseChoice
    from softprompt.serving.keys import KeyFile

__all__ = ["refuse_what_is_not_there", "replicas_of", "serve_by_ray"]


def serve_by_ray(
    address: str,
    replicas: tuple[int, int],
    scale: dict[str, Any],
    library: str,
    choice: BaseChoice,
    engine: dict[str, Any],
    keys: KeyFile | None,
    *,
    at: tuple[str, int],
    admin: bool,
    timeout: float,
    as_json: bool,
) -> None:
    """Serve from replicas on a cluster, with this process as their door, until it is stopped."""
    from softprompt.cli import screen
    from softprompt.cluster import serve as cluster
    from softprompt.cluster.door import Door
    from softprompt.cluster.replica import ServeSettings
    from softprompt.library.card import kept_name
    from softprompt.serving.api.gate import Bounds, Drain
    from softprompt.serving.api.server import bind, serve

    cards = cards_of(library)
    which = which_base(choice, cards)
    settings = ServeSettings(
        library if "://" in library else str(Path(library).absolute()),
        {
            "model": kept_name(which.model),  # a replica works in another folder
            "revision": which.revision,
            "quantisation": which.quantisation or choice.quantisation,
            "dtype": choice.dtype,
            "device": choice.device,
            "trust_remote_code": choice.trust_remote_code,
        },
        {name: value for name, value in engine.items() if value is not None},
        which.called or which.model,
        keyed=keys is not None,
        admin=admin,
        seconds=timeout,
    )
    with bind(*at) as sock:
        url = url_of(at[0], *sock.getsockname()[:2])
        try:
            with screen.waiting(f"Starting {replicas[0]} replicas"):
                ask = cluster.start(
                    settings,
                    cluster.ReplicaScale(*replicas, scale["cpus"], scale["gpus"], scale["drain"]),
                    address,
                )
            stopping = Drain()
            door = Door(ask, keys=keys, bounds=Bounds(seconds=timeout), drain=stopping, admin=admin)
            name = which.called or which.model
            serve(
                door,
                sock,
                stopping,
                seconds=scale["drain"],
                abandon=lambda: None,
                ready=lambda: tell(
                    url, name, [c for c in cards if c.base.called == name], keys is not None, as_json
                ),
            )
        finally:
            cluster.stop()


def refuse_what_is_not_there(
    address: str, engine: str, origins: Sequence[str], traces_at: str | None
) -> None:
    """Refuse what one server can do and replicas cannot, before any work."""
    from softprompt.errors import ConfigError

    require_ray(address, otherwise="serve without --ray")
    if engine != "own":
        raise ConfigError("--ray serves with softprompt's own engine; leave --engine out.")
    if origins:
        raise ConfigError("--allowed-origins is not there with --ray; let a proxy in front allow them.")
    if traces_at is not None:
        raise ConfigError(
            "--otlp-traces-endpoint is not there with --ray; let a proxy in front trace requests."
        )


def replicas_of(replicas: str | None) -> tuple[int, int]:
    """What ``MIN:MAX``, or one number, says."""
    from softprompt.errors import ConfigError

    least, colon, most = (replicas or "1").partition(":")
    if not (least.isdecimal() and (most.isdecimal() or not colon)):
        raise ConfigError(f"--replicas takes MIN:MAX, such as 2:8, not {replicas!r}.")
    found = int(least), int(most or least)
    if not 1 <= found[0] <= found[1] <= 1_000:
        raise ConfigError(
            f"--replicas takes MIN:MAX with 1 to 1,000 replicas and MIN first, not {replicas!r}."
        )
    return found
