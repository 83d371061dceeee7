"""A sample of what docs/architectures.md says: right in each column, or refused by its reason."""

from __future__ import annotations

from typing import Any

import pytest

import architectures

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize(
    ("family", "layout"), [("granite", "flat"), ("gemma2", "packed"), ("bloom", "repeated")]
)
def test_a_family_is_right_in_every_column(family: str, layout: str) -> None:
    found = architectures.check(family)
    assert found["layout"] == layout
    assert all(map(architectures.good, architectures.verdicts(found)))
    assert {found[name] for name in architectures.METHODS} == {"ok"}


@pytest.mark.parametrize(
    ("family", "layout", "kv"),
    [
        ("deepseek_v3", "packed", "ok, not in PEFT"),
        ("qwen3_next", "told", "ok, not in PEFT"),
        ("mamba2", "told", "refused: No layer of the model attends"),
    ],
)
def test_a_family_of_layers_that_differ_learns_all_that_it_can(family: str, layout: str, kv: str) -> None:
    found = architectures.check(family)
    assert found["layout"] == layout
    assert all(map(architectures.good, architectures.verdicts(found)))
    assert found["soft"] == found["lora"] == "ok"
    assert found["kv"].startswith(kv)


def test_what_peft_itself_cannot_use_is_right_here_and_told_as_peft_s_own() -> None:
    found = architectures.check("mllama")  # more rows in its embedding than words, by which PEFT knows one
    assert found["soft"].startswith("ok; PEFT itself fails on MllamaForCausalLM (TypeError")
    assert found["lora"] == "ok"
    assert all(map(architectures.good, architectures.verdicts(found)))


def test_a_model_that_forgets_its_state_is_refused_at_loading() -> None:
    found = architectures.check("jamba")
    assert not found["loads"]
    assert "own plain forward pass, where it goes on from a state" in found["reason"]


def test_a_table_names_what_is_wrong_and_what_was_refused() -> None:
    right: dict[str, Any] = {
        "loads": True,
        "layout": "flat",
        "loss_error": 1e-7,
        "gradient_error": 2e-6,
        "answers_alone": True,
        "answers_in_company": True,
        **dict.fromkeys(architectures.METHODS, "ok"),
    }
    page = architectures.table(
        {
            "good": right,
            "wrong": right | {"answers_in_company": False},
            "inexact": right | {"loss_error": 0.1},
            "partly": right | {"kv": "refused: no | file"},
            "theirs": right | {"soft": f"{architectures.CRASHES} it (TypeError: no)"},
            "states": {"loads": False, "reason": "it keeps a state"},
        }
    )
    assert "of 6 families 5 load and 1 are refused" in page
    assert "2 pass every check, 1 more all but a method" in page
    assert "and 2 fail one. On 1 of those that pass, PEFT itself fails" in page
    assert "| good | flat | 1e-07 | 2e-06 | yes | yes | ok | ok | ok |" in page
    assert "| refused: no / file |" in page
    assert "| states | it keeps a state |" in page
