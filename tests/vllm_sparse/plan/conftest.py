from __future__ import annotations

import math

import pytest

from nmsparse.config import SparsityConfig
from vllm_sparse.plan.estimate import Question
from vllm_sparse.plan.machines import Machine
from vllm_sparse.plan.stored import Stored

# Llama-3.1-8B.
LLAMA = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}


def llama_tensors(config, dtype="BF16"):
    """Names, types and shapes as the files of a Llama model have them."""
    hidden, wide = config["hidden_size"], config["intermediate_size"]
    heads = config["num_attention_heads"] * config["head_dim"]
    pairs = config["num_key_value_heads"] * config["head_dim"]
    block = {
        "self_attn.q_proj": (heads, hidden),
        "self_attn.k_proj": (pairs, hidden),
        "self_attn.v_proj": (pairs, hidden),
        "self_attn.o_proj": (hidden, heads),
        "mlp.gate_proj": (wide, hidden),
        "mlp.up_proj": (wide, hidden),
        "mlp.down_proj": (hidden, wide),
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
    }
    found = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    for i in range(config["num_hidden_layers"]):
        for name, shape in block.items():
            found[f"model.layers.{i}.{name}.weight"] = shape
    found["model.norm.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        found["lm_head.weight"] = (config["vocab_size"], hidden)
    return {name: (dtype, shape) for name, shape in found.items()}


@pytest.fixture(scope="session")
def llama():
    return Stored("llama-8b", LLAMA, llama_tensors(LLAMA), "a test")


@pytest.fixture(scope="session")
def small():
    """Return a function that makes a small Llama with changed configuration."""

    def make(**changes):
        config = LLAMA | {"hidden_size": 64, "intermediate_size": 128}
        config |= {"num_hidden_layers": 2, "num_attention_heads": 4}
        config |= {"num_key_value_heads": 2, "head_dim": 16, "vocab_size": 256}
        config |= changes
        return Stored("small", config, llama_tensors(config), "a test")

    return make


@pytest.fixture(scope="session")
def ask():
    """Return a function that makes a question: a round machine, one pattern."""

    def make(pattern="8:16", *, device="gpu", machine=None, config=None, **changes):
        machine = machine or Machine("round", device, 100e9, 1000e9, 100e12, "a test")
        if config is None:
            config = SparsityConfig.uniform(pattern) if pattern else SparsityConfig()
        return Question(config, "a test", machine, **changes)

    return make


def bytes_of(stored, word=2):
    return word * sum(math.prod(shape) for _, shape in stored.tensors.values())
