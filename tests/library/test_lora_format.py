"""An adapter written here is PEFT's to the byte and gives PEFT's logits; one PEFT wrote does so here."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing
from torch import Tensor

import tiny
from library import samples
from softprompt.errors import ArtifactError
from softprompt.library import formats, lora_format
from softprompt.library.changed import FRONT_FILE
from softprompt.library.files import json_object
from softprompt.library.lora_format import Adapter, LoraConfigFile
from softprompt.library.peft_format import CONFIG_FILE, CONFIG_LIMIT, WEIGHTS_FILE, config_bytes, parse_config

pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")


def written(folder: Path, prompt: Any, base_name: str = "some/base") -> Path:
    folder.mkdir(exist_ok=True)
    formats.payload(prompt.base, prompt.front, prompt.change).write(folder, base_name, "abc")
    return folder


def theirs(folder: Path, architecture: str = "llama", **options: Any) -> Any:
    """A model of PEFT's with an adapter that matters, saved in ``folder``."""
    options = {"r": 2, "lora_alpha": 6, "target_modules": "all-linear"} | options
    config = peft.LoraConfig(task_type="CAUSAL_LM", **options)
    wrapped: Any = peft.get_peft_model(tiny.model(architecture), config).eval()
    samples.shaken([p for n, p in wrapped.named_parameters() if "lora_" in n], seed=5)
    wrapped.save_pretrained(folder)
    return wrapped


def ours(folder: Path, architecture: str = "llama") -> Tensor:
    """Logits behind nothing of the adapter in ``folder``."""
    met = lora_format.read(folder)[0].meet(tiny.base(architecture))
    with torch.no_grad():
        return met.base.next_logits(samples.ROWS, met.front)


def same(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


# What we write, PEFT reads -----------------------------------------------------------------------


@pytest.mark.parametrize("variant", samples.VARIANTS)
@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_peft_reads_our_adapter(architecture: str, variant: str, tmp_path: Path) -> None:
    prompt = samples.lora(tiny.base(architecture), **samples.VARIANTS[variant])
    written(tmp_path, prompt)
    loaded = peft.PeftModel.from_pretrained(tiny.model(architecture), tmp_path).eval()
    same(samples.logits(prompt), samples.peft_logits(loaded))
    assert not torch.allclose(
        samples.logits(prompt), tiny.base(architecture).next_logits(samples.ROWS, prompt.front)
    )


def test_pefts_loss_is_ours(tmp_path: Path) -> None:
    prompt = samples.lora(tiny.base(), dora=True)
    loaded = peft.PeftModel.from_pretrained(tiny.model("llama"), written(tmp_path, prompt)).eval()
    row = samples.ROWS[1]
    ids = torch.tensor([row.ids])
    with torch.no_grad():
        expected = loaded(input_ids=ids, labels=ids).loss
        found = prompt.base.nll([row], prompt.front).nll.mean()
    same(found, expected)


@pytest.mark.parametrize("variant", samples.VARIANTS)
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_both_files_are_pefts(architecture: str, variant: str, tmp_path: Path) -> None:
    prompt = samples.lora(tiny.base(architecture), **samples.VARIANTS[variant])
    name = str(tmp_path / "base")
    prompt.base.config.save_pretrained(name)  # PEFT looks for it when it saves
    written(tmp_path / "ours", prompt, name)
    loaded = peft.PeftModel.from_pretrained(tiny.model(architecture), tmp_path / "ours")
    loaded.save_pretrained(str(tmp_path / "theirs"))
    mine, other = ((tmp_path / side / WEIGHTS_FILE).read_bytes() for side in ("ours", "theirs"))
    assert mine == other
    about, expected = (json.loads((tmp_path / side / CONFIG_FILE).read_text()) for side in ("ours", "theirs"))
    expected |= {"target_modules": sorted(expected["target_modules"]), "peft_version": "0.21.2"}
    assert about == expected


def test_what_was_written_comes_back(tmp_path: Path) -> None:
    prompt = samples.lora(tiny.base(), positions=3, targets=["q_proj", "mlp.up_proj"])
    adapter, _ = lora_format.read(written(tmp_path, prompt))
    assert prompt.change is not None
    assert adapter.change.settings == samples.LORA | {"targets": ["mlp.up_proj", "q_proj"]}
    assert adapter.change.tensors.keys() == prompt.change.tensors.keys()
    for name, tensor in prompt.change.tensors.items():
        assert torch.equal(adapter.change.tensors[name], tensor)
    assert isinstance(prompt.front, Tensor)
    assert torch.equal(adapter.front, prompt.front)
    assert (adapter.positions, lora_format.check(tmp_path)) == (3, 3)
    assert adapter.numbers == sum(t.numel() for t in prompt.change.tensors.values())


def test_names_that_would_catch_other_layers_are_written_in_full(tmp_path: Path) -> None:
    base = tiny.base()
    prompt = samples.lora(base)
    assert prompt.change is not None
    layer = "model.layers.1.self_attn.q_proj"
    some = {name: t for name, t in prompt.change.tensors.items() if name.startswith(layer)}
    change = type(prompt.change)("lora", prompt.change.settings, some)
    assert Adapter.of(base, prompt.front, change).change.settings["targets"] == [layer]


def test_without_words_in_front_there_is_no_file_of_them(tmp_path: Path) -> None:
    written(tmp_path, samples.lora(tiny.base()))
    assert {file.name for file in tmp_path.iterdir()} == {CONFIG_FILE, WEIGHTS_FILE}


# What PEFT writes, we read -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{}, {"use_rslora": True}, {"use_dora": True}, {"init_lora_weights": "gaussian"}],
    ids=["lora", "rslora", "dora", "gaussian"],
)
@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_pefts_adapter_gives_pefts_logits(architecture: str, options: Any, tmp_path: Path) -> None:
    wrapped = theirs(tmp_path, architecture, **options)
    same(ours(tmp_path, architecture), samples.peft_logits(wrapped))


# As others configure it ---------------------------------------------------------------------------

BIG = {"r": 2, "lora_alpha": 6, "lora_dropout": 0.05}
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "the course's": ("bloom", {"bias": "lora_only", "target_modules": ["query_key_value"]}),
    "biases of its layers": ("gpt-neox", {"bias": "lora_only", "target_modules": ["query_key_value"]}),
    "all biases": ("gpt2", {"bias": "all", "target_modules": ["c_attn"]}),
    "head and embeddings whole": ("llama", {"modules_to_save": ["lm_head", "embed_tokens"]}),
    "a head that was tied": ("gemma3", {"modules_to_save": ["lm_head"]}),
    "norms whole": ("llama", {"modules_to_save": ["norm", "input_layernorm"]}),
    "embeddings": ("llama", {"target_modules": ["q_proj", "embed_tokens"]}),
    "embeddings that are scaled": ("gemma3", {"target_modules": ["q_proj", "embed_tokens"]}),
    "the head": ("llama", {"target_modules": ["q_proj", "lm_head"]}),
    "the head alone": ("llama", {"target_modules": ["lm_head"], "use_dora": True}),
    "some words": ("llama", {"trainable_token_indices": [5, 33]}),
    "some words of a tied head": ("gemma3", {"trainable_token_indices": [5, 33]}),
    "words by their layer": ("llama", {"trainable_token_indices": {"embed_tokens": [7], "lm_head": [1, 2]}}),
    "a regular expression": ("llama", {"target_modules": r".*layers\.[12]\..*(q|v)_proj"}),
    "some layers": ("llama", {"layers_to_transform": [1]}),
    "a layer of a list": (
        "gpt2",
        {"target_modules": ["c_attn"], "layers_to_transform": 2, "layers_pattern": "h"},
    ),
    "all but some": ("llama", {"target_modules": "all-linear", "exclude_modules": r".*mlp.*"}),
    "ranks of their own": ("llama", {"rank_pattern": {"q_proj": 3, r"^model.layers.0.*v_proj": 1}}),
    "alphas of their own": (
        "llama",
        {"alpha_pattern": {r"^model\.layers\.1\.self_attn\.q_proj": 20, "q_proj": 11, "self_attn.q_proj": 1}},
    ),
    "both, by the root of the rank": (
        "llama",
        {"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"v_proj": 9}, "use_rslora": True},
    ),
}  # fmt: skip


def as_others_do(folder: Path, which: str) -> tuple[str, Any]:
    architecture, options = OTHERS[which]
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", **BIG | {"target_modules": ["q_proj", "v_proj"]} | options
    )
    wrapped: Any = peft.get_peft_model(tiny.model(architecture), config).eval()
    samples.shaken([p for p in wrapped.parameters() if p.requires_grad], seed=5)
    wrapped.save_pretrained(folder)
    return architecture, wrapped


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("which", OTHERS)
def test_adapters_as_others_configure_them_give_pefts_logits(which: str, tmp_path: Path) -> None:
    architecture, wrapped = as_others_do(tmp_path / "theirs", which)
    again = peft.PeftModel.from_pretrained(tiny.model(architecture), tmp_path / "theirs").eval()
    expected = samples.peft_logits(wrapped)
    same(samples.peft_logits(again), expected)  # PEFT itself loses nothing of it
    base = tiny.base(architecture)
    before = samples.bytes_of(base)
    same(ours(tmp_path / "theirs", architecture), expected)
    adapter, _ = lora_format.read(tmp_path / "theirs")
    merged = adapter.merged(base)
    nothing = torch.empty(0, base.width)
    with torch.no_grad():
        same(merged.next_logits(samples.ROWS, nothing), expected)
        assert not torch.allclose(base.next_logits(samples.ROWS, nothing), expected, atol=1e-3)
    assert samples.bytes_of(base) == before
    # Kept in a library and written again, it is still the same to both.
    (tmp_path / "again").mkdir()
    met = adapter.meet(base)
    assert met.change is not None
    formats.payload(met.base, met.front, met.change).write(tmp_path / "again", "some/base", None)
    same(ours(tmp_path / "again", architecture), expected)
    theirs = peft.PeftModel.from_pretrained(tiny.model(architecture), tmp_path / "again").eval()
    same(samples.peft_logits(theirs), expected)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_only_changes_layers_rides_and_what_changes_more_does_not(tmp_path: Path) -> None:
    rides = {}
    for number, which in enumerate(OTHERS):
        architecture, _ = as_others_do(tmp_path / str(number), which)
        adapter, _ = lora_format.read(tmp_path / str(number))
        rides[which] = adapter.ride(tiny.base(architecture)) is not None
    assert {which for which, does in rides.items() if does} == {
        "a regular expression", "some layers", "a layer of a list", "all but some", "ranks of their own",
        "alphas of their own", "both, by the root of the rank",
    }  # fmt: skip


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_words_in_front_are_those_that_were_learnt(tmp_path: Path) -> None:
    as_others_do(tmp_path, "head and embeddings whole")
    tokenizer = copy.deepcopy(tiny.tokenizer())
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    adapter, _ = lora_format.read(tmp_path)
    adopted = adapter.adopted(replace(tiny.base(), tokenizer=tokenizer))
    assert torch.equal(adopted.front, adapter.change.tensors["model.embed_tokens.weight"][[1]])


def test_names_of_layers_that_are_not_there_do_no_harm(tmp_path: Path) -> None:
    wrapped = theirs(tmp_path, target_modules=["q_proj", "query_key_value"])
    adapter, about = lora_format.read(tmp_path)
    assert adapter.change.settings["targets"] == ["q_proj"]
    assert "query_key_value" in about.target_modules
    same(ours(tmp_path), samples.peft_logits(wrapped))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions_are_read_as_fp32(dtype: torch.dtype, tmp_path: Path) -> None:
    theirs(tmp_path)
    tensors = {name: t.to(dtype) for name, t in load_file(tmp_path / WEIGHTS_FILE).items()}
    save_file(tensors, tmp_path / WEIGHTS_FILE)
    read = lora_format.read(tmp_path)[0].change.tensors
    for name, tensor in tensors.items():
        inside = name.removeprefix("base_model.model.").replace(".weight", ".default.weight")
        assert torch.equal(read[inside], tensor.float())
        assert read[inside].dtype == torch.float32


# The base ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", samples.VARIANTS)
def test_the_base_keeps_every_byte_and_answer(variant: str, tmp_path: Path) -> None:
    base = tiny.base()
    written(tmp_path, samples.lora(base, **samples.VARIANTS[variant]))
    nothing = torch.empty(0, base.width)
    before, outputs = samples.bytes_of(base), base.next_logits(samples.ROWS, nothing)
    met = lora_format.read(tmp_path)[0].meet(base)
    met.base.next_logits(samples.ROWS, met.front)
    assert samples.bytes_of(base) == before
    assert torch.equal(base.next_logits(samples.ROWS, nothing), outputs)
    assert met.base.fingerprint != base.fingerprint


@pytest.mark.parametrize(
    ("other", "said"),
    [("gpt2", "is no linear layer or not there"), ("opt", "is no linear layer or not there")],
)
def test_an_adapter_of_another_architecture_is_refused(other: str, said: str, tmp_path: Path) -> None:
    theirs(tmp_path)
    with pytest.raises(ArtifactError, match=said):
        lora_format.read(tmp_path)[0].meet(tiny.base(other))


def test_an_adapter_of_another_width_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    theirs(tmp_path, target_modules=["q_proj"])
    tensors = load_file(tmp_path / WEIGHTS_FILE)
    wide = {name: torch.ones(2, 8) if "lora_A" in name else t for name, t in tensors.items()}
    save_file(wide, tmp_path / WEIGHTS_FILE)
    with pytest.raises(ArtifactError, match=r"q_proj to be 8 x 32, which in tiny-llama-0 is 32 x 32"):
        lora_format.read(tmp_path)[0].meet(tiny.base())


def test_words_of_another_width_are_refused(tmp_path: Path) -> None:
    written(tmp_path, samples.lora(tiny.base(), positions=2))
    save_file({"front": torch.ones(2, 31)}, tmp_path / FRONT_FILE)
    with pytest.raises(ArtifactError, match="31 numbers wide, but tiny-llama-0 takes 32"):
        lora_format.read(tmp_path)[0].meet(tiny.base())


# Files from strangers ----------------------------------------------------------------------------


def refused(folder: Path) -> str:
    said = []
    for door in (lora_format.read, lora_format.check):
        with pytest.raises(ArtifactError) as caught:
            door(folder)
        said.append(str(caught.value))
    assert said[0] == said[1]
    assert str(folder) in said[0]
    assert "\n" not in said[0]
    return said[0]


def retensored(folder: Path, **changes: Tensor | None) -> None:
    """Replace tensors of q_proj in layer 0 by part, or take them out."""
    path = folder / WEIGHTS_FILE
    tensors = load_file(path)
    for part, tensor in changes.items():
        name = f"base_model.model.model.layers.0.self_attn.q_proj.{part.replace('__', '.')}"
        tensors.pop(name, None)
        if tensor is not None:
            tensors[name] = tensor
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lora_B__weight": None}, "does not hold what its configuration asks for at model.layers.0"),
        ({"lora_A__weight": torch.ones(3, 32)}, "does not hold what its configuration asks for"),
        ({"lora_A__weight": torch.ones(2, 32, 1)}, "does not hold what its configuration asks for"),
        ({"lora_magnitude_vector": torch.ones(32)}, "does not hold what its configuration asks for"),
        ({"lora_embedding_A": torch.ones(2, 32)}, "does not hold what its configuration asks for"),
        ({"lora_B__bias": torch.ones(32)}, "more in it than its configuration says"),
        ({"bias": torch.ones(32)}, "more in it than its configuration says"),
        ({"weight": torch.ones(32, 32)}, "more in it than its configuration says"),
        ({"base_layer__bias": torch.ones(32)}, "more in it than its configuration says"),
        ({"inner__weight": torch.ones(32)}, "more in it than its configuration says"),
        (
            {"token_adapter__trainable_tokens_delta": torch.ones(1, 32)},
            "more in it than its configuration says",
        ),
    ],
)
def test_tensors_that_do_not_belong_are_refused(changes: Any, said: str, tmp_path: Path) -> None:
    theirs(tmp_path)
    retensored(tmp_path, **changes)
    assert said in refused(tmp_path)


def test_layers_the_configuration_does_not_name_are_refused(tmp_path: Path) -> None:
    theirs(tmp_path, target_modules=["q_proj", "v_proj"])
    about = json.loads((tmp_path / CONFIG_FILE).read_text())
    (tmp_path / CONFIG_FILE).write_text(json.dumps(about | {"target_modules": ["v_proj"]}))
    assert "which target_modules does not name" in refused(tmp_path)


def test_an_adapter_without_tensors_is_refused(tmp_path: Path) -> None:
    theirs(tmp_path)
    save_file({}, tmp_path / WEIGHTS_FILE)
    assert "holds no adapter" in refused(tmp_path)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_numbers_that_are_not_finite_are_refused(bad: float, tmp_path: Path) -> None:
    theirs(tmp_path)
    retensored(tmp_path, lora_A__weight=torch.full((2, 32), bad))
    with pytest.raises(ArtifactError, match="64 of 64 numbers that are not finite"):
        lora_format.read(tmp_path)


def test_numbers_that_are_not_finite_are_not_written(tmp_path: Path) -> None:
    prompt = samples.lora(tiny.base())
    assert prompt.change is not None
    next(iter(prompt.change.tensors.values()))[0, 0] = torch.nan
    with pytest.raises(ArtifactError, match=r"1 of 64 numbers that are not finite; train it again"):
        written(tmp_path, prompt)


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    theirs(tmp_path)
    (tmp_path / WEIGHTS_FILE).unlink()
    (tmp_path / "adapter_model.bin").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    assert "is a pickle" in refused(tmp_path)


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"other": torch.ones(2, 32)}, "does not hold one tensor front"),
        ({"front": torch.ones(2, 32), "more": torch.ones(1)}, "does not hold one tensor front"),
        ({"front": torch.ones(32)}, "does not hold one tensor front"),
        ({"front": torch.ones(0, 32)}, "does not hold one tensor front"),
        ({"front": torch.ones(2**16 + 1, 1)}, "beyond all limits"),
    ],
)
def test_a_front_that_is_none_is_refused(tensors: Any, said: str, tmp_path: Path) -> None:
    written(tmp_path, samples.lora(tiny.base(), positions=2))
    save_file(tensors, tmp_path / FRONT_FILE)
    assert said in refused(tmp_path)


# Configurations ------------------------------------------------------------------------------------

SETTINGS = {"rank": 4, "alpha": 8.0, "targets": ["v_proj", "q_proj"], "rslora": True, "dora": False}


def read_config(path: Path) -> LoraConfigFile:
    return parse_config(LoraConfigFile, json_object(path, CONFIG_LIMIT), path)


def changed(folder: Path, **changes: Any) -> Path:
    """A configuration as PEFT writes it, with some fields replaced, or taken out by ``...``."""
    path = folder / "adapter_config.json"
    config = LoraConfigFile(
        base_model_name_or_path="some/base",
        lora_alpha=8,
        peft_type="LORA",
        r=4,
        revision="abc",
        target_modules=["v_proj", "q_proj"],
        use_rslora=True,
    )
    values = json.loads(config_bytes(config)) | changes
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not ...}))
    return path


LAYERS = {"model.layers.0.self_attn.q_proj": 4, "model.layers.0.self_attn.v_proj": 4}


def test_the_settings_of_a_configuration_come_back(tmp_path: Path) -> None:
    config = read_config(changed(tmp_path))
    assert config.settings(LAYERS) == SETTINGS | {"targets": ["q_proj", "v_proj"]}
    assert config.base_model_name_or_path == "some/base"
    assert config.revision == "abc"


def test_pefts_own_defaults_can_be_read(tmp_path: Path) -> None:
    peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]).save_pretrained(str(tmp_path))
    settings = read_config(tmp_path / "adapter_config.json").settings({"model.layers.0.self_attn.q_proj": 8})
    assert settings == {"rank": 8, "alpha": 8.0, "targets": ["q_proj"], "rslora": False, "dora": False}


def test_peft_reads_what_is_written(tmp_path: Path) -> None:
    changed(tmp_path)
    found: Any = peft.LoraConfig.from_pretrained(str(tmp_path))
    assert (found.r, found.lora_alpha, found.use_rslora, found.use_dora) == (4, 8, True, False)
    assert set(found.target_modules) == {"q_proj", "v_proj"}


@pytest.mark.parametrize(
    "changes",
    [
        {"task_type": None},
        {"lora_dropout": 0.1},
        {"fan_in_fan_out": True},
        {"init_lora_weights": False},
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": "orthogonal"},
        {"inference_mode": False},
        {"lora_alpha": 2.5},
        {"modules_to_save": []},
        {"target_parameters": ["gate.weight"]},
        {"peft_version": "9.9"},
        {"a_field_of_tomorrow": None},
        {"a_field_of_tomorrow": False},
        {"bias": None, "init_lora_weights": None, "megatron_core": None, "qalora_group_size": None},
        {"use_dora": ..., "use_rslora": ..., "lora_bias": ..., "peft_version": ...},
    ],
)
def test_what_changes_nothing_is_accepted(changes: dict[str, Any], tmp_path: Path) -> None:
    read_config(changed(tmp_path, **changes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"bias": "some"}, "bias is 'some', which is more than is done here"),
        ({"lora_bias": True}, "so its adapters have biases"),
        ({"modules_to_save": "lm_head"}, "not a list of names"),
        ({"modules_to_save": [3]}, "not a list of names"),
        ({"rank_pattern": {"q_proj": 0}}, "not a table of whole numbers from 1"),
        ({"alpha_pattern": {"q_proj": "2"}}, "no table of numbers by names"),
        ({"alpha_pattern": {"(a+)+$": 2}}, "a stranger's pattern is not run"),
        ({"alpha_pattern": {"q_.*": 2}}, "a stranger's pattern is not run"),
        ({"ensure_weight_tying": True}, "so layers that share their weights share an adapter"),
        ({"init_lora_weights": "pissa"}, "a base whose weights were changed when it began"),
        ({"init_lora_weights": "pissa_niter_4"}, "a base whose weights were changed when it began"),
        ({"init_lora_weights": "olora"}, "a base whose weights were changed when it began"),
        ({"init_lora_weights": "loftq"}, "a base whose weights were changed when it began"),
        ({"init_lora_weights": 1}, "a base whose weights were changed when it began"),
        ({"loftq_config": {"loftq_bits": 4}}, "a base whose weights were changed when it began"),
        ({"trainable_token_indices": [-1]}, "not a list of tokens"),
        ({"trainable_token_indices": 3}, "not a list of tokens"),
        ({"target_parameters": ["experts"]}, "outside of linear layers"),
        ({"target_parameters": ["gate.weight", "mlp.experts.gate_up_proj"]}, "outside of linear layers"),
        ({"layer_replication": [[0, 2], [1, 3]]}, "so it repeats layers of the model"),
        ({"alora_invocation_tokens": [5]}, "so it acts only behind certain tokens"),
        ({"use_qalora": True}, "which is more than is done here"),
        ({"velora_config": {"rank": 1}}, "which is more than is done here"),
        ({"rank_patern": {"a": 1}}, "field 'rank_patern' with the value {'a': 1}; did you mean rank_pattern"),
        ({"wholly_new": 3}, "unknown field 'wholly_new' with the value 3; a newer PEFT may have written it"),
        ({"wholly_new": True}, "a newer PEFT may have written it"),
        ({"task_type": "SEQ_CLS"}, "task_type is 'SEQ_CLS', but only CAUSAL_LM can be read"),
        ({"base_model_name_or_path": 3}, "base_model_name_or_path is 3, not text"),
        ({"r": 0}, "r is 0, not a whole number from 1 to 65,536"),
        ({"r": 10**9}, "not a whole number from 1"),
        ({"r": True}, "r is true, not a whole number"),
        ({"r": "8"}, "r is '8', not a whole number"),
        ({"lora_alpha": "x"}, "lora_alpha is 'x', not a number"),
        ({"lora_alpha": 1e300}, "not a number from 0 to 1,048,576"),
        ({"use_dora": 1}, "use_dora is 1, not true or false"),
        ({"target_modules": None}, "not a list of names or a pattern"),
        ({"target_modules": []}, "not a list of names"),
        ({"target_modules": ""}, "not a list of names"),
        ({"target_modules": [3]}, "not a list of names"),
        ({"target_modules": ["x" * 301]}, "not a list of names"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_exactly_is_refused(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = changed(tmp_path, **changes)
    with pytest.raises(ArtifactError) as caught:
        read_config(path)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"[" * 100_000, b'{"r": NaN}', b" " * (2**20 + 1)])
def test_what_is_no_json_object_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_bytes(content)
    with pytest.raises(ArtifactError):
        read_config(tmp_path / "adapter_config.json")
