"""Parameters on a rank: as the layer's own loader splits a bias, and as K is split."""

from __future__ import annotations

import pytest
import torch
from vllm.model_executor.layers.linear import (
    MergedColumnParallelLinear,
    QKVParallelLinear,
    ReplicatedLinear,
    RowParallelLinear,
)

from nmsparse.config import ConfigError
from nmsparse.pattern import NMPattern
from vllm_sparse.treatment.shards import Split, local_parameters

CPU = torch.device("cpu")
PATTERN = NMPattern(2, 4)
HEAD, K = 2, 16


def bare(kind, **attributes):
    """Return a layer of vLLM that was never built: sizes and loaders alone."""
    layer = torch.nn.Module.__new__(kind)
    torch.nn.Module.__init__(layer)
    known = {"prefix": "x.y_proj", "params_dtype": torch.bfloat16, "input_size": K}
    for name, value in {**known, **attributes}.items():
        setattr(layer, name, value)
    return layer


def qkv(rank, ranks, heads=4, kv_heads=2):
    """Return ``qkv_proj`` with grouped queries, on one rank."""
    replicas = max(1, ranks // kv_heads)
    local, kv_local = heads // ranks, max(1, kv_heads // ranks)
    return bare(
        QKVParallelLinear,
        tp_rank=rank,
        tp_size=ranks,
        head_size=HEAD,
        v_head_size=HEAD,
        num_heads=local,
        num_kv_heads=kv_local,
        num_kv_head_replicas=replicas,
        total_num_heads=heads,
        total_num_kv_heads=kv_heads,
        input_size_per_partition=K,
        output_size_per_partition=(local + 2 * kv_local) * HEAD,
        output_size=(local + 2 * kv_local) * HEAD * ranks,
    )


def merged(rank, ranks, sizes=(8, 4)):
    return bare(
        MergedColumnParallelLinear,
        tp_rank=rank,
        tp_size=ranks,
        output_sizes=list(sizes),
        output_size=sum(sizes),
        output_size_per_partition=sum(sizes) // ranks,
        input_size_per_partition=K,
    )


def row(rank, ranks, outputs=6):
    return bare(
        RowParallelLinear,
        tp_rank=rank,
        tp_size=ranks,
        output_size=outputs,
        output_size_per_partition=outputs,
        input_size_per_partition=K // ranks,
    )


def part(outputs, start=0):
    rank = 3
    numbers = torch.arange(start, start + outputs, dtype=torch.float32)
    return {
        "factor": torch.arange(K, dtype=torch.float32),
        "channel_shift": -torch.arange(K, dtype=torch.float32),
        "output_scale": numbers,
        "output_shift": -numbers,
        "low_rank_in": torch.arange(rank * K, dtype=torch.float32).view(rank, K),
        "low_rank_out": numbers[:, None].expand(outputs, rank).contiguous(),
    }


def local(layer, parts):
    return local_parameters(layer, parts, pattern=PATTERN, device=CPU)


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_heads_of_grouped_queries(ranks):
    """With four ranks and two heads, two ranks hold each head of keys and values."""
    parts = {"q": part(8), "k": part(4, 100), "v": part(4, 200)}
    for rank in range(ranks):
        layer = qkv(rank, ranks)
        found = local(layer, parts)
        q = torch.arange(8.0).chunk(ranks)[rank]
        kv = torch.arange(4.0)
        kv = kv.chunk(min(ranks, 2))[rank // max(1, ranks // 2)]
        expected = torch.cat([q, kv + 100, kv + 200])
        assert torch.equal(found.output_scale, expected)
        assert torch.equal(found.output_shift, -expected)
        assert torch.equal(found.low_rank_out[:, 1].float(), expected)
        assert found.low_rank_out.dtype is torch.bfloat16
        assert torch.equal(found.factor, part(8)["factor"])
        assert found.low_rank_in.shape == (3, K)
        assert Split.of(layer).o_sharded == (ranks > 1)


def test_a_layer_that_is_fused_in_the_file():
    whole = torch.cat([torch.arange(8.0), torch.arange(4.0), torch.arange(4.0)])
    fused = {"x": part(16) | {"output_scale": whole}}
    parts = {name: part(n) for name, n in (("q", 8), ("k", 4), ("v", 4))}
    for rank in range(2):
        a, b = local(qkv(rank, 2), fused), local(qkv(rank, 2), parts)
        assert torch.equal(a.output_scale, b.output_scale)


@pytest.mark.parametrize("ranks", [1, 2])
def test_parts_of_different_sizes(ranks):
    parts = {"gate": part(8), "up": part(4, 100)}
    for rank in range(ranks):
        found = local(merged(rank, ranks), parts)
        gate, up = torch.arange(8.0), torch.arange(100.0, 104.0)
        expected = torch.cat([gate.chunk(ranks)[rank], up.chunk(ranks)[rank]])
        assert torch.equal(found.output_scale, expected)


@pytest.mark.parametrize("ranks", [1, 2])
def test_channels_of_row_parallel_layers(ranks):
    given = part(6)
    for rank in range(ranks):
        layer = row(rank, ranks)
        found, split = local(layer, {"x": given}), Split.of(layer)
        for name in ("factor", "channel_shift", "low_rank_in"):
            expected = given[name].chunk(ranks, dim=-1)[rank]
            assert torch.equal(getattr(found, name).float(), expected)
        # Outputs are whole, and what is added is added once.
        assert torch.equal(found.output_scale, given["output_scale"])
        assert split.adds_once == (rank == 0)
        assert split.k_sharded == (ranks > 1)


def test_a_replicated_layer_has_everything():
    layer = bare(ReplicatedLinear, tp_rank=1, tp_size=2, output_size=6)
    found, split = local(layer, {"x": part(6)}), Split.of(layer)
    assert torch.equal(found.output_scale, torch.arange(6.0))
    assert (split.k_local, split.o_local, split.adds_once) == (K, 6, True)


def test_groups_inside_of_shards():
    inside = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7, 8, 15, 9, 14, 10, 13, 11, 12])
    across = inside.roll(1)
    for rank, expected in enumerate(
        ([0, 2, 4, 6, 1, 3, 5, 7], [0, 7, 1, 6, 2, 5, 3, 4])
    ):
        found = local(row(rank, 2), {"x": {"channel_groups": inside}})
        assert found.channel_groups.tolist() == expected
        with pytest.raises(ConfigError, match=r"x\.y_proj: its balanced groups .*tp=2"):
            local(row(rank, 2), {"x": {"channel_groups": across}})
    found = local(merged(1, 2), {"x": {"channel_groups": across}})
    assert torch.equal(found.channel_groups, across)


def test_no_parameters():
    assert list(local(row(0, 1), {}).items()) == []


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"x": part(5)}, r"output_scale has shape \[5\]\. Expected \[6\]"),
        ({"a": part(2), "b": part(4) | {"factor": torch.ones(K)}}, "factor differs"),
        ({"a": part(2), "b": {}}, "a has parameters .* b has none"),
        ({"x": {"factor": torch.ones(K - 1)}}, r"factor has shape \[15\]"),
    ],
    ids=["outputs", "parts that differ", "a part without", "channels"],
)
def test_what_does_not_fit_names_the_layer(parts, message):
    with pytest.raises(ConfigError, match=rf"x\.y_proj: .*{message}.*calibrate"):
        local(row(0, 1), parts)
