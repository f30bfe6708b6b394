"""Models by shape, for GPU benchmarks: configurations, and the linears they hold.

Nothing here has weights: ``gpu_decode.py`` lets vLLM make random ones in place, and
``gpu_roofline.py`` counts bytes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import models

# Architectures in vLLM of what transformers calls a model's type.
ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
}
# As models.SHAPES; the first two are in that table.
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    # Llama-3.1-8B
    "llama-8b": (
        "llama",
        {
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 128256,
            "max_position_embeddings": 131072,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
            "bos_token_id": 128000,
            "eos_token_id": 128001,
            "tie_word_embeddings": False,
        },
    ),
    # Qwen2.5-7B; q, k and v have a bias
    "qwen-7b": (
        "qwen2",
        {
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "vocab_size": 152064,
            "max_position_embeddings": 131072,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
            "bos_token_id": 151643,
            "eos_token_id": 151643,
            "tie_word_embeddings": False,
        },
    ),
    "llama-1b": models.SHAPES["llama-1b"],
    "qwen-0.5b": models.SHAPES["qwen-0.5b"],
    # Gemma-3-270M
    "gemma-270m": (
        "gemma3_text",
        {
            "hidden_size": 640,
            "intermediate_size": 2048,
            "num_hidden_layers": 18,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "head_dim": 256,
            "vocab_size": 262144,
            "max_position_embeddings": 32768,
            "rms_norm_eps": 1e-6,
            "query_pre_attn_scalar": 256,
            "sliding_window": 512,
            "hidden_activation": "gelu_pytorch_tanh",
            "bos_token_id": 2,
            "eos_token_id": 1,
            "tie_word_embeddings": True,
        },
    ),
    # For tests alone: small enough to build in seconds.
    "tiny": (
        "llama",
        {
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "vocab_size": 512,
            "max_position_embeddings": 1024,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": False,
        },
    ),
}
# Those that stand for a real model, and its name.
REAL = {
    "llama-8b": "Llama-3.1-8B",
    "qwen-7b": "Qwen2.5-7B",
    "llama-1b": "Llama-3.2-1B",
    "qwen-0.5b": "Qwen2.5-0.5B",
    "gemma-270m": "Gemma-3-270M",
}


class Linear(NamedTuple):
    """A kind of linear layer, fused as vLLM fuses it.

    Attributes:
        name: ``qkv``, ``o``, ``gate_up``, ``down`` or ``lm_head``.
        in_features: K.
        out_features: O.
        count: how many there are in the model.
    """

    name: str
    in_features: int
    out_features: int
    count: int

    @property
    def is_head(self) -> bool:
        """No pattern reaches an ``lm_head``."""
        return self.name == "lm_head"

    @property
    def dense_bytes(self) -> int:
        """Bytes of one such weight in a 16-bit type."""
        return 2 * self.in_features * self.out_features


def linears(model: str) -> list[Linear]:
    """Return the linears of one of ``SHAPES``; a tied head is read like any other."""
    shape = SHAPES[model][1]
    hidden, wide = shape["hidden_size"], shape["intermediate_size"]
    heads, pairs = shape["num_attention_heads"], shape["num_key_value_heads"]
    head = shape.get("head_dim", hidden // heads)
    layers = shape["num_hidden_layers"]
    return [
        Linear("qkv", hidden, (heads + 2 * pairs) * head, layers),
        Linear("o", heads * head, hidden, layers),
        Linear("gate_up", hidden, 2 * wide, layers),
        Linear("down", wide, hidden, layers),
        Linear("lm_head", hidden, shape["vocab_size"], 1),
    ]


def config_folder(model: str, root: Path) -> Path:
    """Write the ``config.json`` of one of ``SHAPES`` and nothing else.

    Args:
        model: its name.
        root: where the folder is made.
    """
    kind, shape = SHAPES[model]
    about = {"architectures": [ARCHITECTURES[kind]], "model_type": kind}
    folder = root / model
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(about | shape | {"dtype": "bfloat16"}, indent=2)
    (folder / "config.json").write_text(text + "\n", encoding="utf-8")
    return folder
