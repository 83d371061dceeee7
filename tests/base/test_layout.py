"""Windows of attention are those of the language model, also where the model has other parts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

import tiny
from softprompt.base.layout import Windows
from softprompt.base.packing import TokenRow
from softprompt.checkpoints.fingerprint import fingerprint
from softprompt.checkpoints.freeze import freeze

FRONT = tuple(range(4, 13))
ROWS = [tuple(range(10, 51)), (40, 41, 42, 43, 44), tuple(range(30, 47))]


def seeing(window: int) -> Any:
    """A random Gemma 3 that also reads pictures; its language model is described in a part of its config."""
    torch.manual_seed(0)
    config = transformers.Gemma3Config(
        text_config=tiny.CONFIGS["gemma3"]().to_dict() | {"sliding_window": window},
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 16,
            "patch_size": 8,
        },
        mm_tokens_per_image=4,
        image_token_index=96,
        boi_token_index=95,
        eoi_token_index=94,
    )
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(0.2 / parameter.std())
    return model.eval()


@pytest.mark.parametrize("window", [6, 20])
def test_a_model_that_also_sees_is_exact_beyond_its_window(window: int) -> None:
    model = seeing(window)
    with torch.no_grad():
        plain = [model(input_ids=torch.tensor([FRONT + row]), use_cache=False).logits[0, -1] for row in ROWS]
        base = freeze(model, tiny.tokenizer(), "tiny-gemma3-seeing")
        front = base.embed(FRONT)
        for stands_before in (front, base.prefill(front)):
            found = base.next_logits([TokenRow(row) for row in ROWS], stands_before)
            torch.testing.assert_close(found, torch.stack(plain), rtol=1e-4, atol=1e-4)
    assert base.layout.name == "flat"


def test_facts_of_the_language_model_are_found_inside_the_config() -> None:
    config = seeing(20).config
    assert dict(Windows.of(config).spans) == {"full_attention": None, "sliding_attention": 20}
    assert Windows.of(config) == Windows.of(config.get_text_config())
    model = seeing(20)
    model.config.get_text_config().final_logit_softcapping = 0.5
    base = freeze(model, tiny.tokenizer(), "tiny-gemma3-seeing")
    assert base.max_positions == 512
    with torch.no_grad():  # whether the cap is the model's own, its forward pass says
        own = model(input_ids=torch.tensor([(*FRONT, 5, 6)]), use_cache=False).logits[:, -1]
        found = base.next_logits([TokenRow((5, 6))], base.embed(FRONT))
    torch.testing.assert_close(found, own, rtol=1e-4, atol=1e-4)


def test_another_window_is_another_base() -> None:
    assert len({fingerprint(seeing(window), tiny.tokenizer()) for window in (20, 20, 30)}) == 2
