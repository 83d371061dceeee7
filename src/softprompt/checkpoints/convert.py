"""GGUF files into folders that transformers reads: knows the formats, not which model anyone wants.

transformers reads GGUF in about twenty seconds for 135M parameters, so the result (configuration, fp32
safetensors, tokenizer) is kept in the cache and built only once.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock

from softprompt.errors import BaseModelError, ResourceError
from softprompt.wheels import Notify, cache_root, writing

__all__ = ["FORMAT", "build_once", "convert", "converted", "quiet"]

FORMAT = 1
"""Goes up when ``convert`` writes something else, so that old folders are not taken for new ones."""

# What llama.cpp splits into single digits before the GPT-2 pattern; transformers reads only the latter.
_SINGLE_DIGITS = frozenset({"codeshell", "refact", "smollm", "starcoder"})


def converted(gguf: Path, *, notify: Notify = lambda message: None) -> Path:
    """The Hugging Face folder made from ``gguf``, converted now if it was not before.

    The folder lies in the cache under the file's path, size and time of change, so an edited file is
    converted anew. Safe when several processes call it at once.

    Args:
        gguf: a ``.gguf`` file of a causal language model.
        notify: called with one short sentence before a conversion.

    Raises:
        BaseModelError: the file is damaged or its architecture is not supported.
        ResourceError: full disk, folder that may not be written, or not enough memory.
    """
    _check_magic(gguf)
    about = gguf.stat()
    key = f"{FORMAT}:{gguf.resolve()}:{about.st_size}:{about.st_mtime_ns}"
    name = f"{gguf.stem}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"

    def fill(folder: Path) -> None:
        notify(f"Converting {gguf.name} (once; the result is kept in {target.parent})")
        convert(gguf, folder)

    target = cache_root() / "converted" / name
    return build_once(target, fill)


def build_once(target: Path, fill: Callable[[Path], None]) -> Path:
    """The folder ``target``, filled by ``fill`` if it does not exist yet.

    ``fill`` writes into a hidden sibling that is renamed when complete, so ``target`` is whole or absent;
    what a killed process left there is removed by the next one. A lock keeps a second process waiting.

    Raises:
        ResourceError: full disk or a folder that may not be written.
    """
    if target.is_dir():
        return target
    with writing(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(f".{target.name}.lock")):
            if not target.is_dir():
                _fill_and_rename(target, fill)
    return target


def _fill_and_rename(target: Path, fill: Callable[[Path], None]) -> None:
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        fill(part)
        for file in part.iterdir():
            # A rename may reach the disk before the bytes do; after a power cut the folder would look whole.
            with file.open("rb+") as stream:
                os.fsync(stream.fileno())
        part.rename(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def convert(gguf: Path, folder: Path) -> None:
    """Write ``gguf`` into the existing ``folder`` as configuration, fp32 safetensors and tokenizer.

    Raises:
        BaseModelError: the file is damaged, incomplete or of an unsupported architecture.
        ResourceError: full disk or not enough memory.
    """
    _check_magic(gguf)
    with quiet(), _quiet_gguf():
        try:
            model, tokenizer = _read(gguf)
        except MemoryError as error:
            raise ResourceError(
                f"There is not enough memory to convert {gguf}: use a smaller model."
            ) from error
        except BaseModelError:
            raise
        except Exception as error:  # the parsers raise anything at all on damaged bytes
            raise BaseModelError(_why_unreadable(gguf, error)) from error
        _save(model, tokenizer, folder)


def _save(model: Any, tokenizer: Any, folder: Path) -> None:
    try:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    except OSError:
        raise
    except Exception as error:
        # The Rust writers of weights and tokenizer report the operating system's errors as their own.
        if "os error" not in str(error):
            raise
        raise ResourceError(
            f"The converted model cannot be written to {folder.parent} ({error}): free some space, or set "
            "SOFTPROMPT_CACHE to a folder on another disk."
        ) from error


def _read(gguf: Path) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, file = str(gguf.parent), gguf.name
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    _split_digits(tokenizer, gguf)
    model, report = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=file, dtype=torch.float32, output_loading_info=True
    )
    if missing := sorted(report["missing_keys"]):
        raise BaseModelError(
            f"{gguf} lacks {len(missing)} of the model's tensors, such as {missing[0]}: it is incomplete or "
            "of a kind that cannot be read, so use another file."
        )
    # A model read from GGUF counts as quantised and cannot be saved; its tensors in a plain model can.
    plain = model.config.to_dict()
    for key in ("quantization_config", "_model_name_or_path"):
        plain.pop(key, None)
    with torch.device("meta"):
        fresh = AutoModelForCausalLM.from_config(type(model.config).from_dict(plain), dtype=torch.float32)
    fresh.load_state_dict(model.state_dict(), assign=True)
    fresh.tie_weights()
    fresh.generation_config = model.generation_config
    return fresh, tokenizer


def _split_digits(tokenizer: Any, gguf: Path) -> None:
    """Give ``tokenizer`` the split into single digits that the file asks for and transformers leaves out."""
    if _text_field(gguf, "tokenizer.ggml.pre") not in _SINGLE_DIGITS:
        return
    from tokenizers import pre_tokenizers

    backend = tokenizer.backend_tokenizer
    digits = pre_tokenizers.Digits(individual_digits=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, backend.pre_tokenizer])


def _text_field(gguf: Path, key: str) -> str | None:
    """The text that the file keeps under ``key``; the full reader would take seconds for it."""
    # Layout of an entry: length of key (u64), key, type (u32, 8 = text), length of text (u64), text.
    wanted = struct.pack("<Q", len(key)) + key.encode() + struct.pack("<I", 8)
    with gguf.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at = data.find(wanted)
        if at < 0:
            return None
        at += len(wanted)
        (length,) = struct.unpack_from("<Q", data, at)
        return data[at + 8 : at + 8 + min(length, 100)].decode(errors="replace")


def _check_magic(gguf: Path) -> None:
    try:
        with gguf.open("rb") as stream:
            magic = stream.read(4)
    except OSError as error:
        raise BaseModelError(
            f"{gguf} cannot be read ({error.strerror}): check the path and who may read it."
        ) from error
    if magic != b"GGUF":
        raise BaseModelError(f"{gguf} is not a GGUF file or is damaged at its start: download it again.")


def _why_unreadable(gguf: Path, error: Exception) -> str:
    said = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
    if "is not supported" in said or "Unknown gguf model_type" in said:
        return f"{gguf} is of a kind that transformers cannot read ({said}): use its folder with safetensors."
    if "Unrecognized configuration class" in said:
        return f"{gguf} is not a causal language model: choose one that generates text, such as smollm2-135m."
    return f"{gguf} is damaged or incomplete ({said}): download it again."


@contextmanager
def quiet(*, bars: bool = False) -> Iterator[None]:
    """Keep the messages of transformers and its hub client off stderr, and their bars too unless ``bars``."""
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    level, hub_level = logging.get_verbosity(), hub_logging.get_verbosity()
    shown = logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    hub_logging.set_verbosity(logging.CRITICAL)
    if not bars:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        hub_logging.set_verbosity(hub_level)
        if shown:
            logging.enable_progress_bar()


@contextmanager
def _quiet_gguf() -> Iterator[None]:
    """Hide the one bar that does not listen to transformers' switch."""
    from transformers import modeling_gguf_pytorch_utils as reader

    shown = getattr(reader, "tqdm", None)
    if shown is None:
        yield
        return
    reader.tqdm = partial(shown, disable=True)
    try:
        yield
    finally:
        reader.tqdm = shown
