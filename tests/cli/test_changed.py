"""Adapters and fine-tuned models pass every verb, and are called what they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers

import softprompt
import tiny
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


def peft_folder(folder: str, base: str = "base", **options: Any) -> Any:
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "v_proj"], **options)
    wrapped: Any = peft.get_peft_model(model, config).eval()
    samples.shaken([p for p in wrapped.parameters() if p.requires_grad], seed=1)
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


# Merged ------------------------------------------------------------------------------------------

IA3 = ("--set", "method.kind=ia3")


@pytest.mark.parametrize(
    "method", [LORA, (*LORA, "--set", "method.dora=true"), IA3, FULL], ids=["lora", "dora", "ia3", "full"]
)
def test_a_merged_export_is_a_plain_model_with_our_logits(method: tuple[str, ...], shell: Shell) -> None:
    train(shell, *method)
    done = shell("export", "moods", "plain", "--merge")
    assert done.code == 0, done.err
    assert 'AutoModelForCausalLM.from_pretrained("plain")' in done.out
    assert sorted(file.name for file in Path("plain").iterdir()) == MODEL
    assert "PeftModel" not in Path("plain/README.md").read_text(encoding="utf-8")
    prompt = softprompt.load_prompt("moods", softprompt.load_base("base", dtype="float32"))
    plain = transformers.AutoModelForCausalLM.from_pretrained("plain")
    untouched = transformers.AutoModelForCausalLM.from_pretrained("base")
    assert plain.dtype == torch.float32  # in which it was learnt
    tokenizer = transformers.AutoTokenizer.from_pretrained("plain")
    ids = tokenizer("a good film 3", return_tensors="pt").input_ids
    assert tuple(ids[0].tolist()) == (*prompt.base.start_ids, *prompt.base.encode("a good film 3"))
    row = TokenRow(tuple(ids[0].tolist()))
    with torch.no_grad():
        found = prompt.base.next_logits([row], prompt.front)[0]
        torch.testing.assert_close(plain(ids).logits[0, -1], found, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(untouched(ids).logits[0, -1], found, atol=1e-3)
    again = shell("export", "moods", "plain", "--merge", "--overwrite", "--dtype", "bfloat16", "--json")
    assert again.json["files"] == MODEL
    assert transformers.AutoModelForCausalLM.from_pretrained("plain").dtype == torch.bfloat16


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_head_of_its_own_is_merged_too(shell: Shell) -> None:
    tiny.model("gemma3").save_pretrained("tied")  # whose head is its embedding
    tiny.tokenizer().save_pretrained("tied")
    wrapped = peft_folder("theirs", base="tied", modules_to_save=["lm_head"], bias="all")
    assert shell("import", "theirs", "--name", "mine", "--model", "tied", "--dtype", "float32").code == 0
    assert shell("export", "mine", "plain", "--merge").code == 0
    plain = transformers.AutoModelForCausalLM.from_pretrained("plain")
    ids = torch.tensor([[5, 9, 33, 7, 80]])
    with torch.no_grad():
        torch.testing.assert_close(plain(ids).logits, wrapped(ids).logits, rtol=1e-5, atol=1e-5)


def test_what_cannot_be_merged_is_refused_before_anything_is_written(taught: Shell) -> None:
    done = taught("export", "moods", "plain", "--merge")
    assert done.code != 0
    assert "changes no weight of the model" in done.err
    done = taught("export", "moods", "plain", "--dtype", "float32")
    assert done.code != 0
    assert "for --merge" in done.err
    train(taught, *LORA, "--set", "base.quantisation=nf4", name="few")
    done = taught("export", "few", "plain", "--merge")
    assert done.code != 0
    assert "in its nf4 form, and no change fits into such weights" in done.err
    assert not Path("plain").exists()


# From PEFT ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"use_dora": True}], ids=str)
def test_import_takes_a_lora_that_peft_wrote(options: dict[str, Any], shell: Shell) -> None:
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


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_import_refuses_a_lora_it_cannot_follow_exactly(shell: Shell) -> None:
    peft_folder("theirs", lora_bias=True)
    done = shell("import", "theirs", "--name", "mine", "--model", "base")
    assert done.code != 0
    assert "so its adapters have biases" in done.err
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
