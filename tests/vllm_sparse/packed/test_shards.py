"""Shards of a layer: any order, fused or not, and what is refused by name."""

from __future__ import annotations

import itertools

import pytest
import torch
from vllm.model_executor.layers.linear import (
    MergedColumnParallelLinear,
    QKVParallelLinear,
    RowParallelLinear,
)

from nmsparse.packed import PackedWeight
from nmsparse.packed_format import encode
from nmsparse.packed_manifest import BITMASK, VALUES, PackedFormatError
from vllm_sparse.packed.shards import Shards

K = 20
ATTENTION, MLP = "model.layers.0.self_attn", "model.layers.0.mlp"


def bare(cls, prefix, **attributes):
    """Return a layer without what vLLM's constructors need an engine for."""
    layer = cls.__new__(cls)
    torch.nn.Module.__init__(layer)
    layer.prefix, layer.input_size, layer.weight = prefix, K, "the weight"
    vars(layer).update(attributes)
    return layer


def qkv():
    sizes = {"total_num_heads": 4, "total_num_kv_heads": 2, "head_size": 3}
    return bare(QKVParallelLinear, f"{ATTENTION}.qkv_proj", **sizes)


def gate_up():
    return bare(MergedColumnParallelLinear, f"{MLP}.gate_up_proj", output_sizes=[8, 8])


def down():
    return bare(RowParallelLinear, f"{MLP}.down_proj", output_size=6)


SIZES = {
    qkv: {"q": 12, "k": 6, "v": 6},
    gate_up: {0: 8, 1: 8},
    down: {None: 6},
}


class Loading:
    """A layer that is loaded; records what its own loader is given."""

    def __init__(self, make, packed_modules=None):
        self.loaded = {}
        self.completed = 0
        self.layer = make()
        self.shards = Shards(
            self.layer, self._load, packed_modules or {}, self._complete
        )

    def _load(self, parameter, tensor, *shard):
        self.loaded[shard] = parameter, tensor

    def _complete(self):
        self.completed += 1

    def give(self, suffix, tensor, key):
        self.shards.half(suffix, "placeholder", tensor, *ids(key))


def ids(key):
    return () if key is None else (key,)


def halves(rows, seed=0):
    weight = torch.randn(rows, K, generator=torch.Generator().manual_seed(seed))
    weight = torch.where(weight > 0, weight, 0)
    bitmask, values = encode(PackedWeight.pack(weight))
    return weight, {BITMASK: bitmask, VALUES: values}


def tensors_of(make):
    weights, events = {}, []
    for seed, (key, rows) in enumerate(SIZES[make].items()):
        weights[ids(key)], parts = halves(rows, seed)
        events += [(suffix, tensor, key) for suffix, tensor in parts.items()]
    return weights, events


@pytest.mark.parametrize("make", SIZES)
def test_any_order(make):
    weights, events = tensors_of(make)
    for order in itertools.islice(itertools.permutations(events), 0, None, 7):
        loading = Loading(make)
        for event in order:
            assert not loading.completed
            # vLLM may use the memory of a tensor again.
            suffix, tensor, key = event
            tensor = tensor.clone()
            loading.give(suffix, tensor, key)
            tensor.zero_()
        assert loading.completed == 1
        assert loading.shards.packed == len(weights)
        assert loading.loaded.keys() == weights.keys()
        for key, (parameter, tensor) in loading.loaded.items():
            assert parameter == "the weight"
            assert torch.equal(tensor, weights[key])
        loading.shards.finish()


@pytest.mark.parametrize("make", [qkv, gate_up])
def test_fused_in_the_file(make):
    """As Phi-3: one tensor without a shard id, or with several."""
    weight, parts = halves(sum(SIZES[make].values()))
    several = (tuple(SIZES[make]),) if make is gate_up else ()
    for key in (None, *several):
        loading = Loading(make)
        for suffix, tensor in parts.items():
            loading.give(suffix, tensor, key)
        assert torch.equal(loading.loaded[ids(key)][1], weight)
        assert loading.completed == 1
        loading.shards.finish()


def test_dense_and_packed_parts_mix():
    loading = Loading(gate_up)
    weight, parts = halves(8)
    loading.shards.dense("parameter", weight, 1)
    assert not loading.completed
    for suffix, tensor in parts.items():
        loading.give(suffix, tensor, 0)
    assert loading.completed == 1
    assert loading.loaded[(1,)] == ("parameter", weight)
    loading.shards.finish()


def test_dense_weights_may_come_again():
    loading = Loading(down)
    for _ in range(2):
        loading.shards.dense("parameter", torch.zeros(6, K))
    assert loading.completed == 1


@pytest.mark.parametrize(
    ("make", "drop", "missing"),
    [
        (qkv, 0, f"{ATTENTION}.q_proj.weight_bitmask"),
        (qkv, 3, f"{ATTENTION}.k_proj.weight_values"),
        (gate_up, 2, f"{MLP}.up_proj.weight_bitmask"),
        (down, 1, f"{MLP}.down_proj.weight_values"),
    ],
)
def test_a_missing_half(make, drop, missing):
    loading = Loading(make)
    _, events = tensors_of(make)
    for event in events[:drop] + events[drop + 1 :]:
        loading.give(*event)
    assert not loading.completed
    with pytest.raises(PackedFormatError, match=rf"^{missing} is missing \(for "):
        loading.shards.finish()


def test_a_missing_part():
    loading = Loading(qkv)
    for event in tensors_of(qkv)[1][:4]:
        loading.give(*event)
    with pytest.raises(PackedFormatError, match=r"v_proj\.weight_bitmask is missing"):
        loading.shards.finish()


def test_nothing_came():
    with pytest.raises(PackedFormatError, match=r"down_proj\.weight is missing"):
        Loading(down).shards.finish()


def test_a_half_that_comes_twice():
    loading = Loading(down)
    _, parts = halves(6)
    loading.give(BITMASK, parts[BITMASK], None)
    with pytest.raises(PackedFormatError, match=r"weight_bitmask arrived twice"):
        loading.give(BITMASK, parts[BITMASK], None)


@pytest.mark.parametrize("key", ["q", None])
def test_a_weight_that_is_dense_and_packed(key):
    loading = Loading(qkv)
    weight, parts = halves(12 if key else 24)
    loading.shards.dense("parameter", weight, *ids(key))
    loading.give(BITMASK, parts[BITMASK], key)
    with pytest.raises(PackedFormatError, match=r"q_proj\.weight arrived twice"):
        loading.give(VALUES, parts[VALUES], key)


@pytest.mark.parametrize(
    ("rows", "message"),
    [(5, r"down_proj\.weight_bitmask is torch\.uint8 \[5, 3\]\. Expected .*\[6, 3\]")],
)
def test_another_shape(rows, message):
    loading = Loading(down)
    _, parts = halves(rows)
    loading.give(BITMASK, parts[BITMASK], None)
    with pytest.raises(PackedFormatError, match=message):
        loading.give(VALUES, parts[VALUES], None)


def test_names_of_another_model():
    loading = Loading(gate_up, {"gate_up_proj": ["w1", "w3"]})
    loading.give(BITMASK, halves(8)[1][BITMASK], 1)
    with pytest.raises(PackedFormatError, match=rf"^{MLP}\.w3\.weight_values is"):
        loading.shards.finish()
