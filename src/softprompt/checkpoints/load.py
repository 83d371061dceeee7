"""A base by any name into a frozen model and its tokenizer: knows how to load it, not what it is used for."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError

from softprompt.checkpoints import catalog, hub
from softprompt.checkpoints.convert import converted, quiet
from softprompt.checkpoints.placement import choose_device, choose_dtype
from softprompt.checkpoints.quantise import STORED, as_stored, compute_in, keep_differentiable, quantised
from softprompt.checkpoints.remembered import Remembered
from softprompt.checkpoints.spread import devices_in_order, layer_places, let_pool_be, quiet_accelerate
from softprompt.errors import BaseModelError, ConfigError, ResourceError
from softprompt.packages import require
from softprompt.team import started_together

__all__ = ["Loaded", "open_model"]

_WHAT_A_SOURCE_IS = "a bundled name ({}), a folder with config.json, a .gguf file or a hub id"
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "*.tiktoken",
)
_PICKLED_WEIGHTS = ("*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclass(frozen=True)
class Loaded:
    """A frozen causal language model with its tokenizer.

    ``source`` is what the user wrote; ``revision`` the commit that was loaded, None for what is no hub id;
    ``remembered`` what was found out about it before, None where that depends on more than its files.
    """

    model: Any
    tokenizer: Any
    source: str
    revision: str | None
    device: torch.device
    dtype: torch.dtype
    remembered: Remembered | None = None


@dataclass(frozen=True)
class _Place:
    """The local folder of what the user called ``name``; if ``remote``, that of a hub id, named by commit."""

    name: str
    folder: Path
    remote: bool = False
    offline: bool = False


def open_model(
    source: str,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    quantisation: str = "none",
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    memory: Mapping[str, int] | None = None,
    notify: Callable[[str], None] = lambda message: None,
) -> Loaded:
    """Load the causal language model ``source``, frozen and in evaluation mode.

    Args:
        source: a bundled name, a folder with config.json, a ``.gguf`` file or a hub id, tried in this order.
        revision: branch, tag or commit of a hub id.
        dtype: auto, float32 (fp32), bfloat16 (bf16) or float16 (fp16); "auto" is bfloat16 where the device
            computes it in hardware, else float32.
        device: auto (CUDA, then MPS, then CPU), cpu, cuda, cuda:N or mps. With "auto" a base that the first
            card does not hold is spread over all cards, memory and disk.
        quantisation: none, nf4 or int8: how the linear layers' weights are stored.
        attn_implementation: passed to transformers; its own choice if None.
        trust_remote_code: run the Python code that a hub repository brings. Only for repositories you trust.
        memory: bytes that weights may take of each device, as ``{"cuda:0": 20 * 10**9, "cpu": 60 * 10**9}``:
            these are filled in turn, layer by layer, and what they do not hold stays on disk. None for what
            ``device`` says.
        notify: called with one short sentence before each slow step.

    Raises:
        BaseModelError: no such model, or one that is damaged, not causal, or not supported.
        ResourceError: no network, no such device, or not enough disk or memory.
    """
    where = choose_device(device)
    number_format = choose_dtype(dtype, where)
    with quiet():
        place = _find(source, revision, trust_remote_code, notify)
        config = _config(place, trust_remote_code)
        _refuse_unless_causal(place, config, trust_remote_code)
        tokenizer = _tokenizer(place, trust_remote_code)
    if place.remote:
        with quiet(bars=True):
            hub.bring(source, place.folder.name, hub.WEIGHTS, offline=place.offline)
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if attn_implementation is not None:
        options["attn_implementation"] = attn_implementation
    options |= quantised(quantisation, number_format, where)
    few_bits = quantisation != "none"
    if few_bits and memory is not None:
        raise ConfigError("A quantised base lies on one device; leave memory out, or quantisation.")
    may_spread = device == "auto" and where.type == "cuda" and not few_bits and not started_together()
    if memory is not None or may_spread:
        places = _places(config, number_format, memory or devices_in_order(), trust_remote_code)
        where = torch.device(next(iter(memory))) if memory else where
        if len(set(places.values())) > 1:
            notify(f"Spreading {place.name} over {', '.join(dict.fromkeys(places.values()))}")
            options["device_map"] = places
    remembered = None
    if not (few_bits or trust_remote_code or attn_implementation or "device_map" in options):
        remembered = Remembered(place.folder, str(number_format), str(where))
    with quiet():
        model = _model(place, config, STORED if few_bits else number_format, options)
    if few_bits:
        compute_in(model, number_format)
        as_stored(model, place.folder)
    keep_differentiable(model)
    if "device_map" in options and not few_bits:
        let_pool_be(model)
    else:
        model = _move(place, model, where)
    revision = place.folder.name if place.remote else None
    return Loaded(model, tokenizer, source, revision, where, number_format, remembered)


def _find(source: str, revision: str | None, trusted: bool, notify: Callable[[str], None]) -> _Place:
    """Decide what ``source`` is, fetching and converting what has to be."""
    if revision is not None and (source in catalog.names() or Path(source).expanduser().exists()):
        raise BaseModelError(f"{source} has no revisions, only hub models have: leave revision out.")
    if source in catalog.names():
        return _Place(source, catalog.bundled(source, notify=notify))
    path = Path(source).expanduser()
    if source and path.is_dir():
        _check_folder(path)
        return _Place(source, path)
    if path.suffix.lower() == ".gguf":
        if not path.is_file():
            raise BaseModelError(f"There is no file {source}: check the path.")
        return _Place(source, converted(path, notify=notify))
    if not hub.is_hub_id(source):
        sources = _WHAT_A_SOURCE_IS.format(", ".join(catalog.names()))
        kind = "is a file, not a base" if path.is_file() else "was not found"
        raise BaseModelError(f"{source!r} {kind}{_hint(source)}: name {sources}.")
    offline = hub.must_stay_local(source, revision, hint=_hint(source))
    notify(f"Opening {source} from {'the local cache' if offline else 'the hub'}")
    patterns = (*hub.DESCRIPTION, *hub.CODE) if trusted else hub.DESCRIPTION
    folder = hub.bring(source, revision, patterns, offline=offline)
    return _Place(source, folder, remote=True, offline=offline)


def _hint(source: str) -> str:
    near = difflib.get_close_matches(source.lower(), catalog.names(), n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def _check_folder(folder: Path) -> None:
    if (folder / "config.json").is_file():
        return
    if (folder / "adapter_config.json").is_file():
        raise BaseModelError(
            f"The folder {folder} holds an adapter, not a base: name the base it was learnt on."
        )
    raise BaseModelError(
        f"The folder {folder} has no config.json, so it is no model: name the folder that has it."
    )


def _config(place: _Place, trusted: bool) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(place.folder, trust_remote_code=trusted)
    except Exception as error:
        said = _first_line(error)
        if "trust_remote_code" in str(error):
            _raise_untrusted(place, error)
        if "does not recognize this architecture" in said or "Unrecognized model" in said:
            raise BaseModelError(
                f"{place.name} is of an unknown architecture ({said.split('. ')[0]}): update transformers, "
                "or choose another model."
            ) from error
        raise BaseModelError(
            f"The config.json of {place.name} cannot be read ({said}): get it again."
        ) from error


def _refuse_unless_causal(place: _Place, config: Any, trusted: bool) -> None:
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    has_own_code = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if getattr(config, "is_encoder_decoder", False):
        kind = "an encoder-decoder model"
    elif type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        # Encoders such as BERT are in the mapping too, as decoders that nobody switched on; GPT-NeoX declares
        # the same switch and never reads it.
        if getattr(config, "is_decoder", True) or config.model_type.startswith("gpt_neox"):
            return
        kind = "an encoder that reads in both directions"
    elif has_own_code:
        if trusted:
            return
        _raise_untrusted(place)
    else:
        kind = "not a language model that writes text from left to right"
    raise BaseModelError(
        f"{place.name} ({config.model_type}) is {kind}: choose a causal language model, such as smollm2-135m."
    )


def _tokenizer(place: _Place, trusted: bool) -> Any:
    from transformers import AutoTokenizer

    missing = BaseModelError(
        f"{place.name} has no tokenizer: put the model's tokenizer.json beside config.json."
    )
    if not _holds(place, _TOKENIZER_FILES):
        raise missing
    try:
        tokenizer = AutoTokenizer.from_pretrained(place.folder, trust_remote_code=trusted)
    except Exception as error:
        if "trust_remote_code" in str(error):
            _raise_untrusted(place, error)
        said = _first_line(error)
        raise BaseModelError(
            f"The tokenizer of {place.name} is absent or cannot be read ({said}): get its files again."
        ) from error
    # transformers makes an empty tokenizer for some architectures rather than say that there is none.
    if len(tokenizer) == 0:
        raise missing
    return tokenizer


def _model(place: _Place, config: Any, dtype: torch.dtype, options: dict[str, Any]) -> Any:
    from transformers import AutoModelForCausalLM

    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            place.folder,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
    except (MemoryError, torch.OutOfMemoryError) as error:
        _raise_no_memory(place, error)
    except ImportError as error:
        raise ResourceError(f"{place.name} needs a package that is absent: {_first_line(error)}.") from error
    except Exception as error:
        raise BaseModelError(_why_no_weights(place, error)) from error
    # transformers fills missing tensors with random numbers and only warns.
    if missing := sorted(report["missing_keys"]):
        raise BaseModelError(
            f"The weights of {place.name} lack {len(missing)} of the model's tensors, such as {missing[0]}: "
            "they are incomplete or of another model, so get them again."
        )
    return model.eval().requires_grad_(False)


def _places(config: Any, dtype: torch.dtype, memory: Mapping[str, int], trusted: bool) -> dict[str, str]:
    """Where each part of a model is to lie; one that a single device holds needs no accelerate."""
    from transformers import AutoModelForCausalLM

    with quiet(), torch.device("meta"):
        drawn = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=trusted)
    places = layer_places(drawn, memory)
    if len(set(places.values())) > 1:
        require("a base over several devices")
        quiet_accelerate()
    return places


def _why_no_weights(place: _Place, error: Exception) -> str:
    said = _first_line(error)
    if "trust_remote_code" in str(error):
        return f"{place.name} needs code of its own: set trust_remote_code if you trust who wrote it."
    if isinstance(error, SafetensorError):
        return f"The weights of {place.name} are damaged ({said}): get them again."
    if isinstance(error, OSError):
        return _why_incomplete(place, said)
    if "ignore_mismatched_sizes" in str(error):
        return f"The weights of {place.name} do not have the sizes that its config.json says: get both again."
    return f"{place.name} cannot be loaded ({said}): check the model and the settings under [base]."


def _why_incomplete(place: _Place, said: str) -> str:
    if place.offline:
        return f"The weights of {place.name} are not all in the hub's local cache: connect and try again."
    if _holds(place, _PICKLED_WEIGHTS) or (place.remote and not _holds(place, hub.WEIGHTS)):
        return (
            f"{place.name} has no safetensors weights, and pickled ones, which can run code when opened, are "
            "never read: save it as safetensors."
        )
    return f"{place.name} has no complete model.safetensors ({said}): get its safetensors weights."


def _move(place: _Place, model: Any, device: torch.device) -> Any:
    try:
        return model if getattr(model, "is_quantized", False) else model.to(device)
    except torch.OutOfMemoryError as error:
        _raise_no_memory(place, error)


def _raise_no_memory(place: _Place, error: BaseException) -> NoReturn:
    raise ResourceError(
        f"There is not enough memory for {place.name}: choose dtype bfloat16, another device or a smaller "
        "model."
    ) from error


def _raise_untrusted(place: _Place, error: Exception | None = None) -> NoReturn:
    raise BaseModelError(
        f"{place.name} brings Python code of its own, which is not run unless you say so: set "
        "trust_remote_code if you trust who wrote it, or choose another model."
    ) from error


def _holds(place: _Place, patterns: tuple[str, ...]) -> bool:
    return any(any(place.folder.glob(pattern)) for pattern in patterns)


def _first_line(error: BaseException) -> str:
    """What ``error`` says, short enough to stand in a sentence."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__).rstrip(".: ")[:200]
