"""A job's first steps gone through by the real loop, method and scorer, over tensors that hold no numbers.

Nothing here is a formula: what is counted are the tensors that the code makes, on torch's meta device. So a
plan follows every architecture and every change of the code. Autograd keeps what the derivatives of torch's
operations need and no more (Paszke et al. 2017); which of them that is, torch itself decides here.
It knows bytes by purpose; it does not know devices' sizes or seconds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from softprompt.base.head import backbone
from softprompt.base.model import Base
from softprompt.base.packing import TokenRow, batches
from softprompt.config import Config
from softprompt.data.rows import Encoded
from softprompt.evaluation.score import BATCH_TOKENS, Scores, score
from softprompt.listener import Listener
from softprompt.planning.kernels import Kernels
from softprompt.planning.ledger import BACKWARD, Ledger
from softprompt.planning.workload import Assumed, Workload, workload
from softprompt.training.loop import TrainingRun, fit
from softprompt.training.schedule import Steps

__all__ = ["PURPOSES", "Rehearsal", "rehearse"]

PURPOSES = {
    "front": "fixed words and start of the front",
    "trained": "trained tensors (fp32)",
    "best": "copy of the best state",
    "optimizer": "optimizer state and its working copies",
    "gradients": "gradients",
    "activations": "activations kept for the backward pass",
    "logits": "logits of a chunk and the head's gradient",
    BACKWARD: "gradients of activations, on their way",
    "scoring": "scoring rows",
}
"""What memory is for, in the order it is told."""

_STEPS = 2  # from the second on the optimizer has its state


@dataclass(frozen=True, eq=False)
class Rehearsal:
    """What was counted; bytes by purpose, as named in ``PURPOSES``.

    Attributes:
        work: the job, its method as it was built.
        trained: how many numbers train.
        most: at the moment when most is held, the base left out.
        lasting: between two steps: what a checkpoint holds is among it.
        step_flops, step_tokens: of the heaviest micro-batch, forward and back.
        read_flops, read_tokens: of some scored rows, forward only.
    """

    work: Workload
    trained: int
    most: Mapping[str, int]
    lasting: Mapping[str, int]
    step_flops: int
    step_tokens: int
    read_flops: int
    read_tokens: int


def rehearse(config: Config, base: Base, device: str, assumed: Assumed | None = None) -> Rehearsal:
    """Go through a job on a base of the meta device as if on a ``device`` (cpu, cuda or mps).

    Raises:
        ConfigError: the method cannot be built on this base.
        DataError: the rows are wrong.
    """
    ledger = Ledger()
    with Kernels(device), ledger:
        ledger.ignore((*base.model.parameters(), *base.model.buffers()))
        with ledger.booking("front"):
            work = workload(config, base, assumed)
            parameters = work.method.trainable_parameters()
            ledger.rebook(parameters, "trained")
        read = _Reader(work, ledger)
        step_flops = step_tokens = 0
        lasting: Mapping[str, int] = {}
        if parameters:
            rows = work.heaviest(config.train.accumulation)
            with _purposes(work, ledger, foreach=device == "cuda"):
                before = ledger.flops
                lasting = _train(work, config, rows, read, ledger)
            parts = min(config.train.accumulation, 2) * _STEPS
            step_flops = (ledger.flops - before - read.flops) // parts
            step_tokens = sum(len(row.ids) for row in rows)
        else:
            read()
    return Rehearsal(
        work,
        sum(p.numel() for p in parameters),
        ledger.most,
        lasting,
        step_flops,
        step_tokens,
        read.flops,
        read.tokens,
    )


class _Reader:
    """Scores the shortest and the longest rows: the batch with most rows, and the widest one."""

    def __init__(self, work: Workload, ledger: Ledger) -> None:
        self._work, self._ledger = work, ledger
        self._encoded = {name: _extremes(encoded) for name, encoded in work.splits.items()}
        examples = [e for encoded in self._encoded.values() for e in encoded.examples]
        self.tokens = sum(len(e.input_ids) + len(e.target_ids) for e in examples)
        self.flops = 0

    def __call__(self) -> None:
        before = self._ledger.flops
        method = self._work.method
        with self._ledger.booking("scoring"):
            for encoded in self._encoded.values():
                score(method.base, method.front(), encoded)
        self.flops = self._ledger.flops - before


def _extremes(encoded: Encoded) -> Encoded:
    """The rows of the first and the last batch that scoring would read."""
    lengths = [TokenRow(e.input_ids + e.target_ids) for e in encoded.examples]
    found = list(batches(lengths, BATCH_TOKENS))
    numbers = sorted({*found[0], *found[-1]})
    return replace(encoded, examples=tuple(encoded.examples[n] for n in numbers))


def _train(
    work: Workload, config: Config, rows: list[TokenRow], read: _Reader, ledger: Ledger
) -> Mapping[str, int]:
    """Two steps over the heaviest rows; what is held at the end of the second."""
    parts = min(config.train.accumulation, 2)
    size = len(rows) * parts
    order = Steps(_STEPS * size, size, 1, config.seed).batch
    arranged: list[TokenRow] = [rows[0]] * (_STEPS * size)
    for step in range(_STEPS):
        for place, number in enumerate(order(step)):
            arranged[number] = rows[place // parts]  # every micro-batch takes each parts-th row
    # Kernels are exchanged in the forward pass alone, so what recomputing saves is not counted.
    settings = {
        "batch_size": size,
        "accumulation": parts,
        "epochs": 1,
        "evaluate_every": 1,
        "recompute": False,
    }
    unbound = dict.fromkeys(("max_steps", "min_steps", "patience"))
    train = config.train.model_copy(update=settings | unbound)
    gains = iter(range(_STEPS + 1))

    def evaluate() -> Scores:
        gain = next(gains)
        if gain == _STEPS:  # only now is everything there that is held beside it
            read()
        ledger.purpose = "best"
        return Scores(1, -float(gain), (0.0, 0.0))  # every step is the best so far

    held: list[Counter[str]] = []

    def watch(report: Any) -> None:
        ledger.purpose = "activations"
        held.append(Counter(ledger.held))

    ledger.purpose = "optimizer"
    fit(TrainingRun(work.method, arranged, train, config.seed, listener=Listener(step=watch)), evaluate)
    return held[-1]


@contextmanager
def _purposes(work: Workload, ledger: Ledger, *, foreach: bool) -> Iterator[None]:
    """Tell the ledger what a step is doing while it does it.

    foreach: whether the optimizer changes all tensors together, as torch lets it do on CUDA.
    """

    def becomes(purpose: str) -> Callable[..., None]:
        def note(*_: Any, **__: Any) -> None:
            if ledger.purpose != "scoring":
                ledger.purpose = purpose

        return note

    def booked(parameter: torch.Tensor) -> None:
        assert parameter.grad is not None
        ledger.rebook([parameter.grad], "gradients")

    def update(optimizer: Optimizer, *_: Any) -> None:
        ledger.purpose = "optimizer"
        for group in optimizer.param_groups:
            group["foreach"] = foreach

    model = work.method.base.model
    hooks: list[Any] = [
        backbone(model).register_forward_pre_hook(becomes("activations"), with_kwargs=True),
        model.get_output_embeddings().register_forward_pre_hook(becomes("logits")),
        register_optimizer_step_pre_hook(update),
        register_optimizer_step_post_hook(becomes("activations")),
        *(p.register_post_accumulate_grad_hook(booked) for p in work.method.trainable_parameters()),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
