"""Checkpoints of 4 bits: bytes as stored, and a KV cache that headers do not tell."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nmsparse.config import ConfigError
from vllm_sparse.plan.cache import read_cache
from vllm_sparse.plan.estimate import make_plan
from vllm_sparse.plan.machines import Machine
from vllm_sparse.plan.modules import Role, read_modules
from vllm_sparse.plan.show import show
from vllm_sparse.plan.stored import Stored

BYTES = {"U8": 1, "I32": 4, "I64": 8, "F16": 2, "BF16": 2, "F32": 4, "F8_E4M3": 1}
GROUP = 32


def awq(o, k):
    return {
        "qweight": ("I32", (k, o // 8)),
        "qzeros": ("I32", (k // GROUP, o // 8)),
        "scales": ("F16", (k // GROUP, o)),
    }


def gptq(o, k):
    return {
        "qweight": ("I32", (k // 8, o)),
        "qzeros": ("I32", (k // GROUP, o // 8)),
        "scales": ("F16", (k // GROUP, o)),
        "g_idx": ("I32", (k,)),
    }


def bitsandbytes(o, k):
    return {
        "weight": ("U8", (o * k // 2, 1)),
        "weight.absmax": ("U8", (o * k // 64,)),
        "weight.quant_map": ("F32", (16,)),
        "weight.nested_absmax": ("F32", (o * k // 64 // 32,)),
        "weight.nested_quant_map": ("F32", (256,)),
        "weight.quant_state.bitsandbytes__nf4": ("U8", (86,)),
    }


def packed(o, k):
    return {
        "weight_packed": ("I32", (o, k // 8)),
        "weight_scale": ("BF16", (o, k // GROUP)),
        "weight_shape": ("I64", (2,)),
    }


def nvfp4(o, k):
    return {
        "weight": ("U8", (o, k // 2)),
        "weight_scale": ("F8_E4M3", (o, k // 16)),
        "weight_scale_2": ("F32", ()),
        "input_scale": ("F32", ()),
    }


FORMATS = [awq, gptq, bitsandbytes, packed, nvfp4]


def nbytes(dtype, shape):
    count = BYTES[dtype]
    for size in shape:
        count *= size
    return count


def quantized(stored, form):
    """Return a model with the linear layers of its decoder in another form."""
    tensors = {}
    for name, (dtype, shape) in stored.tensors.items():
        if "_proj." in name:
            module = name.removesuffix(".weight")
            tensors |= {f"{module}.{leaf}": x for leaf, x in form(*shape).items()}
        else:
            tensors[name] = dtype, shape
    return replace(stored, tensors=tensors)


@pytest.fixture(params=FORMATS, ids=lambda form: form.__name__)
def pair(request, small):
    """A small Llama, and the same one quantized."""
    stored = small()
    return stored, quantized(stored, request.param)


@pytest.mark.parametrize("pattern", ["8:16", None])
@pytest.mark.parametrize("device", ["gpu", "cpu"])
def test_cache_and_bytes_are_right(pair, ask, pattern, device):
    stored, other = pair
    # 2 layers, keys and values of 2 heads of 16, 2 bytes.
    assert make_plan(stored, ask(device=device)).memory.kv_token == 256
    plan = make_plan(other, ask(pattern, device=device))
    assert plan.memory.kv_token == 256
    assert plan.memory.weights == sum(nbytes(*x) for x in other.tensors.values())
    assert plan.memory.total == plan.memory.weights
    assert plan.memory.tokens > 0
    kinds = {part.kind: part for part in plan.steps[0].parts}
    assert kinds["kv cache"].dense_bytes == 1024 * 256
    # No kernel of the plugin takes them.
    assert plan.steps[0].ceiling == 1
    assert ("8 layers (quantized): no kernel" in plan.verdict[0]) is bool(pattern)
    # Nothing is said about shapes that are not known, nor about their arithmetic.
    assert {(kinds[x].in_features, kinds[x].out_features) for x in ("qkv", "down")} == {
        (0, 0)
    }
    assert plan.crossover is None
    assert any("their arithmetic is not" in line for line in plan.assumptions)
    text = show(plan)
    assert f"{plan.memory.tokens:,} tokens\n" in text
    assert "KV cache, a token 256 B" in text


def test_ranks_share_them(pair, ask):
    plan = make_plan(pair[1], ask(ranks=2))
    assert plan.memory.kv_token == 128
    assert plan.steps[0].ceiling == 1


def test_every_tensor_belongs_to_its_layer(pair):
    stored, other = pair
    names = [module.name for module in read_modules(stored, 2)]
    found = read_modules(other, 2)
    assert [module.name for module in found] == names
    linear = [x for x in found if x.role is Role.LINEAR]
    assert len(linear) == 14
    assert {(x.elements, x.quantized) for x in linear} == {(0, True)}


def test_int8_has_a_shape():
    tensors = {"q_proj.weight": ("I8", (8, 4)), "q_proj.SCB": ("F32", (8,))}
    (module,) = read_modules(Stored("test", {}, tensors, "a test"), 2)
    assert (module.out_features, module.in_features) == (8, 4)
    assert (module.elements, module.nbytes) == (32, 32 + 32)


def cache(names, **config):
    tensors = {
        f"layers.0.{name}.{leaf}": about
        for name in names
        for leaf, about in awq(64, 64).items()
    }
    stored = Stored("test", config, tensors, "a test")
    return read_cache(read_modules(stored, 2), config, size=1, ranks=1)


SPLIT, FUSED = ["k_proj", "v_proj"], ["qkv_proj", "o_proj"]
HEADS = {"num_attention_heads": 8, "hidden_size": 64}


@pytest.mark.parametrize(
    ("names", "config", "elements"),
    [
        (SPLIT, {**HEADS, "num_key_value_heads": 2, "head_dim": 32}, 2 * 2 * 32),
        (SPLIT, {**HEADS, "num_key_value_heads": 2}, 2 * 2 * 8),
        (SPLIT, HEADS, 2 * 64),
        (FUSED, {**HEADS, "num_key_value_heads": 2}, 2 * 2 * 8),
        (["gate_proj", "o_proj"], {}, 0),
        (
            ["kv_a_proj_with_mqa", "o_proj"],
            {"kv_lora_rank": 512, "qk_rope_head_dim": 64},
            576,
        ),
    ],
)
def test_the_configuration_tells(names, config, elements):
    assert cache(names, **config).token_bytes == elements


@pytest.mark.parametrize(
    ("names", "config", "missing"),
    [
        (SPLIT, {}, "hidden_size of config.json is None"),
        (SPLIT, {"head_dim": 8}, "num_key_value_heads of config.json is None"),
        (SPLIT, {**HEADS, "multi_query": True}, "num_key_value_heads of config.json"),
        (SPLIT, {**HEADS, "num_attention_heads": 0}, "num_attention_heads of .* is 0"),
        (SPLIT, {**HEADS, "head_dim": "8"}, "head_dim of config.json is '8'"),
        (["kv_a_proj_with_mqa"], {"kv_lora_rank": 512}, "qk_rope_head_dim of"),
    ],
)
def test_what_nothing_tells_is_an_error(names, config, missing):
    with pytest.raises(ConfigError, match=f"KV cache is not known.*{missing}.*add it"):
        cache(names, **config)


def test_a_model_without_a_cache_has_no_number_of_tokens(ask):
    tensors = {"layers.0.mlp.down_proj.weight": ("BF16", (64, 128))}
    stored = Stored("test", {}, tensors, "a test")
    plan = make_plan(stored, ask())
    assert plan.memory.tokens is None
    assert "left for it       92.00 GB\n" in show(plan)
    tiny = Machine("tiny", "gpu", 10e3, 1e12, None, "")
    plan = make_plan(stored, ask(machine=tiny))
    assert "The weights do not fit" in plan.verdict[-1]
