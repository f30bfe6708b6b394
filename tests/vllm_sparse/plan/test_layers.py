"""Layers as vLLM fuses and shards them, and what is sparse about each."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nmsparse.config import ConfigError, SparsityConfig
from vllm_sparse.plan.layers import fused_layers, shard, treated_layers
from vllm_sparse.plan.modules import read_modules


def layers(stored):
    return list(fused_layers(read_modules(stored, 2)))


def treated(stored, config, *, zeros=None, device="gpu", ranks=1):
    found = treated_layers(
        layers(stored), config, zeros=zeros, device=device, ranks=ranks
    )
    return {layer.names[0].removeprefix("model.layers."): layer for layer in found}


def test_parts_are_fused(llama):
    found = layers(llama)
    assert len(found) == 4 * 32
    qkv, gate_up = found[0], found[1]
    if qkv.kind != "qkv":
        qkv, gate_up = gate_up, qkv
    assert (qkv.kind, qkv.in_features, qkv.outputs) == ("qkv", 4096, (4096, 1024, 1024))
    sizes = {x.kind: (x.in_features, x.out_features) for x in found}
    assert sizes["gate_up"] == (4096, 28672)
    assert sizes["down"] == (14336, 4096)


def test_doctor_and_plan_see_the_same_layers(demo_model):
    from vllm_sparse.cli.memory import read_linears
    from vllm_sparse.plan.stored import read_model

    mine = {x.names: x.dense_bytes for x in layers(read_model(str(demo_model)))}
    theirs = {x.names: x.dense for x in read_linears(demo_model)}
    decoder = {k: v for k, v in theirs.items() if "layers" in k[0]}
    assert mine == decoder


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_ranks_divide_every_weight(llama, ranks):
    for layer in layers(llama):
        mine = shard(layer, ranks, 8)
        assert mine.dense_bytes * ranks == layer.dense_bytes
        assert mine.elements * ranks == layer.elements
        row = layer.kind in ("o", "down")
        assert mine.in_features == layer.in_features // (ranks if row else 1)


def test_few_heads_of_keys_are_on_every_rank(llama):
    (qkv,) = [x for x in layers(llama) if x.names[0] == QKV]
    mine = shard(qkv, 16, 8)
    assert mine.outputs == (256, 128, 128)
    assert mine.nbytes == 2 * 4096 * 512


QKV = "model.layers.0.self_attn.qkv_proj"


def test_what_cannot_be_split_is_named(small):
    with pytest.raises(ConfigError, match="cannot be split over 3 ranks"):
        shard(layers(small())[0], 3, 2)


def test_patterns_follow_the_configuration(small):
    groups = {
        "down": {"targets": ["re:.*down_proj$"], "activation": {"pattern": "4:16"}},
        "all": {"targets": ["Linear"], "activation": {"pattern": "8:16"}},
    }
    config = SparsityConfig.parse(
        {"groups": groups, "ignore": ["model.layers.1.self_attn.o_proj"]}, source="test"
    )
    found = treated(small(), config)
    assert str(found["0.mlp.down_proj"].pattern) == "4:16"
    assert str(found["0.self_attn.o_proj"].pattern) == "8:16"
    assert found["1.self_attn.o_proj"].pattern is None


def test_a_target_that_matches_nothing_is_refused(small):
    groups = {"x": {"targets": ["re:.*dwn$"], "activation": {"pattern": "8:16"}}}
    config = SparsityConfig.parse({"groups": groups}, source="test")
    with pytest.raises(ConfigError, match="unknown target"):
        treated(small(), config)


def test_patterns_must_fit_the_rank(small):
    stored = small(intermediate_size=160)
    config = SparsityConfig.uniform("8:16")
    assert treated(stored, config, ranks=2)
    with pytest.raises(ConfigError, match=r"shard of 160 over tp=4.*multiple of m=16"):
        treated(stored, config, ranks=4)


def test_zeros_are_given_or_recorded(small):
    weight = {"pattern": "2:4", "sparsity": 0.6}
    groups = {
        "down": {"targets": ["re:.*down_proj$"], "weight": weight},
        "o": {"targets": ["re:.*o_proj$"], "weight": {"pattern": "2:4"}},
    }
    config = SparsityConfig.parse({"groups": groups}, source="test")
    found = treated(small(), config)
    assert found["0.mlp.down_proj"].zeros == 0.6
    assert found["0.self_attn.o_proj"].zeros == 0.5
    assert found["0.self_attn.qkv_proj"].zeros == 0
    every = treated(small(), config, zeros=0.7)
    assert {x.zeros for x in every.values()} == {0.7}


@pytest.mark.parametrize(
    ("word", "device", "reason"),
    [
        ("clact", "cpu", "clact"),
        ("clact", "gpu", "clact"),
        ("d_pts_median", "gpu", "d_pts_median"),
        ("d_pts_median", "cpu", ""),
        ("var", "gpu", ""),
    ],
)
def test_treatments_without_a_kernel_say_so(small, word, device, reason):
    activation = {"pattern": "8:16"}
    activation |= {"criterion": word} if word == "clact" else {"mitigation": [word]}
    groups = {"all": {"targets": ["Linear"], "activation": activation}}
    config = SparsityConfig.parse({"groups": groups}, source="test")
    found = treated(small(), config, device=device)
    assert {x.no_kernel for x in found.values()} == {reason}


def test_names_without_a_kernel_are_names_of_treatments():
    from nmsparse.criteria import criteria
    from nmsparse.mitigation import mitigations
    from vllm_sparse.plan.layers import _NO_KERNEL

    for names in _NO_KERNEL.values():
        assert {*names} <= {*criteria, *mitigations}


def test_quantized_weights_stay_vllms(small):
    stored = small()
    tensors = {
        name: ("F8_E4M3", shape) if len(shape) == 2 else (kind, shape)
        for name, (kind, shape) in stored.tensors.items()
    }
    found = treated(replace(stored, tensors=tensors), SparsityConfig.uniform("8:16"))
    assert {x.no_kernel for x in found.values()} == {"quantized"}
    assert found["0.mlp.down_proj"].dense_bytes == 64 * 128
