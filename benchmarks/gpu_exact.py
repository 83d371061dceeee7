"""The promises of exactness on a device: losses, gradients, greedy tokens, runs trained at once, resuming.

    python benchmarks/gpu_exact.py [--device cuda] [--few]

The reference is PEFT and transformers on the same device, and for bfloat16 the same in float32: there both
sides round, so ours may be as far from it as theirs. Tiny random models of several architectures, and
SmolLM2-135M. Prints a JSON line for each check, with ``right`` and the figure it follows from, and fails if
one is not right.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

import sides
from softprompt.base.model import Base
from softprompt.checkpoints.catalog import bundled
from softprompt.checkpoints.freeze import freeze
from softprompt.config import TrainConfig
from softprompt.evaluation.score import Scores
from softprompt.generation.offline import generate
from softprompt.generation.request import Event, GenerateRequest, TextDelta
from softprompt.generation.sampler import Sampling
from softprompt.listener import Listener
from softprompt.methods.front import Soft
from softprompt.methods.prompt_tuning import PromptTuning
from softprompt.training.loop import TrainingRun, fit, fit_many

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import tiny

WITHIN = 1e-4
"""Relative, in float32."""
AS_FAR = 1.5
"""How many times as far from float32 as PEFT's bfloat16 ours may be."""
P, NEW = 7, 12


def models(few: bool) -> Iterator[tuple[str, Any, Any]]:
    """Name, a plain fp32 model and its tokenizer."""
    for name in tiny.ARCHITECTURES[: 2 if few else None]:
        yield name, tiny.model(name), tiny.tokenizer()
    if not few:
        folder = bundled("smollm2-135m")
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        yield "smollm2-135m", model, transformers.AutoTokenizer.from_pretrained(folder)


def start_of(base: Base, seed: int = 0) -> Tensor:
    drawn = torch.randn(P, base.width, generator=torch.Generator().manual_seed(seed))
    spread = float(base.embedding.weight.float().std())
    return (drawn * spread).to(base.device)


def first_step(side: sides.Side, rows: Any) -> tuple[Tensor, Tensor]:
    """Loss and gradient, no parameter moves."""
    loss = side.loss(rows)
    (gradient,) = torch.autograd.grad(loss, side.soft)
    return loss.detach().float(), gradient.float()


def apart(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def training(base: Base, plain: Any, reference: Any) -> dict[str, Any]:
    """Loss and gradient of a step against PEFT's, on rows of mixed lengths."""
    rows = sides.draw_rows((5, 23, 9, 14, 3, 17), base.embedding.weight.shape[0], 2, seed=1)
    start = start_of(base)
    ours = first_step(sides.softprompt_side(base, start, 1e-2), rows)
    theirs = first_step(sides.peft_side(plain, start, 1e-2), rows)
    if base.dtype == torch.float32:
        loss, gradient = (apart(a, b) for a, b in zip(ours, theirs, strict=True))
        return {"right": max(loss, gradient) < WITHIN, "loss": loss, "gradient": gradient}
    whole = first_step(sides.peft_side(reference, start, 1e-2), rows)
    mine, other = (apart(side[1], whole[1]) for side in (ours, theirs))
    return {"right": mine < AS_FAR * other + WITHIN, "gradient": mine, "gradient_of_peft": other}


def answers(base: Base, reference: Any) -> dict[str, Any]:
    """Greedy tokens behind several prompts in one batch, each against a plain pass over its row alone.

    What counts is how far behind the likeliest token, in fp32, a chosen one lies: 0 in exact arithmetic.
    """
    fronts = [start_of(base, seed)[:length] for seed, length in ((1, 7), (2, 2), (3, 5))]
    with torch.no_grad():
        prefixes = [base.prefill(front) for front in fronts]
    rows = sides.draw_rows((5, 23, 9, 14, 3, 17, 8, 11), base.embedding.weight.shape[0], None, seed=5)
    produced: dict[int, list[int]] = {number: [] for number in range(len(rows))}

    def told(row: int, event: Event) -> None:
        if isinstance(event, TextDelta):
            produced[row] += [token.id for token in event.tokens]

    how = Sampling(max_new_tokens=NEW, ignore_end=True)
    generate(
        [
            GenerateRequest(model=base, prefix=prefixes[n % 3], ids=row.ids, sampling=how)
            for n, row in enumerate(rows)
        ],
        on_event=told,
    )
    embedding = reference.get_input_embeddings()
    worst, differ = 0.0, 0
    for number, tokens in produced.items():
        ids = torch.tensor([*rows[number].ids, *tokens[:-1]], device=base.device)
        with torch.no_grad():
            read = torch.cat([fronts[number % 3], embedding(ids)])[None]
            logits = reference(inputs_embeds=read, use_cache=False).logits[0, -len(tokens) :].float()
        chosen = torch.log_softmax(logits, -1)
        own = chosen.gather(1, torch.tensor(tokens, device=base.device)[:, None])[:, 0]
        worst = max(worst, float((chosen.amax(-1) - own).max()))
        differ += int((chosen.argmax(-1).tolist()) != tokens)
    exact = base.dtype == torch.float32
    counts = all(len(tokens) == NEW for tokens in produced.values())
    return {"right": counts and (worst < 1e-3 if exact else worst < 0.5), "behind": worst, "differ": differ}


def together(base: Base) -> dict[str, Any]:
    """Three prompts trained at once against each alone; and one that is stopped and resumed."""
    rows = sides.draw_rows((5, 23, 9, 14, 3, 17, 8, 11), base.embedding.weight.shape[0], 2, seed=2)
    config = TrainConfig().model_copy(
        update={
            "epochs": 3,
            "batch_size": 4,
            "learning_rate": 0.07,
            "checkpoint_every": 1,
            "evaluate_every": 1,
        }
    )
    gain = itertools.count()

    def prompt(seed: int) -> PromptTuning:
        return PromptTuning(base, [Soft(P)], start_of(base, seed))

    def better() -> Scores:
        """Every state is the best so far, so that the last one is kept."""
        return Scores(1, -float(next(gain)), (0.0, 0.0))

    def vectors(run: TrainingRun) -> Tensor:
        front = run.method.front()
        assert isinstance(front, Tensor)
        return front.detach()

    def learnt(*about: Any, resume: bool = False) -> Tensor:
        run = TrainingRun(prompt(0), rows, config, 0, *about)
        fit(run, better, resume=resume)
        return vectors(run)

    alone = learnt()
    runs = [TrainingRun(prompt(n), rows, config, n) for n in range(3)]
    fit_many(runs, lambda numbers: [better() for _ in numbers])
    with tempfile.TemporaryDirectory() as folder:
        path, steps = Path(folder, "checkpoint.safetensors"), list[int]()
        stopping = Listener(step=lambda report: steps.append(report.step), stop=lambda: steps[-1] == 3)
        learnt(path, "one", stopping)
        resumed = learnt(path, "one", resume=True)
    at_once, gone_on = apart(vectors(runs[0]), alone), apart(resumed, alone)
    limit = 1e-3 if base.dtype == torch.float32 else 0.1
    right = max(at_once, gone_on) < limit and steps[-1] == 3
    return {"right": right, "at_once": at_once, "resumed": gone_on}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--few", action="store_true", help="two tiny models only")
    return parser.parse_args()


def main() -> None:
    asked = arguments()
    device = torch.device(asked.device)
    wrong = 0
    for name, plain, tokenizer in models(asked.few):
        reference = plain.to(device).eval()
        for dtype in (torch.float32, torch.bfloat16):
            own, theirs = (_copy(reference, dtype, device) for _ in range(2))
            base = freeze(own, tokenizer, name)
            checks = {
                "training": partial(training, base, theirs, reference),
                "answers": partial(answers, base, reference),
                "together": partial(together, base),
            }
            for check, work in checks.items():
                try:
                    found = work()
                except Exception as error:  # one check that fails costs no other
                    found = {"right": False, "error": f"{type(error).__name__}: {error}"[:300]}
                wrong += not found["right"]
                about = {"check": check, "model": name, "dtype": str(dtype)[6:], "layout": base.layout.name}
                print(json.dumps(about | found), flush=True)
    sys.exit(min(wrong, 1))


def _copy(model: Any, dtype: torch.dtype, device: torch.device) -> Any:
    made = type(model)(model.config)
    made.load_state_dict(model.state_dict())
    return made.to(device, dtype).eval()


if __name__ == "__main__":
    main()
