"""lm-evaluation-harness measures through the API what the base itself gives."""

from __future__ import annotations

import warnings
from pathlib import Path

import httpx
import pytest

from serving.api import house
from softprompt.base.packing import TokenRow
from softprompt.library.prompt import Prompt

PAIRS = [("Rates cut", " as growth slows"), ("A", "B"), ("The cup", " is won")]


def test_local_completions_reads_likelihoods(
    http: httpx.Client, prompts: dict[str, Prompt], tmp_path: Path
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        completions = pytest.importorskip("lm_eval.models.openai_completions")
        pytest.importorskip("tenacity")
        instance = pytest.importorskip("lm_eval.api.instance")
        house.tokenizer().save_pretrained(tmp_path)
        model = completions.LocalCompletionsAPI(
            base_url=f"{http.base_url}/v1/completions",
            model="free",
            tokenizer_backend="huggingface",
            tokenizer=str(tmp_path),
            batch_size=2,
        )
        requests = [instance.Instance("loglikelihood", {}, pair, 0) for pair in PAIRS]
        found = model.loglikelihood(requests)
    base, front = house.base(), prompts["free"].prefix
    for (context, continuation), (logprob, greedy) in zip(PAIRS, found, strict=True):
        ids, rest = base.encode(context), base.encode(continuation)
        losses = base.nll([TokenRow((*ids, *rest), len(ids))], front)
        assert -logprob == pytest.approx(float(losses.per_row()[0]), abs=1e-3)
        likeliest = all(
            int(base.next_logits([TokenRow((*ids, *rest[:i]))], front).argmax()) == rest[i]
            for i in range(len(rest))
        )
        assert greedy == likeliest
