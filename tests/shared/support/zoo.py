"""Tiny random decoders of many families, as transformers saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from support import tiny
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    FalconConfig,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    OPTConfig,
    PhiConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

_DECODER: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "initializer_range": 0.1,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_FAMILIES: dict[str, tuple[type[PretrainedConfig], dict[str, Any]]] = {
    "llama": (LlamaConfig, {}),
    "mistral": (MistralConfig, {"sliding_window": None}),
    "qwen2": (Qwen2Config, {}),
    "qwen3": (Qwen3Config, {"tie_word_embeddings": True}),
    "gemma3": (
        Gemma3TextConfig,
        {
            "layer_types": [
                "sliding_attention",
                "full_attention",
                "sliding_attention",
            ],
            "sliding_window": 8,
            "query_pre_attn_scalar": 16,
        },
    ),
    "phi": (PhiConfig, {"partial_rotary_factor": 0.5}),
    "opt": (
        OPTConfig,
        {"ffn_dim": 96, "word_embed_proj_dim": 64, "init_std": 0.1, "dropout": 0.0},
    ),
    "gpt2": (
        GPT2Config,
        {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_inner": 96, "n_positions": 256},
    ),
    "bloom": (BloomConfig, {"n_layer": 3, "n_head": 4}),
    "falcon": (FalconConfig, {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "gpt_neox": (GPTNeoXConfig, {}),
    "mixtral": (MixtralConfig, {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3_moe": (
        Qwen3MoeConfig,
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    ),
}
FAMILIES = tuple(_FAMILIES)


def build(
    family: str,
    folder: Path,
    *,
    shard: str = "5GB",
    dtype: str = "bfloat16",
    **changes: Any,
) -> Path:
    """Write a tiny model of a family, with a tokenizer, to ``folder``."""
    tokens = tiny.tokenizer()
    config_class, special = _FAMILIES[family]
    shape = {} if family == "gpt2" else dict(_DECODER)
    if family == "falcon":
        # A property there.
        del shape["head_dim"]
    config = config_class(vocab_size=len(tokens), **{**shape, **special, **changes})
    torch.manual_seed(20261123)
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0.0, 0.1)
            elif parameter.ndim >= 2:
                # A few loud input channels, as real models have them: without any,
                # activation-aware scorers choose as magnitude does.
                scale = torch.rand(parameter.shape[-1]).mul(4).exp() / 8
                parameter.mul_(scale.to(parameter.dtype))
    model.generation_config.eos_token_id = None
    model.save_pretrained(folder, max_shard_size=shard)
    tokens.save_pretrained(folder)
    return folder


def windows(count: int = 6, length: int = 32, seed: int = 0) -> list[list[int]]:
    """Return rows of random token ids."""
    generator = torch.Generator().manual_seed(seed)
    rows: list[list[int]] = torch.randint(
        3, 200, (count, length), generator=generator
    ).tolist()
    return rows
