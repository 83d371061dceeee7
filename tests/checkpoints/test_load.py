"""A frozen model by any name, and one plain sentence for each way that can fail."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import tiny
from softprompt.checkpoints import catalog, load
from softprompt.checkpoints.load import open_model
from softprompt.errors import BaseModelError, ResourceError


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    tiny.model("llama").save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


def open_tiny(source: Path | str, **options: Any) -> load.Loaded:
    return open_model(str(source), **{"device": "cpu", "dtype": "float32", **options})


def refused(source: Path | str, words: str, kind: type[Exception] = BaseModelError, **options: Any) -> None:
    with pytest.raises(kind, match=words) as caught:
        open_tiny(source, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith((".", "?"))


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_folder_opens_frozen_and_silent(saved: Path, capfd: pytest.CaptureFixture[str]) -> None:
    bars = transformers.utils.logging.is_progress_bar_enabled()
    loaded = open_tiny(saved)
    assert capfd.readouterr() == ("", "")
    assert transformers.utils.logging.is_progress_bar_enabled() == bars
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert (loaded.source, loaded.revision) == (str(saved), None)
    assert loaded.device == loaded.model.device == torch.device("cpu")
    assert loaded.dtype == loaded.model.dtype == torch.float32
    assert loaded.tokenizer.encode("ab") == tiny.tokenizer().encode("ab")
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(loaded.model(ids).logits, tiny.model("llama")(ids).logits)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_every_architecture_opens(architecture: str, tmp_path: Path) -> None:
    tiny.model(architecture).save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    loaded = open_tiny(tmp_path, dtype="bf16")
    assert loaded.dtype == loaded.model.dtype == torch.bfloat16


def test_the_attention_can_be_chosen(saved: Path) -> None:
    assert open_tiny(saved, attn_implementation="eager").model.config._attn_implementation == "eager"
    refused(saved, "cannot be loaded.*nonsense", attn_implementation="nonsense")


def test_a_bundled_name_comes_first(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "smollm2-135m").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(catalog, "bundled", lambda name, notify: saved)
    assert open_tiny("smollm2-135m").source == "smollm2-135m"


def test_a_gguf_is_converted(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "model.GGUF"
    file.touch()
    monkeypatch.setattr(load, "converted", lambda path, notify: saved if path == file else None)
    assert open_tiny(file).source == str(file)
    refused(tmp_path / "none.gguf", "There is no file")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what memory is a file")
def test_weights_in_their_own_number_format_are_not_copied(saved: Path) -> None:
    """So a base that was converted from a GGUF file is there at once, and processes share its memory."""
    model = open_tiny(saved).model
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    mapped = [line[0].split("-") for line in lines if line[-1] == str(saved / "model.safetensors")]
    spans = [(int(start, 16), int(stop, 16)) for start, stop in mapped]
    for name, parameter in model.named_parameters():
        assert any(start <= parameter.data_ptr() < stop for start, stop in spans), name


def test_names_that_lead_nowhere(tmp_path: Path) -> None:
    refused("./smollm2-135", r"was not found.*: name a bundled name \(smollm2-135m\), a folder")
    refused("SmolLM2 135M", r"did you mean smollm2-135m\?")
    (tmp_path / "weights.safetensors").touch()
    refused(tmp_path / "weights.safetensors", "is a file, not a base")
    refused("", "was not found")


def test_a_local_base_has_no_revision(saved: Path) -> None:
    refused(saved, "has no revisions", revision="main")
    refused("smollm2-135m", "has no revisions", revision="main")


def test_wrong_settings_are_refused_before_anything_is_fetched(saved: Path) -> None:
    refused("owner/never-asked", "device 'gpu' is not known", device="gpu")
    refused("owner/never-asked", "dtype 'int3' is not known", dtype="int3")


def test_folders_that_hold_no_model(tmp_path: Path) -> None:
    refused(tmp_path, "has no config.json")
    (tmp_path / "adapter_config.json").write_text("{}")
    refused(tmp_path, "holds an adapter, not a base")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{ not", "config.json of .* cannot be read"),
        ("{}", "unknown architecture"),
        ("[]", "unknown architecture"),
    ],
)
def test_a_damaged_config(folder: Path, text: str, words: str) -> None:
    (folder / "config.json").write_text(text)
    refused(folder, words)


def test_a_config_with_a_wrong_field(folder: Path) -> None:
    change_config(folder, hidden_size="wide")
    refused(folder, "config.json of .* cannot be read")


def test_an_unknown_architecture(folder: Path) -> None:
    change_config(folder, model_type="plankton")
    refused(folder, "unknown architecture .*plankton.*: update transformers")


CODE = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}


def test_own_code_is_not_run_unasked(folder: Path) -> None:
    (folder / "own.py").write_text("raise SystemExit('the code ran')")
    change_config(folder, model_type="plankton", auto_map=CODE)
    refused(folder, "brings Python code of its own.*trust_remote_code")


def test_own_code_is_not_needed_by_a_known_architecture(folder: Path) -> None:
    (folder / "own.py").write_text("raise SystemExit('the code ran')")
    change_config(folder, auto_map=CODE)
    assert type(open_tiny(folder).model) is transformers.LlamaForCausalLM


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (transformers.T5Config(), r"\(t5\) is an encoder-decoder model"),
        (transformers.BartConfig(), r"\(bart\) is an encoder-decoder model"),
        (transformers.BertConfig(), r"\(bert\) is an encoder that reads in both directions"),
        (transformers.ViTConfig(), r"\(vit\) is not a language model"),
    ],
)
def test_models_that_do_not_write_left_to_right(tmp_path: Path, config: Any, words: str) -> None:
    config.save_pretrained(tmp_path)
    refused(tmp_path, words)


def test_weights_cut_short(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    refused(folder, "weights of .* are damaged")
    path.write_bytes(b"")
    refused(folder, "weights of .* are damaged")


def test_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    refused(folder, "no complete model.safetensors")
    torch.save({}, folder / "pytorch_model.bin")
    refused(folder, "pickled ones.*never read")


def test_a_missing_shard(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, "model-00001-of-00002.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(folder, "no complete model.safetensors")


def test_a_missing_tensor_is_not_made_up(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    refused(folder, r"lack 1 of the model's tensors, such as model\.layers\.1\.mlp\.up_proj\.weight")


def test_weights_of_another_size(folder: Path) -> None:
    change_config(folder, intermediate_size=52)
    refused(folder, "do not have the sizes")


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_no_tokenizer(architecture: str, tmp_path: Path) -> None:
    tiny.model(architecture).save_pretrained(tmp_path)
    refused(tmp_path, "has no tokenizer")


def test_a_damaged_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")
    refused(folder, "tokenizer of .* cannot be read")


def test_too_little_memory(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*args: Any, **kwargs: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", exhausted)
    refused(saved, "not enough memory", ResourceError)


def test_an_absent_package(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*args: Any, **kwargs: Any) -> None:
        raise ImportError("Using `bitsandbytes` requires it: pip install bitsandbytes\nmore")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", absent)
    refused(saved, "needs a package that is absent: Using `bitsandbytes`", ResourceError)
