"""Inside vLLM: prompts named by requests are loaded into its paged cache. Knows vLLM, nothing of artifacts.

vLLM takes a class for keys and values that come from elsewhere (``--kv-transfer-config``). One half of it
runs beside vLLM's scheduler and says how many positions of a request are there already; the other runs in
every worker and writes them into the request's blocks before the pass that reads the text. A request says
``kv_transfer_params: {"softprompt": KEY}``, where KEY names a file of a ``store``, and its token ids begin
with P placeholders (``slots``).

What cannot be answered rightly is failed, never answered: a prompt that is not there, a ``cache_salt`` that
would let two prompts share blocks, ids without placeholders.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm.distributed import get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
)

from softprompt.vllm.slots import heads_of, is_placed, layer_number, slots
from softprompt.vllm.store import PARAMETER, LoadedPrompts, read_positions, salt_fits

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.forward_context import ForwardContext
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.request import Request

__all__ = ["SoftPromptConnector"]

BUDGET = 2**30
"""Bytes of prompts that a worker keeps beside its cache."""

_log = logging.getLogger("vllm.softprompt")


@dataclass(frozen=True)
class _BlockLoad:
    """Positions ``first`` to ``last`` of a prompt, into blocks; ``fault`` says why that cannot be."""

    key: str
    first: int
    last: int
    blocks: list[int]
    fault: str | None


@dataclass
class _Loads(KVConnectorMetadata):  # type: ignore[misc]
    """What a step has to load first."""

    loads: list[_BlockLoad] = field(default_factory=list)


class SoftPromptConnector(KVConnectorBase_V1):  # type: ignore[misc]
    """Both halves; vLLM makes one object of each."""

    def __init__(
        self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig
    ) -> None:
        super().__init__(vllm_config=vllm_config, role=role, kv_cache_config=kv_cache_config)
        _refuse(vllm_config, kv_cache_config)
        self._root = Path(self._kv_transfer_config.get_from_extra_config("store", ""))
        self._block_size: int = kv_cache_config.kv_cache_groups[0].kv_cache_spec.block_size
        budget = int(self._kv_transfer_config.get_from_extra_config("budget", BUDGET))
        self._prompts = LoadedPrompts(self._root, budget)
        self._length = lru_cache(4096)(partial(read_positions, self._root))  # a key never comes again
        self._begins: dict[str, int] = {}
        self._due: list[_BlockLoad] = []
        self._failed: set[int] = set()

    @property
    def requires_kv_delivery(self) -> bool:
        """Nothing is handed on to anybody."""
        return False

    # -- beside the scheduler ----------------------------------------------------------------------

    def get_num_new_matched_tokens(
        self, request: Request, num_computed_tokens: int
    ) -> tuple[int | None, bool]:
        """How many positions of the prompt are not in the cache yet; called again after a preemption."""
        key = (request.kv_transfer_params or {}).get(PARAMETER)
        if key is None:
            return 0, False
        positions, fault = self._look(request, key)
        self._begins[request.request_id] = num_computed_tokens
        if fault is not None:  # it is given something to load, so that it can fail at that
            if num_computed_tokens + 1 < request.num_tokens:
                return 1, False
            _log.error("A request that cannot be answered waits for its client to give up: %s", fault)
            return None, False
        # With this flag vLLM, asked for likelihoods of the prompt, would compute the placeholders themselves.
        request.skip_reading_prefix_cache = False
        return max(0, positions - num_computed_tokens), False

    def update_state_after_alloc(
        self, request: Request, blocks: KVCacheBlocks, num_external_tokens: int
    ) -> None:
        """Note what to load where, now that the request has its blocks."""
        first = self._begins.pop(request.request_id, 0)
        if num_external_tokens:
            key = (request.kv_transfer_params or {}).get(PARAMETER)
            _, fault = self._look(request, key)
            own = list(blocks.get_block_ids()[0])
            self._due.append(_BlockLoad(str(key), first, first + num_external_tokens, own, fault))

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> KVConnectorMetadata:
        """Hand the step's loads to the workers."""
        due, self._due = self._due, []
        return _Loads(due)

    def _look(self, request: Request, key: Any) -> tuple[int, str | None]:
        """P of the prompt in front of a request, and what forbids to answer it."""
        try:
            positions = self._length(key)
        except (ValueError, TypeError) as error:
            return 0, str(error)
        if not salt_fits(key, request.cache_salt):
            return positions, f"cache_salt does not begin with the digest of the prompt {key}"
        if request.prompt_token_ids is None or not is_placed(positions, request.prompt_token_ids):
            return positions, f"the token ids do not begin with {positions} copies of the text's first token"
        return positions, None

    # -- in a worker -----------------------------------------------------------------------------------

    def start_load_kv(self, forward_context: ForwardContext, **kwargs: Any) -> None:
        """Write the prompts of requests that begin, or begin again, in this step."""
        loads: list[_BlockLoad] = self._get_connector_metadata().loads
        for load in loads:
            try:
                if load.fault is not None:
                    raise ValueError(load.fault)
                self._write(load, forward_context.no_compile_layers)
            except ValueError as error:
                _log.error("A request behind the prompt %s is failed: %s.", load.key, error)
                # What lies before is another request's, too, and sound.
                self._failed.update(load.blocks[load.first // self._block_size :])

    def _write(self, load: _BlockLoad, layers: dict[str, Any]) -> None:
        held = {name: layer for name, layer in layers.items() if _keeps(layer)}
        device = next(iter(held.values())).kv_cache.device
        heads = partial(heads_of, get_tensor_model_parallel_rank(), get_tensor_model_parallel_world_size())
        prompt = self._prompts.get(load.key, heads, device)
        where = slots(load.first, load.last, load.blocks, self._block_size).to(device)
        for name, layer in held.items():
            number = layer_number(name)
            try:
                k, v = prompt[f"k.{number}"], prompt[f"v.{number}"]
            except KeyError:
                raise ValueError(f"it has nothing for layer {number}") from None
            if k.shape[1:] != (layer.num_kv_heads, layer.head_size):
                raise ValueError(f"its heads in layer {number} are not those of the model")
            k, v = (t[load.first : load.last].to(layer.kv_cache.dtype) for t in (k, v))  # [n, heads, D]
            layer.impl.do_kv_cache_update(layer, k, v, layer.kv_cache, where)

    def get_block_ids_with_load_errors(self) -> set[int]:
        """Blocks whose requests vLLM must fail."""
        failed, self._failed = self._failed, set()
        return failed

    def wait_for_layer_load(self, layer_name: str) -> None:
        """All was loaded before the pass began."""

    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any) -> None:
        """Nothing is saved."""

    def wait_for_save(self) -> None:
        """Nothing is saved."""


def _refuse(config: VllmConfig, cache: KVCacheConfig) -> None:
    """Say at the start what could not be answered rightly."""
    reasons = {
        "speculative decoding, whose drafts would not know the prompt": config.speculative_config is not None,
        "decode context parallelism, which lays a sequence over several caches": (
            config.parallel_config.decode_context_parallel_size > 1
        ),
        "a model whose layers keep different kinds of memory": len(cache.kv_cache_groups) != 1,
        "a quantised KV cache, which rounds a prompt": config.cache_config.cache_dtype.startswith("fp8"),
    }
    for reason, holds in reasons.items():
        if holds:
            raise ValueError(f"softprompt's prompts cannot be served with {reason}.")


def _keeps(layer: Any) -> bool:
    """Whether a layer has a cache of its own."""
    cache = getattr(layer, "kv_cache", None)
    return cache is not None and getattr(layer, "kv_sharing_target_layer_name", None) is None
