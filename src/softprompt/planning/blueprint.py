"""A base as its config.json describes it: the real modules on torch's meta device, without a single weight.

It knows architectures and how many bytes their weights take, and reads only what is on this machine already;
it does not know what is done with the model.
"""

from __future__ import annotations

import difflib
import math
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from softprompt.base.attention import IMPLEMENTATION, register
from softprompt.base.layout import FLAT, PADDED, REPEATED, Layout
from softprompt.base.model import Base
from softprompt.base.packing import TokenRow
from softprompt.checkpoints import catalog
from softprompt.checkpoints.activations import with_torchs_activations
from softprompt.checkpoints.convert import converted, quiet
from softprompt.checkpoints.hub import is_hub_id
from softprompt.errors import BaseModelError
from softprompt.planning.kernels import Kernels
from softprompt.planning.shapes import PREFIX, SHAPES

__all__ = ["Blueprint", "draw"]

META = torch.device("meta")
LETTERS = 4
"""Letters of a token where there is no tokenizer to ask: about what English text has."""

_MOST_LAYERS, _MOST_WIDTH, _MOST_WORDS = 1024, 2**18, 2**24
_BLOCK, _SECOND_BLOCK = 64, 256


@dataclass(frozen=True, eq=False)
class Blueprint:
    """What a base is before it is loaded.

    Attributes:
        base: the model on the meta device, its layers in the layout they will most likely be read in.
        parameters: how many numbers the model has.
        linear_bytes: what the weights of its linear layers but the head take, as they are stored.
        other_bytes: what embeddings, norms, head, biases and buffers take.
        storage: how those layers are stored: nf4, int8, or the name of a number format.
        here: whether the weights are on this machine.
        guessed_tokens: whether there is no tokenizer, so that a token is taken for four letters.
    """

    base: Base
    parameters: int
    linear_bytes: int
    other_bytes: int
    storage: str
    here: bool
    guessed_tokens: bool


def draw(
    source: str,
    *,
    revision: str | None = None,
    dtype: torch.dtype,
    quantisation: str = "none",
) -> Blueprint:
    """The blueprint of a base by any name; nothing is downloaded and no weight is read.

    Args:
        source: ``shape:NAME`` for a shape that is known by figures, a bundled name, a folder with
            config.json, a ``.gguf`` file, or a hub id whose config.json is in the local cache.
        revision: branch, tag or commit of a hub id.
        dtype: of everything that is not quantised.
        quantisation: none, nf4 or int8: how the linear layers are stored.

    Raises:
        BaseModelError: there is no such model here, or it is no causal language model.
    """
    folder = _folder(source, revision)
    config = _shape(source) if folder is None else _read(source, folder)
    model = _model(source, config, dtype)
    parameters = sum(p.numel() for p in model.parameters())
    linear = 0
    if quantisation != "none":
        linear = sum(_stored(module, quantisation) for _, module in _linears(model))
        _quantise(model, keeps_input=quantisation == "int8")
    else:
        linear = sum(_bytes([module.weight]) for _, module in _linears(model))
    weights = {id(module.weight) for _, module in _linears(model)}
    rest = [t for t in (*model.parameters(), *model.buffers()) if id(t) not in weights]
    tokenizer = None if folder is None else _tokenizer(folder)
    guessed = tokenizer is None
    base = Base(
        model, _Guess(config.get_text_config().vocab_size) if guessed else tokenizer, source, "", PADDED
    )
    base = _settled(with_torchs_activations(base))
    here = folder is not None and any(folder.glob("*.safetensors"))
    storage = str(dtype).removeprefix("torch.") if quantisation == "none" else quantisation
    return Blueprint(base, parameters, linear, _bytes(rest), storage, here, guessed)


# Finding -----------------------------------------------------------------------------------------


def _folder(source: str, revision: str | None) -> Path | None:
    """Where the config.json is; None for what is known by figures only."""
    if source.startswith(PREFIX):
        return None
    if source in catalog.names():
        fetched = {entry.name for entry in catalog.entries() if entry.fetched}
        return catalog.bundled(source) if source in fetched else None
    path = Path(source).expanduser()
    if (path / "config.json").is_file():
        return path
    if path.suffix.lower() == ".gguf" and path.is_file():
        return converted(path)
    if is_hub_id(source) and (cached := _cached(source, revision)) is not None:
        return cached
    known = ", ".join(PREFIX + name for name in SHAPES)
    near = difflib.get_close_matches(source.lower(), SHAPES, n=1)
    hint = f" (did you mean {PREFIX}{near[0]}?)" if near else ""
    raise BaseModelError(
        f"There is no config.json of {source!r} on this machine{hint}, and planning downloads nothing: fetch "
        f"the model first, or name a folder, a .gguf file or one of {known}."
    )


def _cached(source: str, revision: str | None) -> Path | None:
    """The folder of a hub model's commit in the local cache."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(source, "config.json", revision=revision)
    return Path(found).parent if isinstance(found, str) else None


def _shape(source: str) -> Any:
    from transformers import AutoConfig

    name = source.removeprefix(PREFIX)
    if name not in SHAPES:
        near = difflib.get_close_matches(name.lower(), SHAPES, n=1)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise BaseModelError(f"There is no shape {name!r}: there are {', '.join(SHAPES)}{hint}")
    return AutoConfig.for_model(**SHAPES[name])


def _read(source: str, folder: Path) -> Any:
    """The configuration in a folder; code that came with a model is never run."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    try:
        with quiet():
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:200]
        raise BaseModelError(f"The config.json of {source} cannot be planned with ({said}).") from error
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING or getattr(config, "is_encoder_decoder", False):
        raise BaseModelError(
            f"{source} ({config.model_type}) is no causal language model that transformers knows: choose "
            "one, such as smollm2-135m."
        )
    return config


def _tokenizer(folder: Path) -> Any:
    """The tokenizer in a folder; None where there is none that can be read."""
    from transformers import AutoTokenizer

    try:
        with quiet():
            found = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception:
        return None
    return found if len(found) else None


class _Guess:
    """Stands in for a tokenizer: every four letters are a token, equal letters an equal one."""

    eos_token_id = 2
    chat_template = None
    all_special_ids = (0, 1, 2)

    def __init__(self, words: int) -> None:
        self._words = words

    def __len__(self) -> int:
        return self._words

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        parts = [text[i : i + LETTERS] for i in range(0, len(text), LETTERS)]
        return {"input_ids": [3 + zlib.crc32(part.encode()) % (self._words - 3) for part in parts]}


# Drawing -----------------------------------------------------------------------------------------


def _model(source: str, config: Any, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM

    about = config.get_text_config()
    sizes = {
        "num_hidden_layers": _MOST_LAYERS,
        "hidden_size": _MOST_WIDTH,
        "intermediate_size": 8 * _MOST_WIDTH,
        "vocab_size": _MOST_WORDS,
    }
    for name, most in sizes.items():
        size = getattr(about, name, None)
        if isinstance(size, int) and not 0 < size <= most:
            raise BaseModelError(
                f"{source} has {name} = {size}, which is not from 1 to {most:,}: get it again."
            )
    try:
        with quiet(), META:
            model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    except Exception as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:200]
        raise BaseModelError(
            f"The config.json of {source} describes no model ({said}): get it again."
        ) from error
    model.eval().requires_grad_(False)
    if getattr(model, "_supports_sdpa", False):
        register()
        model.set_attn_implementation(IMPLEMENTATION)
    return model


_UNTRIED = (TypeError, ValueError, RuntimeError, IndexError, AttributeError, KeyError)
"""What comes from a model that asks for numbers where there are none."""


def _settled(base: Base) -> Base:
    """The base in the first layout that its modules accept, which on this device says nothing of exactness.

    What ``base.probe`` compares needs weights; an architecture that can be read in a layout without an
    error has so far been exact in it.
    """
    rows = [TokenRow((1, 2, 3, 4)), TokenRow((1, 2, 3))]
    for layout in (FLAT, REPEATED, PADDED):
        candidate = replace(base, layout=layout)
        if layout.inline and _keeps_states(candidate):
            continue
        if _accepts(candidate, layout, rows):
            return candidate
    raise BaseModelError(
        f"{base.name} is a {base.config.model_type} model, which cannot be read behind a prefix."
    )


def _keeps_states(base: Base) -> bool:
    """Whether layers keep what rows in one bin cannot share."""
    try:
        with torch.no_grad(), Kernels("cpu"):
            return bool(base.prefill(base.embed([1, 2])).states)
    except _UNTRIED:
        return False


def _accepts(base: Base, layout: Layout, rows: list[TokenRow]) -> bool:
    try:
        with torch.no_grad(), Kernels("cpu"):
            base.next_logits(rows, base.embed([1, 2]))
    except _UNTRIED:
        # A model that asks a mask for its content cannot be tried here; the padded layout suits every one.
        return layout is PADDED
    return True


# Weights -----------------------------------------------------------------------------------------


def _linears(model: Any) -> Iterator[tuple[str, Any]]:
    """The layers that bitsandbytes stores in few bits: all linear ones but the head."""
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | Conv1D) and module is not head:
            yield name, module


def _stored(module: Any, kind: str) -> int:
    """Bytes of one layer's weight.

    NF4 with double quantisation (Dettmers et al. 2023) keeps 4 bits a number, one byte for the scale of a
    block of 64, 4 bytes for that of 256 such scales, their mean and two tables of codes; int8 keeps a byte a
    number and 4 for each row.
    """
    numbers = int(module.weight.numel())
    if kind == "int8":
        rows = module.weight.shape[0 if isinstance(module, nn.Linear) else 1]
        return int(numbers + 4 * rows)
    blocks = math.ceil(numbers / _BLOCK)
    tables = 4 * (16 + 256 + 1)
    return math.ceil(numbers / 2) + blocks + 4 * math.ceil(blocks / _SECOND_BLOCK) + tables


def _bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors, each counted once."""
    return sum({id(t): t.numel() * t.element_size() for t in tensors}.values())


def _quantise(model: Any, *, keeps_input: bool) -> None:
    """Put stand-ins where quantised layers will be."""
    for name, module in list(_linears(model)):
        stand_in = _Quantised(module, keeps_input)
        owner, _, local = name.rpartition(".")
        setattr(model.get_submodule(owner), local, stand_in)


class _Quantised(nn.Linear):
    """A linear layer whose weight is unpacked each time it is needed, as bitsandbytes does.

    Its weight has the sizes of the true one and, as the true one, no gradient and no floating point. For
    backward bitsandbytes keeps the inputs of 8-bit layers, and nothing for 4-bit ones.
    """

    def __init__(self, like: Any, keeps_input: bool) -> None:
        outer, inner = like.weight.shape if isinstance(like, nn.Linear) else reversed(like.weight.shape)
        super().__init__(inner, outer, bias=False, device=META)
        self.weight = nn.Parameter(
            torch.empty(outer, inner, dtype=torch.int8, device=META), requires_grad=False
        )
        self.bias = like.bias
        self._keeps_input = keeps_input

    def forward(self, input: Tensor) -> Tensor:
        """input: [..., in] -> [..., out]."""
        found: Tensor = _Unpacked.apply(input, self.weight, self.bias, self._keeps_input)  # type: ignore[no-untyped-call]
        return found


class _Unpacked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, stored: Tensor, bias: Tensor | None, keeps_input: bool) -> Tensor:
        ctx.save_for_backward(stored, *([x] if keeps_input else []))
        return functional.linear(x, stored.to(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        stored = ctx.saved_tensors[0]
        return grads[0] @ stored.to(grads[0].dtype), None, None, None
