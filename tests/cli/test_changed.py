"""Adapters and fine-tuned models pass every verb, and are called what they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers

import softprompt
from cli.shell import Shell
from library import samples
from softprompt.base.packing import TokenRow

LORA = ("--set", "method.kind=lora", "--set", "method.rank=2")
FULL = ("--set", "method.kind=full")
WORDS = {"lora": "LoRA adapter", "full": "fine-tuned copy"}
ADAPTER = ["README.md", "adapter_config.json", "adapter_model.safetensors"]
MODEL = ["README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
         "tokenizer_config.json"]  # fmt: skip


def train(shell: Shell, *method: str, name: str = "moods") -> None:
    done = shell.train("--test", "test.jsonl", "--epochs", "1", "--name", name, *method)
    assert done.code == 0, done.err


def peft_folder(folder: str, **options: Any) -> Any:
    model = transformers.AutoModelForCausalLM.from_pretrained("base")
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "v_proj"], **options)
    wrapped: Any = peft.get_peft_model(model, config).eval()
    samples.shaken([p for n, p in wrapped.named_parameters() if "lora_" in n], seed=1)
    wrapped.save_pretrained(folder)
    return wrapped


@pytest.mark.parametrize(("kind", "method"), [("lora", LORA), ("full", FULL)])
def test_show_and_list_name_the_kind(kind: str, method: tuple[str, ...], shell: Shell) -> None:
    train(shell, *method)
    shown = shell("show", "moods")
    assert f"{WORDS[kind]}, 0 positions, " in shown.out
    assert shell("show", "moods", "--json").json["card"]["kind"] == kind
    listed = shell("list", "--json").json["prompts"][0]
    assert (listed["kind"], listed["positions"]) == (kind, 0)
    assert kind in shell("list").out


@pytest.mark.parametrize(("method", "files"), [(LORA, ADAPTER), (FULL, MODEL)], ids=["lora", "full"])
def test_export_and_import_keep_every_answer(method: tuple[str, ...], files: list[str], shell: Shell) -> None:
    train(shell, *method)
    done = shell("export", "moods", "out")
    assert done.code == 0
    assert sorted(file.name for file in Path("out").iterdir()) == files
    template = ("--input", r"{text}\nMood:", "--target", " {label}", "--labels", "pos,neg")
    back = shell("import", "out", "--name", "back", "--model", "base", "--dtype", "float32", *template)
    assert back.code == 0
    assert "0 positions, bound to base" in back.out
    scores = [
        shell("eval", name, "test.jsonl", "--json", "--dtype", "float32").json["scores"]["learnt"]
        for name in ("moods", "back")
    ]
    assert scores[0] == scores[1]
    again = shell("export", "back", "out", "--overwrite", "--json")
    assert again.json["files"] == files
    assert shell("import", "prompts/moods", "--name", "copy", "--json", "--dtype", "float32").code == 0


def test_export_says_how_to_open_it(shell: Shell) -> None:
    train(shell, *LORA, "--set", "method.front=Say: ")
    done = shell("export", "moods", "out")
    assert "PeftModel.from_pretrained(model," in done.out
    assert "behind the embeddings in front.safetensors" in done.out
    assert Path("out", "front.safetensors").exists()
    train(shell, *FULL, name="whole")
    done = shell("export", "whole", "whole-out")
    assert "AutoModelForCausalLM.from_pretrained(" in done.out
    assert "front.safetensors" not in done.out
    assert shell("export", "whole", "out", "--overwrite").code == 2  # an export of another kind is there
    assert Path("out", "adapter_model.safetensors").exists()


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"use_dora": True}], ids=str)
def test_import_takes_a_lora_that_peft_wrote(options: dict[str, bool], shell: Shell) -> None:
    wrapped = peft_folder("theirs", **options)
    done = shell("import", "theirs", "--name", "mine", "--model", "base", "--dtype", "float32", "--json")
    assert done.code == 0
    assert done.json["card"]["kind"] == "lora"
    assert done.json["card"]["trained_parameters"] == wrapped.get_nb_trainable_parameters()[0]
    prompt = softprompt.load_prompt("mine", softprompt.load_base("base", dtype="float32"))
    row = TokenRow((5, 9, 33, 7, 80))
    ids = torch.tensor([row.ids])
    with torch.no_grad():
        expected = wrapped(input_ids=ids, labels=ids).loss
        found = prompt.base.nll([row], prompt.front).nll.mean()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_import_puts_the_start_token_before_a_strangers_lora(shell: Shell, tmp_path: Path) -> None:
    import tokenizers.processors

    wrapped = peft_folder("theirs")
    folder = tmp_path / "with-start"
    transformers.AutoModelForCausalLM.from_pretrained("base").save_pretrained(folder)
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained("base")
    tokenizer.backend_tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    tokenizer.save_pretrained(folder)
    done = shell("import", "theirs", "--name", "mine", "--model", str(folder), "--dtype", "float32", "--json")
    assert done.code == 0
    assert done.json["card"]["positions"] == 1
    prompt = softprompt.load_prompt("mine", softprompt.load_base(str(folder), dtype="float32"))
    ids = tokenizer("a text", return_tensors="pt").input_ids
    assert ids[0, 0] == 1
    with torch.no_grad():
        expected = wrapped(input_ids=ids).logits[:, -1]
        found = prompt.base.next_logits([TokenRow(tuple(ids[0, 1:].tolist()))], prompt.prefix)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_import_refuses_a_lora_it_cannot_follow_exactly(shell: Shell) -> None:
    peft_folder("theirs", rank_pattern={"v_proj": 4})
    done = shell("import", "theirs", "--name", "mine", "--model", "base")
    assert done.code != 0
    assert "its layers have different ranks" in done.err
    assert not Path("prompts").exists()


def test_import_takes_a_model_that_transformers_fine_tuned(shell: Shell) -> None:
    transformers.AutoModelForCausalLM.from_pretrained("other").save_pretrained("theirs")
    done = shell("import", "theirs", "--name", "mine", "--model", "base", "--dtype", "float32", "--json")
    assert done.code == 0
    assert done.json["card"]["kind"] == "full"
    mine = shell("generate", "mine", "hello", "--json", "--dtype", "float32").json["answers"][0]["answer"]
    assert mine == softprompt.load_prompt("mine", softprompt.load_base("base", dtype="float32")).generate(
        "hello"
    )
