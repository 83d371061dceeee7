"""A fine-tuned model is a transformers folder to everybody, and the base's copy to softprompt."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import softprompt
import tiny
from library import samples
from softprompt.checkpoints.freeze import freeze
from softprompt.errors import ArtifactError
from softprompt.library import formats, full_format
from softprompt.library.changed import FRONT_FILE, MODEL_FILE
from softprompt.library.full_format import MODEL_CONFIG
from softprompt.library.prompt import Prompt

MODEL_FILES = {MODEL_CONFIG, MODEL_FILE, "generation_config.json", "tokenizer.json", "tokenizer_config.json"}


def written(folder: Path, prompt: Prompt) -> str:
    folder.mkdir(exist_ok=True)
    return formats.payload(prompt.base, prompt.front, prompt.change).write(folder, "some/base", None)


def behind_nothing(base: Any) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = base.next_logits(samples.ROWS, torch.empty(0, base.width))
    return logits


# Others open it ----------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_transformers_and_load_base_open_the_folder(architecture: str, tmp_path: Path) -> None:
    prompt = samples.full(tiny.base(architecture))
    written(tmp_path, prompt)
    assert {file.name for file in tmp_path.iterdir()} == MODEL_FILES
    expected = behind_nothing(prompt.base)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(samples.peft_logits(model.eval()), expected, rtol=1e-5, atol=1e-5)
    opened = softprompt.load_base(str(tmp_path), dtype="float32")
    assert torch.equal(behind_nothing(opened), expected)
    assert opened.fingerprint not in (tiny.base(architecture).fingerprint, prompt.base.fingerprint)
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer("a text")["input_ids"] == prompt.base.encode("a text")


def test_a_bf16_model_is_kept_in_bf16(tmp_path: Path) -> None:
    base = tiny.base(dtype=torch.bfloat16)
    prompt = samples.full(base)
    written(tmp_path, prompt)
    assert {t.dtype for t in load_file(tmp_path / MODEL_FILE).values()} == {torch.bfloat16}
    assert json.loads((tmp_path / MODEL_CONFIG).read_text())["dtype"] == "bfloat16"
    met = full_format.read(tmp_path).meet(base)
    assert torch.equal(behind_nothing(met.base), behind_nothing(prompt.base))


def test_the_configuration_names_its_class_and_no_attention_of_ours(tmp_path: Path) -> None:
    prompt = samples.full(tiny.base())
    written(tmp_path, prompt)
    about = json.loads((tmp_path / MODEL_CONFIG).read_text())
    assert about["architectures"] == ["LlamaForCausalLM"]
    assert "softprompt" not in json.dumps(about)
    assert prompt.base.config.architectures is None  # what is in memory stays as it was


# It comes back -----------------------------------------------------------------------------------


@pytest.mark.parametrize("positions", [0, 3])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bloom"])
def test_met_with_its_base_it_is_what_it_was(architecture: str, positions: int, tmp_path: Path) -> None:
    base = tiny.base(architecture)
    prompt = samples.full(base, positions=positions)
    sha256 = written(tmp_path, prompt)
    assert (tmp_path / FRONT_FILE).exists() == bool(positions)
    before, outputs = samples.bytes_of(base), behind_nothing(base)
    payload = full_format.read(tmp_path, sha256)
    assert (payload.positions, full_format.check(tmp_path)) == (positions, positions)
    met = payload.meet(base)
    assert isinstance(met.front, torch.Tensor)
    assert isinstance(prompt.front, torch.Tensor)
    assert torch.equal(met.front, prompt.front)
    assert torch.equal(behind_nothing(met.base), behind_nothing(prompt.base))
    assert samples.bytes_of(base) == before
    assert torch.equal(behind_nothing(base), outputs)


def test_the_copy_holds_its_weights_once(tmp_path: Path) -> None:
    base = tiny.base()
    written(tmp_path, samples.full(base))
    met = full_format.read(tmp_path).meet(base)
    assert met.change is not None
    for name, parameter in met.base.model.named_parameters():
        assert met.change.tensors[name].data_ptr() == parameter.data_ptr()
        assert not parameter.requires_grad


def test_reading_the_folder_reads_no_weights(tmp_path: Path) -> None:
    """A hash that is wrong shows when the weights are read, not before."""
    written(tmp_path, samples.full(tiny.base()))
    payload = full_format.read(tmp_path, "0" * 64)
    assert payload.numbers == sum(p.numel() for p in tiny.base().model.parameters())
    with pytest.raises(ArtifactError, match="was changed or damaged"):
        payload.meet(tiny.base())
    (tmp_path / "copy").mkdir()
    with pytest.raises(ArtifactError, match="was changed or damaged"):
        payload.write(tmp_path / "copy", "", None)


def test_words_in_front_are_under_the_hash_too(tmp_path: Path) -> None:
    sha256 = written(tmp_path, samples.full(tiny.base(), positions=2))
    save_file({"front": torch.ones(2, 32)}, tmp_path / FRONT_FILE)
    with pytest.raises(ArtifactError, match="was changed or damaged"):
        full_format.read(tmp_path, sha256).meet(tiny.base())


def test_a_copy_of_the_folder_is_the_folder(tmp_path: Path) -> None:
    prompt = samples.full(tiny.base(), positions=2)
    sha256 = written(tmp_path / "one", prompt)
    for name, content in (("run.py", "evil"), ("softprompt.json", "{}"), ("notes.md", "mine")):
        (tmp_path / "one" / name).write_text(content)
    (tmp_path / "two").mkdir()
    assert full_format.read(tmp_path / "one", sha256).write(tmp_path / "two", "", None) == sha256
    assert {file.name for file in (tmp_path / "two").iterdir()} == MODEL_FILES | {FRONT_FILE}
    for name in MODEL_FILES | {FRONT_FILE}:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


# What transformers wrote -------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", [a for a in tiny.ARCHITECTURES if a != "gpt-neox"])
def test_a_model_that_transformers_saved_can_be_read(architecture: str, tmp_path: Path) -> None:
    tiny.model(architecture, seed=4).save_pretrained(tmp_path)
    expected = behind_nothing(freeze(tiny.model(architecture, seed=4), tiny.tokenizer(), "other"))
    met = full_format.read(tmp_path).meet(tiny.base(architecture))
    assert torch.equal(behind_nothing(met.base), expected)
    assert isinstance(met.front, torch.Tensor)
    assert len(met.front) == 0


def test_a_model_whose_tensors_transformers_renames_is_refused_by_name(tmp_path: Path) -> None:
    tiny.model("gpt-neox").save_pretrained(tmp_path)  # its head is called otherwise in files than in memory
    with pytest.raises(ArtifactError, match=r"they differ in 'embed_out\.weight'"):
        full_format.read(tmp_path).meet(tiny.base("gpt-neox"))


def test_a_model_in_several_files_is_refused(tmp_path: Path) -> None:
    tiny.model("llama").save_pretrained(tmp_path, max_shard_size="20KB")
    for door in (full_format.read, full_format.check):
        with pytest.raises(ArtifactError, match="holds a model in several files; save it in one"):
            door(tmp_path)


# Files from strangers ----------------------------------------------------------------------------


@pytest.mark.parametrize("harm", ["missing", "more", "shape", "other"])
def test_weights_of_another_model_are_refused_before_they_are_read(harm: str, tmp_path: Path) -> None:
    written(tmp_path, samples.full(tiny.base("gpt2" if harm == "other" else "llama")))
    tensors = load_file(tmp_path / MODEL_FILE)
    if harm == "missing":
        del tensors["model.norm.weight"]
    if harm == "more":
        tensors["extra"] = torch.full((1,), torch.nan)
    if harm == "shape":
        tensors["model.norm.weight"] = torch.ones(31)
    save_file(tensors, tmp_path / MODEL_FILE)
    with pytest.raises(ArtifactError, match="does not hold the weights of tiny-llama-0: they differ in '"):
        full_format.read(tmp_path).meet(tiny.base())


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    written(tmp_path, samples.full(tiny.base()))
    tensors = load_file(tmp_path / MODEL_FILE)
    tensors["model.norm.weight"][3] = torch.nan
    save_file(tensors, tmp_path / MODEL_FILE)
    with pytest.raises(ArtifactError, match=r"model\.norm\.weight has 1 of 32 numbers that are not finite"):
        full_format.read(tmp_path).meet(tiny.base())


def test_numbers_too_large_for_the_base_are_refused(tmp_path: Path) -> None:
    written(tmp_path, samples.full(tiny.base()))
    tensors = load_file(tmp_path / MODEL_FILE)
    tensors["model.norm.weight"][3] = 1e6
    save_file(tensors, tmp_path / MODEL_FILE)
    with pytest.raises(ArtifactError, match=r"in torch\.float16, .* load the base in float32"):
        full_format.read(tmp_path).meet(tiny.base(dtype=torch.float16))


@pytest.mark.parametrize("name", [MODEL_CONFIG, MODEL_FILE])
def test_a_missing_or_odd_file_is_named(name: str, tmp_path: Path) -> None:
    written(tmp_path, samples.full(tiny.base()))
    (tmp_path / name).unlink()
    with pytest.raises(ArtifactError, match=name):
        full_format.read(tmp_path)
    os.mkfifo(tmp_path / name)
    with pytest.raises(ArtifactError, match=f"{name} is not a file"):
        full_format.read(tmp_path)


@pytest.mark.parametrize("content", [b"[" * 100_000, b" " * (2**22 + 1), b'{"a": NaN}'])
def test_a_configuration_that_is_none_is_refused(content: bytes, tmp_path: Path) -> None:
    written(tmp_path, samples.full(tiny.base()))
    (tmp_path / MODEL_CONFIG).write_bytes(content)
    with pytest.raises(ArtifactError, match=MODEL_CONFIG):
        full_format.read(tmp_path)


def test_a_huge_tokenizer_is_not_copied(tmp_path: Path) -> None:
    written(tmp_path / "one", samples.full(tiny.base()))
    with (tmp_path / "one" / "tokenizer.json").open("wb") as file:
        file.truncate(2**28 + 1)  # takes no space on the disk
    (tmp_path / "two").mkdir()
    with pytest.raises(ArtifactError, match=r"tokenizer\.json is larger than 256 MiB"):
        full_format.read(tmp_path / "one").write(tmp_path / "two", "", None)


@pytest.mark.parametrize("name", ["merges.txt", MODEL_CONFIG, MODEL_FILE, FRONT_FILE])
def test_a_link_out_of_the_folder_is_not_copied(name: str, tmp_path: Path) -> None:
    written(tmp_path / "one", samples.full(tiny.base(), positions=2))
    outside = tmp_path / "outside"
    if (tmp_path / "one" / name).exists():
        (tmp_path / "one" / name).rename(outside)
    else:
        outside.write_text("secret")
    (tmp_path / "one" / name).symlink_to(outside)
    (tmp_path / "two").mkdir()
    with pytest.raises(ArtifactError, match=f"{name} is a link that leads out of its folder"):
        full_format.read(tmp_path / "one").write(tmp_path / "two", "", None)
    assert not list((tmp_path / "two").iterdir())


def test_links_inside_the_folder_are_followed(tmp_path: Path) -> None:
    written(tmp_path / "one", samples.full(tiny.base()))
    (tmp_path / "one" / "merges.txt").symlink_to(MODEL_CONFIG)
    (tmp_path / "alias").symlink_to(tmp_path / "one")
    (tmp_path / "two").mkdir()
    full_format.read(tmp_path / "alias").write(tmp_path / "two", "", None)
    assert (tmp_path / "two" / "merges.txt").read_bytes() == (tmp_path / "two" / MODEL_CONFIG).read_bytes()


def snapshot(cache: Path, commit: str) -> Path:
    """A model as the hub's cache holds it: a folder of links to blobs."""
    (cache / "plain").mkdir(parents=True)
    written(cache / "plain", samples.full(tiny.base()))
    blobs = cache / "models--some--model" / "blobs"
    folder = cache / "models--some--model" / "snapshots" / commit
    for made in (blobs, folder):
        made.mkdir(parents=True)
    for number, file in enumerate(sorted((cache / "plain").iterdir())):
        file.rename(blobs / f"{number}")
        (folder / file.name).symlink_to(Path("..", "..", "blobs", f"{number}"))
    return folder


def test_a_snapshot_in_the_hubs_cache_is_copied_but_for_links_to_other_models(tmp_path: Path) -> None:
    folder = snapshot(tmp_path / "hub", "0123abcd")
    (tmp_path / "two").mkdir()
    full_format.read(folder).write(tmp_path / "two", "", None)
    assert {file.name for file in (tmp_path / "two").iterdir()} == MODEL_FILES
    assert not any(file.is_symlink() for file in (tmp_path / "two").iterdir())
    (tmp_path / "hub" / "models--other--model").mkdir()
    (tmp_path / "hub" / "models--other--model" / "blobs").write_text("secret")
    (folder / "merges.txt").symlink_to(Path("..", "..", "..", "models--other--model", "blobs"))
    with pytest.raises(ArtifactError, match=r"merges\.txt is a link that leads out of its folder"):
        full_format.read(folder).write(tmp_path / "two", "", None)


def test_numbers_that_are_not_finite_are_not_written(tmp_path: Path) -> None:
    prompt = samples.full(tiny.base())
    assert prompt.change is not None
    prompt.change.tensors["model.norm.weight"][0] = torch.inf
    with pytest.raises(ArtifactError, match="not finite; train it again"):
        written(tmp_path, prompt)
