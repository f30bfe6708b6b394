"""The KV cache: from the shapes of keys and values, and windows."""

from __future__ import annotations

import pytest

from vllm_sparse.plan.cache import Cache, read_cache, states_beside
from vllm_sparse.plan.modules import read_modules
from vllm_sparse.plan.stored import Stored


def cache(stored, *, size=2, ranks=1):
    modules = read_modules(stored, 2)
    return read_cache(modules, stored.text, size=size, ranks=ranks)


def made(tensors, **config):
    shapes = {f"{name}.weight": ("BF16", shape) for name, shape in tensors.items()}
    return Stored("test", config, shapes, "a test")


def test_llama_by_hand(llama):
    found = cache(llama)
    # 32 layers, keys and values of 8 heads of 128, 2 bytes.
    assert found.token_bytes == 32 * 2 * 8 * 128 * 2 == 131072
    assert found.sequence_bytes(1000) == 131072 * 1000
    assert cache(llama, ranks=4).token_bytes == 131072 / 4
    # Eight heads on 16 ranks: every rank has one.
    assert cache(llama, ranks=16).token_bytes == 131072 / 8
    assert cache(llama, size=1).token_bytes == 131072 / 2


@pytest.mark.parametrize(
    ("tensors", "elements"),
    [
        ({"self_attn.qkv_proj": (96, 32), "self_attn.o_proj": (32, 64)}, 32),
        ({"attn.c_attn": (96, 32), "attn.c_proj": (32, 32)}, 64),
        ({"self_attn.kv_a_proj_with_mqa": (576, 32), "self_attn.o_proj": (9, 9)}, 576),
        ({"linear_attn.in_proj": (96, 32)}, 0),
        ({"vision_tower.k_proj": (8, 8), "vision_tower.v_proj": (8, 8)}, 0),
    ],
)
def test_other_architectures(tensors, elements):
    named = {f"layers.0.{name}": shape for name, shape in tensors.items()}
    found = cache(made(named))
    assert found.token_bytes == 2 * elements


def test_windows_bound_what_is_read():
    found = Cache((10, 10, 4), (None, 8, 8), 2)
    assert found.sequence_bytes(5) == 2 * 5 * 24
    assert found.sequence_bytes(20) == 2 * (10 * 20 + 14 * 8)
    assert found.token_bytes == 48


@pytest.mark.parametrize(
    ("config", "windows"),
    [
        ({}, (None, None, None)),
        ({"sliding_window": 4}, (4, 4, 4)),
        ({"sliding_window": 4, "use_sliding_window": False}, (None, None, None)),
        (
            {
                "sliding_window": 4,
                "layer_types": [
                    "sliding_attention",
                    "full_attention",
                    "sliding_attention",
                ],
            },
            (4, None, 4),
        ),
        ({"sliding_window": 4, "model_type": "gemma2"}, (4, None, 4)),
        ({"sliding_window": 4, "sliding_window_pattern": 3}, (4, 4, None)),
    ],
)
def test_places_of_windows(config, windows):
    tensors = {
        f"layers.{i}.self_attn.{part}_proj": (8, 8) for i in range(3) for part in "kv"
    }
    assert cache(made(tensors, **config)).windows == windows


def test_states_that_are_no_cache():
    assert states_beside({"layer_types": ["linear_attention", "full_attention"]})
    assert states_beside({"mamba_d_state": 16})
    assert not states_beside({"layer_types": ["full_attention"]})
