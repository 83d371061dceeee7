"""The bundled base itself, for the few promises that tiny models cannot show."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

import softprompt
from reference import peft_loss_and_gradient
from softprompt.base.model import Base
from softprompt.base.packing import TokenRow
from softprompt.checkpoints.catalog import bundled
from softprompt.errors import ResourceError
from softprompt.generation.offline import generate
from softprompt.generation.request import GenerateRequest
from softprompt.generation.sampler import Sampling

pytestmark = pytest.mark.real_base

NAME = "smollm2-135m"
TEXTS = ("Rates cut as growth slows", "The cup final", "A new phone, thinner than the last one, is out", "Hm")


@pytest.fixture(scope="module")
def base() -> Base:
    try:
        return softprompt.load_base(NAME, dtype="float32")
    except ResourceError as error:
        pytest.skip(f"the bundled base is not here and cannot be fetched: {error}")


def plain() -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(bundled(NAME), dtype=torch.float32)


def test_loss_and_gradient_equal_pefts_on_the_real_base(base: Base) -> None:
    soft = base.embed(base.encode(" one two three four five")).float().clone().requires_grad_()
    rows = [TokenRow((*base.encode(text), *base.encode(" sports")), len(base.encode(text))) for text in TEXTS]
    loss = base.nll(rows, soft).nll.mean()
    loss.backward()
    expected, gradient = peft_loss_and_gradient(plain(), soft, rows)
    torch.testing.assert_close(loss.detach(), expected, rtol=1e-4, atol=0)
    assert soft.grad is not None
    assert (soft.grad - gradient).norm() / gradient.norm() < 1e-4


def test_a_mixed_batch_answers_as_transformers_does_row_by_row(base: Base) -> None:
    soft = [base.embed(base.encode(text)) for text in ("Topic:", "Write a long and kind reply to this.")]
    fronts = [*soft, torch.empty(0, base.width)]
    prefixes = [base.prefill(front) for front in fronts]
    twelve = Sampling(max_new_tokens=12)
    requests = [
        GenerateRequest(model=base, prefix=prefixes[i % 3], ids=tuple(base.encode(text)), sampling=twelve)
        for i, text in enumerate(TEXTS)
    ]
    answers = generate(requests)
    model = plain().eval()
    for i, request in enumerate(requests):
        embedded = torch.cat([fronts[i % 3], base.embed(request.ids)])[None]
        with torch.no_grad():
            tokens = model.generate(
                inputs_embeds=embedded,
                attention_mask=torch.ones(embedded.shape[:2], dtype=torch.long),
                max_new_tokens=12,
                do_sample=False,
                pad_token_id=base.end_id,
            )
        assert answers[i] == base.decode(tokens[0].tolist())
