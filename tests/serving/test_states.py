"""Prompts of a model whose layers keep states: learnt, saved, loaded, served among others and bare rows."""

from __future__ import annotations

import random
from pathlib import Path

import peft
import pytest
import torch

import softprompt
import tiny
from generation.asking import Asked, compare, some_ids, write
from library import samples
from serving.solo import Solo, plain, prompt
from softprompt.library.prompt import load_prompt
from softprompt.serving.engine import Engine
from training.letters import config


@pytest.mark.parametrize("architecture", ["qwen3-next", "mamba2"])
def test_what_is_learnt_is_served_in_one_batch_as_it_answers_alone(architecture: str, tmp_path: Path) -> None:
    base, draw = tiny.base(architecture), random.Random(3)
    learnt = softprompt.train(base, config(tmp_path, train={"epochs": 1}))
    library = tmp_path / "prompts"
    front = load_prompt(learnt.name, base, library).front
    assert isinstance(front, torch.Tensor)
    assert isinstance(learnt.front, torch.Tensor)
    assert torch.equal(front, learnt.front)
    generator = torch.Generator().manual_seed(1)
    other = torch.randn(11, base.width, generator=generator).mul_(0.3)
    prompt(base, "other", other).save(library)
    samples.lora(base, "tuned", positions=2).save(library)
    model = plain(architecture)
    adapted = peft.PeftModel.from_pretrained(plain(architecture), library / "tuned")
    solos = {learnt.name: Solo(model, front), "other": Solo(model, other), base.name: Solo(model)}
    solos["tuned"] = Solo(adapted, samples.soft(base, 5, 2))
    with Engine(base, library, rows=6, chunk=5) as engine:
        asked: list[tuple[str, Asked]] = []
        scored: list[tuple[str, Asked]] = []
        for number in range(8):
            name = [learnt.name, base.name, "other", "tuned"][number % 4]
            with engine.registry.lease(name) as version:
                ids = some_ids(draw, draw.randint(1, 40))
                asked.append((name, write(engine, version, ids, draw.randint(2, 12))))
                if number % 3:
                    candidates = [(7, 8, 9), (7,), (20, 21)]
                    scored.append((name, compare(engine, version, ids, candidates, True)))
        for _, one in (*asked, *scored):
            one.wait()
            assert one.error is None
    for name, one in asked:
        ids = one.generation.ids
        assert one.tokens == solos[name].greedy(ids, one.tokens)
    for name, one in scored:
        for found, candidate in zip(one.likelihoods, [(7, 8, 9), (7,), (20, 21)], strict=True):
            logits = solos[name]._behind(one.request.ids, candidate).log_softmax(1)
            wanted = logits.gather(1, torch.tensor(candidate)[:, None]).sum()
            assert found == pytest.approx(float(wanted), abs=1e-3)
