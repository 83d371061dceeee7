"""Every decoder that transformers registers for causal language modelling, made tiny and random.

It knows configurations, not softprompt: names of settings and what they become in a model of a few thousand
numbers, with windows of 40 positions where an architecture has any.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

__all__ = ["WINDOW", "WORDS", "families", "tiny_model"]

WORDS = 97
WITH_MARKS = 112
"""Words of a model that has marks for images and the like, which come last; no text has them in it."""
WINDOW = 40
"""Longer than what a quick look at a model reads, and less than half of the longest row checked."""
_LAYERS = 4
_MARK = ("token_id", "token_index")
_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}

_SMALL: dict[int, str] = {
    WORDS: "vocab_size vocab_size_per_layer_input",
    512: "max_position_embeddings n_positions n_ctx max_seq_len context_length max_sequence_length",
    48: "intermediate_size n_inner ffn_dim d_inner dim_ff intermediate_size_mlp block_ff_dim "
    "shared_expert_intermediate_size ffn_hidden_size shared_intermediate_size",
    WINDOW: "sliding_window window_size keep_window_size attention_window_size attention_chunk_size "
    "sliding_window_size local_window_size window index_topk indexer_budget",
    32: "hidden_size n_embd d_model dim embedding_size embedding_dim word_embed_proj_dim hidden_dim emb_dim "
    "embed_dim dim_model lru_width mamba_d_ssm",
    24: "qk_head_dim",
    16: "moe_intermediate_size moe_ffn_hidden_size expert_ffn_hidden_size kv_lora_rank q_lora_rank "
    "qk_nope_head_dim mamba_d_head mamba_head_dim mamba_headdim chunk_size mamba_chunk_size "
    "moe_shared_expert_intermediate_size",
    8: "head_dim kv_channels v_head_dim swa_head_dim global_head_dim qk_rope_head_dim rotary_dim state_size "
    "ssm_state_size mamba_d_state d_state linear_key_head_dim linear_value_head_dim linear_head_dim "
    "index_head_dim hidden_size_per_layer_input indexer_head_dim router_hidden_size laurel_rank",
    _LAYERS: "num_hidden_layers n_layer n_layers num_layers decoder_layers num_blocks "
    "num_attention_heads n_head n_heads num_heads attention_heads decoder_attention_heads num_experts "
    "n_routed_experts num_local_experts moe_num_experts mamba_n_heads mamba_num_heads n_mamba_heads "
    "linear_num_key_heads linear_num_value_heads linear_num_heads index_n_heads time_step_rank mamba_dt_rank",
    2: "num_key_value_heads kv_n_heads num_kv_heads n_head_kv num_experts_per_tok top_k moe_top_k moe_k "
    "num_experts_per_token top_k_experts",
    1: "n_group num_expert_group topk_group n_shared_experts num_shared_experts moe_num_shared_experts "
    "first_k_dense_replace mamba_n_groups n_groups mamba_ngroups num_dense_layers num_nextn_predict_layers",
}  # fmt: skip
_SETTINGS = {name: value for value, names in _SMALL.items() for name in names.split()}

_ALIKE_HEADS = {"num_key_value_heads": 4}
_TURN = {"rope_type": "default", "rope_theta": 10000.0}
_ROTARY = {"rope_parameters": {"full_attention": _TURN, "sliding_attention": _TURN}}
_GEMMA4 = {"num_kv_shared_layers": 2, "layer_types": ["sliding_attention", "full_attention"] * 2}
_GRANITE = {"logits_scaling": 8.0, "embedding_multiplier": 2.0, "residual_multiplier": 0.5}
_OWN: dict[str, dict[str, Any]] = {
    "axk1": _ALIKE_HEADS,
    "axk2": _ALIKE_HEADS,
    "bailing_hybrid": _ALIKE_HEADS,
    "bamba": {"attn_layer_indices": [1, 3]},
    "blt": {"encoder_hash_byte_group_vocab": 64},
    "cohere": {"logit_scale": 0.0625},
    "cohere2": {"logit_scale": 0.0625},
    "cohere_compass_text": _ROTARY,
    "deepseek_v2": _ALIKE_HEADS | {"num_experts_per_tok": 2},
    "deepseek_v3": _ALIKE_HEADS,
    "deepseek_v32": _ALIKE_HEADS,
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0}},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "dots3_note_text": _ALIKE_HEADS,
    "falcon_h1": {"mamba_d_ssm": 64},
    "gemma3n_text": _GEMMA4 | {"altup_num_inputs": 2, "activation_sparsity_pattern": [0.0] * _LAYERS},
    "glm4_moe_lite": _ALIKE_HEADS,
    "glm_moe_dsa": _ALIKE_HEADS,
    "gpt_bigcode": {"num_key_value_heads": 1},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "granite": _GRANITE,
    "granite_swa": _GRANITE,
    "granitemoe": _GRANITE,
    "granitemoe_swa": _GRANITE,
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"] * 2},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": _ALIKE_HEADS,
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "longcat_flash": _ALIKE_HEADS,
    "mamba2": {"head_dim": 16},
    "minicpm3": _ALIKE_HEADS,
    "ministral": {"head_dim": 8},
    "nemotron": {"num_key_value_heads": 2},
    "qwen4_exp_text": {
        "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": WINDOW,
        "indexer_compress_ratio": 4,
    },
    "xlstm": {"hidden_size": 64, "embedding_dim": 64, "head_dim": 16},
    "youtu": _ALIKE_HEADS,
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"] * 2, "hybrid_layer_ids": [1, 3]},
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip


def families() -> list[str]:
    """Every ``model_type`` whose causal language model reads from left to right and has no encoder."""
    return sorted(name for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if _decodes(name))


def _decodes(family: str) -> bool:
    try:
        config = CONFIG_MAPPING[family]()
    except Exception:  # has no model of its own without another beside it
        return False
    decodes = getattr(config, "is_decoder", True) or family.startswith("gpt_neox")
    return decodes and not getattr(config, "is_encoder_decoder", False)


def tiny_model(family: str, seed: int = 0) -> Any:
    """A freshly made random model; its weights are large enough that every mistake shows in the logits."""
    torch.manual_seed(seed)
    default = CONFIG_MAPPING[family]()
    config = _shrunk(default, WITH_MARKS if _marks(default) else WORDS)
    made = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() > 1 and parameter.std() > 0:
                parameter.mul_(0.2 / parameter.std())
            elif not parameter.isfinite().all() or not parameter.any():
                parameter.normal_(std=0.2)  # what begins at zero does nothing that could be checked
    return made.eval()


def _marks(default: Any) -> list[str]:
    """What a configuration calls words that stand for something else than text, in all its parts."""
    found = [n for n, v in vars(default).items() if n.endswith(_MARK) and isinstance(v, int)]
    inner = [value for value in vars(default).values() if isinstance(value, PretrainedConfig)]
    return [name for name in found if name not in _TOKENS] + [name for one in inner for name in _marks(one)]


def _shrunk(default: Any, words: int) -> Any:
    """The configuration of the same kind, small."""
    small: dict[str, Any] = {}
    for name, value in vars(default).items():
        if isinstance(value, PretrainedConfig):
            small[name] = _shrunk(value, words)
        elif name in _SETTINGS and value is not None and not isinstance(value, dict):
            small[name] = _SETTINGS[name] if not isinstance(value, list) else [_SETTINGS[name]] * _LAYERS
        elif isinstance(value, list) and len(value) > _LAYERS and isinstance(value[0], str):
            kinds = list(dict.fromkeys(value))
            small[name] = [kinds[i % len(kinds)] for i in range(_LAYERS)]
        if small.get(name) == WORDS:
            small[name] = words
    marks = [n for n, v in vars(default).items() if n.endswith(_MARK) and isinstance(v, int)]
    small |= {name: words - 1 - number for number, name in enumerate(marks)}
    small |= {name: value for name, value in _TOKENS.items() if hasattr(default, name)}
    return type(default)(**small | _OWN.get(default.model_type, {}))
