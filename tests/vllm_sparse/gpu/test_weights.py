"""One copy of a weight in memory: rows for us, ``[O, K]`` for everybody else."""

from __future__ import annotations

import pytest
import torch

from nmsparse import sparsify
from nmsparse.packed import PackedWeight
from nmsparse.pattern import NMPattern
from vllm_sparse.gpu.weights import (
    Held,
    copy_of,
    is_k_major,
    repack,
    share_of_zeros,
    store_k_major,
)

OUT, K = 24, 40


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def layer_of(weight):
    layer = torch.nn.Module()
    layer.weight = torch.nn.Parameter(weight.clone(), requires_grad=False)
    return layer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_are_the_parameter(dtype):
    weight = random(OUT, K, dtype=dtype)
    layer = layer_of(weight)
    parameter = layer.weight
    rows = store_k_major(layer)
    assert layer.weight is parameter
    assert torch.equal(layer.weight, weight)
    assert torch.equal(rows, weight.t())
    assert rows.is_contiguous()
    assert rows.data_ptr() == layer.weight.data_ptr()
    assert rows.untyped_storage().nbytes() == weight.nbytes, "one copy"
    assert is_k_major(layer.weight)


def test_twice_is_once():
    layer = layer_of(random(OUT, K))
    place = store_k_major(layer).data_ptr()
    assert store_k_major(layer).data_ptr() == place


def test_what_a_loader_copies_lands_in_the_rows():
    layer = layer_of(random(OUT, K))
    rows = store_k_major(layer)
    weight = random(OUT, K, seed=1)
    # Shards of a fused layer, as vLLM's loaders write them.
    for start in range(0, OUT, 8):
        layer.weight.data.narrow(0, start, 8).copy_(weight[start : start + 8])
    assert torch.equal(rows, weight.t())


def test_share_of_zeros():
    weight = random(OUT, K)
    assert share_of_zeros(weight) == 0.0
    assert share_of_zeros(sparsify(weight, NMPattern(1, 4)).t()) == 0.75


def test_bytes_beside_the_weight():
    assert Held().nbytes == 0
    packed = PackedWeight.pack(random(OUT, K))
    assert Held(0.5, packed).nbytes == packed.nbytes > 0


def test_a_copy_is_a_copy():
    packed = PackedWeight.pack(sparsify(random(OUT, K), NMPattern(2, 4)))
    other = copy_of(packed)
    assert torch.equal(other.unpack(), packed.unpack())
    places = {t.data_ptr() for t in (packed.bits, packed.values, packed.offsets)}
    assert places.isdisjoint(
        t.data_ptr() for t in (other.bits, other.values, other.offsets)
    )
    assert copy_of(None) is None


def test_repacking_keeps_the_tensors():
    weight = sparsify(random(OUT, K), NMPattern(2, 4))
    packed = PackedWeight.pack(weight)
    places = [t.data_ptr() for t in (packed.bits, packed.values, packed.offsets)]
    size = packed.nbytes
    other = sparsify(random(OUT, K, seed=1), NMPattern(2, 4))
    # Fewer non-zeros, by more than what pads the values: the rest is zero.
    other[:6] = 0
    repack(packed, other.t().contiguous().t())
    found = [t.data_ptr() for t in (packed.bits, packed.values, packed.offsets)]
    assert found == places
    # Calls before count the bytes of this copy too: they must not become others.
    assert packed.nbytes == size
    assert torch.equal(packed.unpack(), other)
    assert not packed.values[int(packed.offsets[-1]) :].any()
    with pytest.raises(RuntimeError, match=r"has 960 non-zeros.*holds 480.*--sparse-w"):
        repack(packed, random(OUT, K))
