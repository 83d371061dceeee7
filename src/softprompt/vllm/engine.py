"""A vLLM of our own behind the engine's requests: what ``Scheduler`` is for the own engine. Knows no HTTP.

vLLM computes in processes of its own; here is one thread with an event loop, which hands requests over and
brings the chosen tokens back as events. Prompts reach vLLM's processes as files (``store``), LoRA adapters
through vLLM's LoRA.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import os
import signal
import tempfile
import threading
from collections.abc import Collection, Coroutine, Iterator, Mapping
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Any

import torch

from softprompt.base.copies import linear_layers
from softprompt.base.model import Base
from softprompt.errors import (
    ArtifactError,
    BaseModelError,
    CancelledJobError,
    ConfigError,
    QueueFullError,
    ResourceError,
    SoftpromptError,
)
from softprompt.generation.request import (
    CandidateLogprobs,
    Finished,
    GenerateRequest,
    ModelRequest,
    PromptLogprobs,
    RequestFailed,
    ScoreRequest,
    TokenScore,
)
from softprompt.generation.sampler import MOST_LOGPROBS, TokenChoice, token_choice
from softprompt.generation.scheduler import Callback, EngineState, RequestHandle
from softprompt.generation.sequence import AnswerState
from softprompt.generation.sharing import NOBODY, Owner, Places
from softprompt.library.folder import Library
from softprompt.serving.version import Version
from softprompt.vllm.flags import engine_fields, refuse_base
from softprompt.vllm.probe import ADAPTERS, worst_by_kind
from softprompt.vllm.sampling import Question, choice_of, questions, sampling_fields, summed
from softprompt.vllm.slots import placeholders
from softprompt.vllm.store import PARAMETER, Store, Stored, refuse_scaling

__all__ = ["VllmEngine", "greatest_rank"]

_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The ranks vLLM has room for."""

_log = logging.getLogger("softprompt.serving")


class VllmEngine:
    """vLLM, started, probed and asked; ``Engine(backend=...)`` hands requests to it.

    Args:
        base: the frozen base, from whose folder vLLM loads the same weights. It stays in memory to compute
            the keys and values of soft prompts, and to hold vLLM against.
        rows: most rows in a step.
        queue: most requests beyond those.
        kv_memory: bytes of vLLM's paged cache; its own choice if None.
        rank: the greatest rank of a LoRA adapter that may come; 0 for none.
        options: further fields of vLLM's ``EngineArgs``.

    Attributes:
        preemptions: how often vLLM took a row's memory away, to read it again later.

    Raises:
        BaseModelError: vLLM cannot serve this base, or does not answer as the base itself does.
        ConfigError: an option that vLLM does not know, or that prompts could not be served with.
        ResourceError: vLLM did not start.
    """

    def __init__(
        self,
        base: Base,
        *,
        rows: int = 32,
        queue: int = 256,
        kv_memory: int | None = None,
        rank: int = 0,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        refuse_base(base)
        self._base, self._rows, self._most = base, rows, rows + queue
        self._rank = next((r for r in _RANKS if r >= rank), 0) if rank else 0
        if rank > _RANKS[-1]:
            raise ConfigError(f"vLLM takes LoRA adapters of ranks up to {_RANKS[-1]}, not {rank}.")
        self._refused: dict[str, str] = {}
        self._zero: tuple[int, Path] | None = None
        self._stats: Any = None
        self._changed = threading.Condition()
        self._tasks: dict[RequestHandle, asyncio.Task[None]] = {}
        self._count, self._steps, self._closing = 0, 0, False
        self.preemptions = 0
        self._numbers = itertools.count()
        self._loop = asyncio.new_event_loop()
        self._folder = tempfile.TemporaryDirectory(prefix="softprompt-vllm-")
        self._store = Store(Path(self._folder.name), self._forget)
        fields = engine_fields(base, self._folder.name)
        fields |= {"max_num_seqs": rows, "max_logprobs": MOST_LOGPROBS}
        options = {"max_model_len": -1} | dict(options or {})
        if kv_memory is not None:
            fields["kv_cache_memory_bytes"] = kv_memory
        if self._rank:
            fields |= {"enable_lora": True, "max_lora_rank": self._rank, "max_loras": ADAPTERS}
            fields["max_cpu_loras"] = 4 * ADAPTERS
            # Not the head: where it may change, vLLM 0.32 dies on CPUs of a wish for a text's likelihoods.
            fields["lora_target_modules"] = sorted({n.rpartition(".")[2] for n in linear_layers(base)})
        self._llm = self._loop.run_until_complete(_started(fields, options, self._record))
        try:
            self._longest: int = self._llm.model_config.max_model_len
            cache = self._llm.vllm_config.cache_config
            self._room = int((cache.num_gpu_blocks or 0) * cache.block_size)
            self._probe()
        except BaseException:
            self._shut()
            raise

    @property
    def zero_adapter(self) -> bool:
        """Whether rows without an adapter carry one that changes nothing, as this vLLM needs it."""
        return self._zero is not None

    # -- what a prompt is to vLLM ----------------------------------------------------------------------

    def admit(self, version: Version) -> Version:
        """Let a version in: what vLLM needs of it is written down.

        Raises:
            ArtifactError: vLLM cannot serve it; says why.
        """
        try:
            if version.model.fingerprint != self._base.fingerprint:
                raise ValueError("it changes the whole model, of which vLLM holds one")
            if version.adapter is not None:
                self._check_adapter(version)
            if version.prefix.length >= self._longest:
                raise ValueError(
                    f"its {version.prefix.length} positions leave no room in vLLM's {self._longest}"
                )
            stored = self._store.put(version.prefix, version.adapter)
            if stored.adapter is not None:
                self._wait(self._llm.add_lora(_lora(stored.adapter)))
        except (ValueError, RuntimeError) as error:
            raise ArtifactError(
                f"{version.name} cannot be served by vLLM: {error}. Serve it with --engine own."
            ) from error
        return version

    def _check_adapter(self, version: Version) -> None:
        assert version.adapter is not None
        refuse_scaling(version.adapter)  # first: no other start would help
        if not self._rank:
            raise ValueError(
                "vLLM was started without LoRA, as no prompt needed it then; start the server again"
            )
        if version.adapter.rank > self._rank:
            raise ValueError(
                f"its rank is {version.adapter.rank}, and vLLM was started for up to {self._rank}; "
                "start the server again"
            )
        if "LoRA" in self._refused:
            raise ValueError(self._refused["LoRA"])

    def _forget(self, stored: Stored) -> None:
        if stored.adapter is not None and self._loop.is_running():
            asyncio.run_coroutine_threadsafe(self._llm.remove_lora(stored.adapter[0]), self._loop)

    def _wait(self, work: Coroutine[Any, Any, Any]) -> Any:
        """What comes of it, from a thread that is not the loop's."""
        if self._loop.is_running():
            return asyncio.run_coroutine_threadsafe(work, self._loop).result()
        return self._loop.run_until_complete(work)

    # -- from any thread, as ``Scheduler`` -----------------------------------------------------------------

    def submit(
        self, request: ModelRequest, callback: Callback, *, block: bool = False, owner: Owner = NOBODY
    ) -> RequestHandle:
        """Hand in a request; as ``Scheduler.submit``, but vLLM's places go to who came first, whose ever."""
        request.check()
        if isinstance(request, GenerateRequest) and request.grammar is not None:
            raise ConfigError("Beside vLLM no answer is held to a grammar; serve with --engine own for that.")
        if request.positions > self._longest:
            raise BaseModelError(
                f"The request needs {request.positions} positions, and vLLM was started with "
                f"{self._longest}; shorten the text or ask for fewer tokens."
            )
        if not request.ids:
            raise BaseModelError("vLLM needs a text to go on from; give at least one token.")
        with self._changed:
            while block and self._count >= self._most and not self._closing:
                self._changed.wait()
            if self._closing:
                raise QueueFullError("The server is shutting down; ask another one.")
            if self._count >= self._most:
                raise QueueFullError(
                    f"{self._most - self._rows} requests wait already; ask again in a moment."
                )
            self._count += 1
        handle = _Handle(self)
        self._loop.call_soon_threadsafe(self._begin, request, callback, handle)
        return handle

    def places(self, owner: Owner = NOBODY) -> Places:
        """As ``Scheduler.places``; the queue here is everybody's."""
        return Places(self._most - self._count, self._most)

    def state(self) -> EngineState:
        """How busy it is; positions and rows are vLLM's own count at its last step."""
        stats, count = self._stats, self._count
        running = min(count, self._rows if stats is None else stats.num_running_reqs)
        used = 0 if stats is None else round(stats.kv_cache_usage * self._room)
        return EngineState(running, count - running, used if count else 0, self._room, self._steps, None)

    def close(self) -> None:
        """Take no more requests; ``run`` returns when those it has are done."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._loop.call_soon_threadsafe(lambda: None)

    def abandon(self) -> None:
        """Cancel every request it has."""
        self._loop.call_soon_threadsafe(lambda: [task.cancel() for task in self._tasks.values()])

    def cancel(self, handle: RequestHandle) -> None:
        """Call one request off."""

        def cancel() -> None:
            task = self._tasks.get(handle)
            if task is not None:
                task.cancel()

        self._loop.call_soon_threadsafe(cancel)

    # -- in the one thread of the loop ---------------------------------------------------------------------

    def run(self) -> None:
        """Answer until it is closed, or until vLLM is gone."""
        try:
            self._loop.run_until_complete(self._until_closed())
        finally:
            self._shut()

    async def _until_closed(self) -> None:
        while not (self._closing and not self._count) and not self._llm.errored:
            await asyncio.sleep(0.05)
        if self._llm.errored:
            _log.error("vLLM has ended; its own log says why.")
            with self._changed:
                self._closing = True
                self._changed.notify_all()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def _shut(self) -> None:
        self._llm.shutdown()
        self._store.close()
        self._folder.cleanup()

    def _record(self, stats: Any, iteration: Any) -> None:
        self._stats, self._steps = stats, self._steps + 1
        if iteration is not None:
            self.preemptions += iteration.num_preempted_reqs

    def _begin(self, request: ModelRequest, callback: Callback, handle: RequestHandle) -> None:
        task = self._loop.create_task(self._answered(request, callback, handle))
        self._tasks[handle] = task
        if handle.cancelled:  # before it began
            task.cancel()

        def ended(task: asyncio.Task[None]) -> None:
            if task.cancelled():  # before its first line
                _tell(callback, RequestFailed(CancelledJobError("The request was cancelled.")))
            with self._changed:
                self._tasks.pop(handle, None)
                self._count -= 1
                self._changed.notify_all()

        task.add_done_callback(ended)

    async def _answered(self, request: ModelRequest, callback: Callback, handle: RequestHandle) -> None:
        """Every event of a request, its last included, whatever happens."""
        told = False
        try:
            answer = self._generate if isinstance(request, GenerateRequest) else self._score
            await answer(request, callback)  # type: ignore[arg-type]
            told = True
        except asyncio.CancelledError:
            fault: SoftpromptError = CancelledJobError("The request was cancelled.")
        except SoftpromptError as error:
            fault = error
        except Exception as error:
            fault = BaseModelError(f"vLLM failed at this request ({type(error).__name__}); try it alone.")
            fault.__cause__ = error
        if not told:
            _tell(callback, RequestFailed(fault))

    async def _generate(self, request: GenerateRequest, callback: Callback) -> None:
        answer = AnswerState(request)
        fields = sampling_fields(request, answer.ends)
        if request.longest == 0 and not request.echo:
            callback(answer.finished("length"))
            return
        count = request.sampling.logprobs
        async with aclosing(self._outputs(request, (), fields, alone=request.echo)) as outputs:
            echoed = not request.echo
            async for output in outputs:
                if not echoed:
                    callback(PromptLogprobs(tuple(_echo(request, answer, output.prompt_logprobs))))
                    echoed = True
                    if request.longest == 0:
                        callback(answer.finished("length"))
                        return
                (one,) = output.outputs
                for place, token in enumerate(one.token_ids):
                    told = one.logprobs[place] if one.logprobs is not None else None
                    choice = choice_of(token, told, count)
                    if choice.logprob is not None and math.isnan(choice.logprob):
                        raise _not_finite()
                    for event in answer.add(choice):
                        callback(event)
                        if isinstance(event, Finished):
                            return
        raise BaseModelError("vLLM ended the answer early; its own log says why.")

    async def _score(self, request: ScoreRequest, callback: Callback) -> None:
        async def told(question: Question) -> tuple[Question, dict[int, float]]:
            fields = {
                "max_tokens": 1,
                "temperature": 0.0,
                "ignore_eos": True,
                "detokenize": False,
                "logprob_token_ids": list(question.tokens),
            }
            async with aclosing(self._outputs(request, question.behind, fields)) as outputs:
                async for output in outputs:
                    (one,) = output.outputs
                    if one.logprobs:
                        return question, {token: one.logprobs[0][token].logprob for token in question.tokens}
            raise BaseModelError("vLLM ended the answer early; its own log says why.")

        values = summed(request, await asyncio.gather(*map(told, questions(request))))
        if any(math.isnan(value) for value in values):
            raise _not_finite()
        callback(CandidateLogprobs(values))
        callback(Finished("stop", len(request.ids), request.prefix.length, 0))

    def _outputs(
        self, request: ModelRequest, behind: tuple[int, ...], fields: dict[str, Any], alone: bool = False
    ) -> Any:
        """VLLM's outputs for the text of a request with some tokens behind it.

        With ``alone`` nothing of it is taken from, or left in, the cache of blocks.
        """
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt
        from vllm.sampling_params import RequestOutputKind

        stored = self._store.put(request.prefix, request.adapter)
        number = next(self._numbers)
        if stored.key is not None:
            fields["extra_args"] = {"kv_transfer_params": {PARAMETER: stored.key}}
        prompt = TokensPrompt(
            prompt_token_ids=placeholders(stored.positions, (*request.ids, *behind)),
            cache_salt=f"{stored.salt}:{number}" if alone else stored.salt,
        )
        adapter = stored.adapter or self._zero
        return self._llm.generate(
            prompt,
            SamplingParams(output_kind=RequestOutputKind.DELTA, **fields),
            str(number),
            lora_request=None if adapter is None else _lora(adapter),
        )

    # -- the probe ---------------------------------------------------------------------------------------

    def _probe(self) -> None:
        """Hold mixed requests against the base itself; what vLLM gets wrong is refused by name.

        Raises:
            BaseModelError: plain texts or texts behind prompts are answered wrongly.
        """
        allowed = TOLERANCE[self._base.dtype]

        def wrong(kinds: Collection[str]) -> dict[str, float]:
            found = self._wait(worst_by_kind(self._base, self._ask, kinds))
            return {kind: gap for kind, gap in found.items() if not gap <= allowed}

        bad = wrong(("plain", "prompt"))
        if not bad and self._rank:
            bad = wrong(("plain", "prompt", "LoRA"))
            if bad:
                layer = linear_layers(self._base)[0]
                module = self._base.model.get_submodule(layer)
                self._zero = self._store.zero_adapter(layer, module.in_features, module.out_features)
                bad = wrong(("plain", "prompt", "LoRA"))
                if bad:
                    self._refused["LoRA"] = (
                        "the installed vLLM answers it, or others beside it, wrongly (off by "
                        f"{max(bad.values()):.2g} nats at the start)"
                    )
                    self._zero = None
                    bad = {}
                else:
                    _log.warning(
                        "The installed vLLM mixes adapters up with rows that have none, so those are given "
                        "one that changes nothing."
                    )
        if bad:
            said = " and ".join(f"{kind} requests by {gap:.2g} nats" for kind, gap in bad.items())
            raise BaseModelError(
                f"The installed vLLM does not answer as {self._base.name} does, {said} off in "
                "log-probability; serve it with --engine own."
            )

    async def _ask(self, request: ModelRequest) -> list[Any]:
        """The events of one request, alone in the caller's task."""
        events: list[Any] = []
        answer = self._generate if isinstance(request, GenerateRequest) else self._score
        await answer(request, events.append)  # type: ignore[arg-type]
        return events


TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.25, torch.float16: 0.05}
"""Nats by which log-probabilities may differ at the start: a wrong prompt is off by far more."""


class _Handle(RequestHandle):
    """Tells the engine at once when nobody waits any more."""

    def __init__(self, engine: VllmEngine) -> None:
        super().__init__()
        self._engine = engine

    def cancel(self) -> None:
        if not self.cancelled:
            super().cancel()
            self._engine.cancel(self)


def greatest_rank(base: Base, library: str) -> int:
    """Of all LoRA adapters a library holds for a base; 0 where there are none."""
    ranks = [0]
    for entry in Library(library).list():
        if entry.card is None or entry.card.base.fingerprint != base.fingerprint:
            continue
        try:
            ride = Library(library).load(entry.name).payload.ride(base)
        except SoftpromptError:
            continue  # it is refused by name when it is asked for
        if ride is not None and ride.change is not None:
            ranks.append(ride.change.rank)
    return max(ranks)


async def _started(fields: dict[str, Any], options: Mapping[str, Any], record: Any) -> Any:
    from vllm.config import KVTransferConfig
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.metrics.loggers import StatLoggerBase

    class Stats(StatLoggerBase):  # type: ignore[misc]
        """Keeps what vLLM last said of its scheduler."""

        def __init__(self, vllm_config: Any, engine_index: int = 0) -> None: ...

        def record(
            self, scheduler_stats: Any, iteration_stats: Any, mm_cache_stats: Any = None, engine_idx: int = 0
        ) -> None:
            if scheduler_stats is not None:
                record(scheduler_stats, iteration_stats)

        def log_engine_initialized(self) -> None: ...

    for name in options:
        if name in fields:
            raise ConfigError(f"{name} is set by softprompt, so it is no --engine-arg.")
        if name not in AsyncEngineArgs.__dataclass_fields__:
            raise ConfigError(
                f"vLLM has no engine argument {name!r}; they are spelled as its flags, with _ for -."
            )
    transfer = KVTransferConfig(**fields["kv_transfer_config"])
    try:
        with _deaf_to_interrupts():
            arguments = AsyncEngineArgs(**{**fields, **options, "kv_transfer_config": transfer})
            return AsyncLLM.from_engine_args(arguments, stat_loggers=[Stats])
    except Exception as error:
        raise ResourceError(f"vLLM did not start: {error}") from error


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Processes started in here are not reached by Ctrl-C, so that requests under way can be finished."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _lora(adapter: tuple[int, Path]) -> Any:
    from vllm.lora.request import LoRARequest

    number, folder = adapter
    return LoRARequest(folder.name, number, os.fspath(folder))


def _echo(request: GenerateRequest, answer: AnswerState, told: Any) -> Iterator[TokenScore]:
    """The text's own tokens; what the prompt alone makes the model expect is the base's to say."""
    positions, count = request.prefix.length, request.sampling.logprobs or 0
    for place, token in enumerate(request.ids):
        if place:
            yield answer.score(choice_of(token, told[positions + place], count))
        elif request.prefix.hidden is None:
            yield answer.score(TokenChoice(token))
        else:
            logits = request.model.head.logits(request.prefix.hidden[None])[0]
            yield answer.score(token_choice(logits, token, count))


def _not_finite() -> BaseModelError:
    return BaseModelError(
        "The model gave no finite numbers for the next token; its weights or the prompt in front are "
        "damaged, or too large for its number type."
    )


def _tell(callback: Callback, event: RequestFailed) -> None:
    try:
        callback(event)
    except Exception:
        _log.debug("A listener failed at the last event of its request.", exc_info=True)
