"""Tiny random models of many architectures, and a word-level tokenizer: seconds for hundreds of cases."""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from softprompt.base.model import Base
from softprompt.checkpoints.freeze import freeze

VOCABULARY = 97

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_LLAMA: dict[str, Any] = {
    **_COMMON,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
_GPT: dict[str, Any] = {**_COMMON, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 512}

CONFIGS: dict[str, Any] = {
    "llama": lambda: transformers.LlamaConfig(**_LLAMA),
    "bloom": lambda: transformers.BloomConfig(**_COMMON, hidden_size=32, n_layer=3, n_head=4),
    "gpt2": lambda: transformers.GPT2Config(**_GPT),
    "gpt-neox": lambda: transformers.GPTNeoXConfig(
        **{k: v for k, v in _LLAMA.items() if k != "num_key_value_heads"}
    ),
    "opt": lambda: transformers.OPTConfig(
        **_COMMON,
        hidden_size=32,
        ffn_dim=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=512,
        word_embed_proj_dim=24,
    ),
    "mistral": lambda: transformers.MistralConfig(**_LLAMA, sliding_window=6),
    "qwen3": lambda: transformers.Qwen3Config(**_LLAMA, head_dim=8),
    "gemma3": lambda: transformers.Gemma3TextConfig(
        **_LLAMA,
        head_dim=8,
        sliding_window=6,
        layer_types=["sliding_attention", "full_attention"] * 1 + ["sliding_attention"],
        query_pre_attn_scalar=8,
    ),
}

ARCHITECTURES = tuple(CONFIGS)

CONFIGS |= {
    "mpt": lambda: transformers.MptConfig(**_COMMON, d_model=32, n_layers=3, n_heads=4, max_seq_len=512),
    "falcon": lambda: transformers.FalconConfig(
        **_COMMON, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, alibi=True
    ),
}
OF_DISTANCES = ("bloom", "mpt", "falcon")
"""Those that are told no positions and know only how far apart keys lie (ALiBi)."""

_LINEAR: dict[str, Any] = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
_EXPERTS: dict[str, Any] = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}
CONFIGS |= {
    "qwen3-next": lambda: transformers.Qwen3NextConfig(
        **_LLAMA,
        **_LINEAR,
        **_EXPERTS,
        head_dim=8,
        layer_types=["linear_attention", "full_attention", "linear_attention"],
    ),
    "lfm2": lambda: transformers.Lfm2Config(**_LLAMA, layer_types=["conv", "full_attention", "conv"]),
    "mamba2": lambda: transformers.Mamba2Config(
        **_COMMON,
        hidden_size=32,
        num_hidden_layers=3,
        num_heads=4,
        head_dim=16,
        state_size=8,
        n_groups=1,
        chunk_size=16,
    ),
    "jamba": lambda: transformers.JambaConfig(
        **_LLAMA,
        attn_layer_period=2,
        attn_layer_offset=1,
        mamba_d_state=8,
        mamba_dt_rank=4,
        num_experts=2,
        use_mamba_kernels=False,
    ),
}

CONFIGS |= {
    "deepseek-v3": lambda: transformers.DeepseekV3Config(
        **_LLAMA | {"num_key_value_heads": 4},
        moe_intermediate_size=16,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
        kv_lora_rank=16,
        q_lora_rank=16,
        qk_nope_head_dim=8,
        qk_rope_head_dim=8,
        v_head_dim=8,
    ),
    "laguna": lambda: transformers.LagunaConfig(**_LLAMA, **_EXPERTS, head_dim=8),
    "gemma4": lambda: transformers.Gemma4TextConfig(
        **_LLAMA | {"num_hidden_layers": 4},
        head_dim=8,
        global_head_dim=16,
        sliding_window=16,
        layer_types=["sliding_attention", "full_attention"] * 2,
        num_kv_shared_layers=2,
        vocab_size_per_layer_input=VOCABULARY,
        hidden_size_per_layer_input=8,
    ),
}

WITH_STATES = ("qwen3-next", "lfm2", "mamba2")
"""Layers that recur, layers that convolve, no layer that attends."""


@functools.cache
def tokenizer() -> Any:
    """One token a letter or symbol; 0-2 are pad, start and end."""
    letters = [chr(c) for c in range(32, 32 + VOCABULARY - 4)]
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3} | {c: i + 4 for i, c in enumerate(letters)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    backend.decoder = decoders.Fuse()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def model(architecture: str, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
    """A freshly made random model; large enough weights that every mistake shows in the logits."""
    torch.manual_seed(seed)
    config = CONFIGS[architecture]()
    made = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() > 1:
                parameter.mul_(0.2 / parameter.std())
    return made.to(dtype).eval()


@functools.cache
def base(architecture: str = "llama", seed: int = 0, dtype: torch.dtype = torch.float32) -> Base:
    """A frozen base around a tiny model, made once a test run."""
    return freeze(model(architecture, seed=seed, dtype=dtype), tokenizer(), f"tiny-{architecture}-{seed}")


@functools.cache
def byte_tokenizer(style: str = "byte-level") -> Any:
    """A token for every byte and for some pairs of letters, spelt as GPT-2 does or as Llama does."""
    marks = ["<pad>", "<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>"]
    if style == "byte-level":
        letters = sorted(pre_tokenizers.ByteLevel.alphabet())
        pairs = [("t", "h"), ("e", "r"), ('"', ":"), ("Ġ", '"')]
    else:
        letters = [f"<0x{byte:02X}>" for byte in range(256)] + ["▁", *map(chr, range(33, 127))]
        pairs = [("t", "h"), ("e", "r"), ('"', ":"), ("▁", '"')]
    words = [*marks, *letters, *("".join(pair) for pair in pairs)]
    vocabulary = {word: i for i, word in enumerate(words)}
    model = models.BPE(vocabulary, pairs, unk_token="<unk>", byte_fallback=style != "byte-level")
    backend = Tokenizer(model)
    if style == "byte-level":
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
        backend.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    )


@functools.cache
def byte_base(style: str = "byte-level", chat_template: str | None = None) -> Base:
    """A frozen tiny base that can write any text, with more words than its tokenizer names."""
    tokenizer = copy.deepcopy(byte_tokenizer(style))
    tokenizer.chat_template = chat_template
    config = transformers.LlamaConfig(
        **_LLAMA | {"vocab_size": len(tokenizer) + 7, "max_position_embeddings": 2048}
    )
    torch.manual_seed(0)
    made = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() > 1:
                parameter.mul_(0.2 / parameter.std())
    return freeze(made.eval(), tokenizer, f"tiny-{style}")
