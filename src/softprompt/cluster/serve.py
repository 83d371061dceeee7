"""Replicas of the server under Ray Serve: started, scaled, replaced, watched and reached.

Ray keeps as many replicas as are needed, asks after their health, starts anew what died and lets go what is
replaced when its requests have ended. Which of them a request goes to is ``homes``' word.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ray import serve
from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    RayActorError,
    TaskCancelledError,
    WorkerCrashedError,
)
from ray.serve.config import AutoscalingConfig, ProxyLocation, RequestRouterConfig
from ray.serve.exceptions import DeploymentUnavailableError, RayServeException, ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle
from ray.serve.request_router import PendingRequest, ReplicaID, ReplicaResult, RequestRouter, RunningReplica

from softprompt.cluster.door import Ask, Door, LostError
from softprompt.cluster.homes import Homes
from softprompt.cluster.ray import connect
from softprompt.cluster.replica import Asked, Part, Replica, ServeSettings
from softprompt.serving.api.gate import Bounds
from softprompt.serving.keys import KeyFile

__all__ = ["HomeRouter", "ReplicaScale", "application", "asker", "start", "stop"]

_APP, _REPLICAS = "softprompt", "replicas"
_GONE = (
    RayActorError,
    WorkerCrashedError,
    NodeDiedError,
    ObjectLostError,
    TaskCancelledError,
    ReplicaUnavailableError,
    DeploymentUnavailableError,
)
"""What says that a replica, or the way to it, is no more."""

_PATIENCE = 4
"""How often a home is asked before others are."""


@dataclass(frozen=True)
class ReplicaScale:
    """How many replicas there are, and what each takes.

    Attributes:
        least: replicas that are always there.
        most: replicas that there may be when many ask.
        cpus: cores of each, which Ray keeps for it.
        gpus: devices of each.
        drain: seconds for requests to end in when a replica is let go.
        patience: seconds between two questions after the health of a replica.
    """

    least: int = 1
    most: int = 1
    cpus: float = 1.0
    gpus: float = 0.0
    drain: float = 20.0
    patience: float = 5.0


@dataclass(frozen=True)
class _Way:
    """Where a request goes, whether it is what brings its prompt there, and the how manieth way it is."""

    replica: str
    brings: bool
    tries: int


class HomeRouter(RequestRouter):  # type: ignore[misc]
    """Serve's choice of a replica, made by ``Homes``; it lives where requests come in."""

    def initialize_state(self, budget: int | None, free: int) -> None:
        """Called once, with the deployment's ``request_router_kwargs``."""
        self._homes = Homes(budget, free=free)
        self._told: dict[str, int] = {}
        self._at: dict[str, _Way] = {}  # requests under way, by Ray's id for them

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """The home of the request's prompt; all others only where that does not answer for a while.

        Serve goes on to the next at once where a replica does not tell its queue within a tenth of a second,
        as one that loads a prompt may not. Where nobody is left it asks here again, each time a little later.
        """
        if pending_request is None or not candidate_replicas:
            return [candidate_replicas]
        by_name = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        self._homes.there(by_name)
        for name, replica in by_name.items():
            told = replica.routing_stats
            if told and id(told) != self._told.get(name):  # told anew
                self._told[name] = id(told)
                self._homes.holds(name, told["held"], told["budget"])
        asked: Asked = pending_request.args[0]
        home = self._homes.home(asked.name)
        tries = self._goes(pending_request, home)
        if tries == 1:
            pending_request.future.add_done_callback(  # a client may leave before it is sent
                lambda future: self._ends(_id(pending_request)) if future.cancelled() else None
            )
        others = [replica for name, replica in by_name.items() if name != home]
        return [[by_name[home]], others] if tries > _PATIENCE else [[by_name[home]]]

    def on_request_routed(
        self, pending_request: PendingRequest, replica_id: ReplicaID, result: ReplicaResult
    ) -> None:
        """It may have gone elsewhere, where its home did not answer or would take no more."""
        way = self._at.get(_id(pending_request))
        if way is None or way.replica != replica_id.unique_id:
            self._goes(pending_request, replica_id.unique_id)

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """However it ended."""
        self._ends(internal_request_id)

    def _goes(self, pending: PendingRequest, replica: str) -> int:
        """How often it has been sent somewhere by now."""
        name, before = pending.args[0].name, self._at.get(_id(pending))
        self._ends(_id(pending))
        brings = self._homes.began(replica, name)
        if before is not None and before.brings:
            if before.replica == replica:
                brings = True
            else:
                self._homes.never_came(before.replica, name)
        tries = 1 if before is None else before.tries + 1
        self._at[_id(pending)] = _Way(replica, brings, tries)
        return tries

    def _ends(self, request: str) -> None:
        way = self._at.pop(request, None)
        if way is not None:
            self._homes.ended(way.replica)


def _id(pending: PendingRequest) -> str:
    return str(pending.metadata.internal_request_id)


def start(settings: ServeSettings, scale: ReplicaScale, address: str) -> Ask:
    """Start replicas on a cluster, or replace those there one after the other; what sends requests to them.

    Returns when the first replicas answer.

    Raises:
        ResourceError: there is no cluster.
    """
    connect(address)
    serve.start(proxy_location=ProxyLocation.Disabled)
    handle = serve.run(_replicas(settings, scale), name=_APP, route_prefix=None)
    return asker(handle)


def stop() -> None:
    """Let the replicas end, if there are any."""
    with suppress(RayServeException):
        serve.delete(_APP)


def asker(handle: DeploymentHandle[Any]) -> Ask:
    """What sends requests to the replicas behind a handle."""
    streaming = handle.options(stream=True)

    async def ask(asked: Asked) -> AsyncIterator[Part]:
        answer = streaming.remote(asked)
        try:
            async for part in answer:
                yield part
        except _GONE as error:
            raise LostError(str(error).partition("\n")[0]) from error
        finally:
            answer.cancel()  # nothing, where it has ended

    return ask


def application(args: Mapping[str, Any]) -> serve.Application:
    """The whole service as one Serve application, for a RayService or `serve run`: door and replicas.

    Args:
        args: ``library``, ``model``, ``replicas`` (MIN:MAX), ``budget`` (bytes), ``rows``, ``keys`` (a file),
            ``cpus``, ``gpus``, ``device``, ``dtype`` and ``batch_invariant``; only the first two are needed.
    """
    least, most = map(int, str(args.get("replicas", "1:1")).split(":"))
    base = {name: args[name] for name in ("model", "device", "dtype", "revision") if name in args}
    numbers = ("budget", "rows", "queue", "kv_memory", "batch_invariant")
    engine = {name: int(args[name]) for name in numbers if name in args}
    settings = ServeSettings(str(args["library"]), base, engine, keyed="keys" in args)
    scale = ReplicaScale(least, most, float(args.get("cpus", 1)), float(args.get("gpus", 0)))
    door = serve.deployment(serve.ingress()(_DoorReplica), name="door", max_ongoing_requests=10_000)
    return door.bind(_replicas(settings, scale), args.get("keys"), settings.seconds)


class _DoorReplica:
    """The door as a deployment of its own; there is one, for limits are counted in it."""

    def __init__(self, replicas: DeploymentHandle[Any], keys: str | None, seconds: float) -> None:
        ring = None if keys is None else KeyFile(keys, print)
        self._door = Door(asker(replicas), keys=ring, bounds=Bounds(seconds=seconds))

    def __serve_build_asgi_app__(self) -> Door:
        return self._door


def _replicas(settings: ServeSettings, scale: ReplicaScale) -> serve.Application:
    rows, queue = settings.engine.get("rows", 32), settings.engine.get("queue", 256)
    router = RequestRouterConfig(
        request_router_class=HomeRouter,
        request_router_kwargs={"budget": settings.engine.get("budget"), "free": rows},
        request_routing_stats_period_s=1.0,
        request_routing_stats_timeout_s=5.0,
    )
    how: dict[str, Any] = {"num_replicas": scale.least}
    if scale.most > scale.least:
        how = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=scale.least,
                max_replicas=scale.most,
                target_ongoing_requests=max(1.0, rows / 2),
                upscale_delay_s=10.0,
                downscale_delay_s=300.0,
            )
        }
    made = serve.deployment(
        Replica,
        name=_REPLICAS,
        max_ongoing_requests=rows + queue,
        graceful_shutdown_timeout_s=scale.drain,
        graceful_shutdown_wait_loop_s=0.5,
        health_check_period_s=scale.patience,
        health_check_timeout_s=max(10.0, 2 * scale.patience),
        request_router_config=router,
        ray_actor_options={"num_cpus": scale.cpus, "num_gpus": scale.gpus},
        **how,
    )
    return made.bind(settings)
