"""The bundled base itself, for the few promises that tiny models cannot show."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
import transformers

import softprompt
from softprompt.base.catalog import bundled
from softprompt.base.generate import Request, Sampling, generate
from softprompt.base.model import Base
from softprompt.base.packing import TokenRow
from softprompt.errors import ResourceError

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
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=len(soft))
    wrapped: Any = peft.get_peft_model(plain(), config).eval()
    weight = wrapped.prompt_encoder["default"].embedding.weight
    weight.data.copy_(soft.detach())
    width = max(len(row.ids) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for i, row in enumerate(rows):
        ids[i, : len(row.ids)] = torch.tensor(row.ids)
        mask[i, : len(row.ids)] = 1
        labels[i, row.scored_from : len(row.ids)] = torch.tensor(row.ids[row.scored_from :])
    expected = wrapped(input_ids=ids, attention_mask=mask, labels=labels).loss
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=0)
    assert soft.grad is not None
    assert (soft.grad - weight.grad).norm() / weight.grad.norm() < 1e-4


def test_a_mixed_batch_answers_as_transformers_does_row_by_row(base: Base) -> None:
    soft = [base.embed(base.encode(text)) for text in ("Topic:", "Write a long and kind reply to this.")]
    fronts = [*soft, torch.empty(0, base.width)]
    prefixes = [base.prefill(front) for front in fronts]
    requests = [Request(tuple(base.encode(text)), prefixes[i % 3]) for i, text in enumerate(TEXTS)]
    answers = generate(base, requests, Sampling(max_new_tokens=12))
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
