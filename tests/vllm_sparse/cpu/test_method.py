"""``CpuLinearMethod``: what a layer keeps of its weight, and what it runs."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from support.cpu_kernels import kernels, random
from vllm.model_executor.layers.linear import UnquantizedLinearMethod

from nmsparse import sparsify
from nmsparse.pattern import NMPattern
from vllm_sparse.cpu import method as module
from vllm_sparse.cpu.method import CpuLinearMethod
from vllm_sparse.execution import Execution
from vllm_sparse.owned import Selection
from vllm_sparse.packed.keep import keep_packed
from vllm_sparse.phases import TokenPhases

OUT, K = 96, 64
PATTERN = NMPattern(8, 16)
BOTH = 0
every_fallback = pytest.mark.parametrize("fallback", ["keep", "drop"])


@pytest.fixture(autouse=True, scope="module")
def _kernels():
    with kernels():
        yield


class Inner(UnquantizedLinearMethod):
    """vLLM's method on a CPU: packs the weight its own way, and empties it."""

    something_vllm_looks_up = "of the inner method"

    def __init__(self):
        self.processed = 0

    def process_weights_after_loading(self, layer):
        self.processed += 1
        layer.kernel = layer.weight.data.clone()
        if layer.weight.dim() == 2:
            layer.weight = torch.nn.Parameter(torch.empty(0), requires_grad=False)

    def apply(self, layer, x, bias=None):
        return torch.nn.functional.linear(x, layer.kernel, bias)


class Loaded(torch.nn.Parameter):
    """A parameter of vLLM: the loader is a property."""

    @property
    def weight_loader(self):
        return self._weight_loader


class Layer(torch.nn.Module):
    def __init__(self, weight, fallback="keep", selection="8:16", **execution):
        super().__init__()
        self.load(weight)
        self.reports = []
        chosen = Selection(PATTERN, BOTH) if selection else None
        self.counters = torch.zeros(2, dtype=torch.int64)
        phases = TokenPhases(32, torch.device("cpu"))
        phases.publish(torch.ones(3), torch.zeros(3))
        self.quant_method = CpuLinearMethod(
            Inner(),
            selection=chosen,
            execution=Execution("on", fallback, **execution),
            phases=phases,
            counters=self.counters,
            after_load=self.reports.append,
        )

    def load(self, weight):
        self.weight = Loaded(weight.clone(), requires_grad=False)
        self.weight._weight_loader = self.load
        self.weight.tp_size = 2

    def process(self):
        self.quant_method.process_weights_after_loading(self)
        return self

    def forward(self, x, bias=None):
        return self.quant_method.apply(self, x, bias)

    @property
    def inner(self):
        return self.quant_method.inner


def check(layer, weight, selection=True):
    x, bias = random(3, K, seed=4), random(OUT, seed=5)
    sparse = sparsify(x, PATTERN) if selection else x
    expected = torch.nn.functional.linear(sparse, weight, bias)
    torch.testing.assert_close(layer(x, bias), expected)
    torch.testing.assert_close(layer(x[None], bias), expected[None])


@every_fallback
def test_the_weight_is_ours(fallback):
    weight = random(OUT, K)
    layer = Layer(weight, fallback).process()
    (linear,) = layer.reports
    first = "stock" if fallback == "keep" else "matmul"
    assert list(linear.products) == [first, "stream"]
    assert layer.inner.processed == (fallback == "keep")
    check(layer, weight)
    assert linear.calls == {"gather": 2}
    assert layer.counters.tolist() == [6 * K, 3 * K]
    assert layer.state_dict().keys() == {"weight"}, "no loader looks for our buffers"


def test_dropping_leaves_an_empty_parameter_of_its_kind():
    layer = Layer(random(OUT, K, dtype=torch.bfloat16), "drop").process()
    assert layer.weight.shape == (0,)
    assert (type(layer.weight), layer.weight.dtype) == (Loaded, torch.bfloat16)
    assert layer.weight.weight_loader == layer.load
    assert layer.weight.tp_size == 2
    assert not hasattr(layer, "kernel"), "vLLM made no copy either"


@every_fallback
def test_a_weight_is_taken_while_others_load(fallback, monkeypatch):
    weight = random(OUT, K)
    layer = Layer(weight, fallback)
    assert keep_packed(layer) == (fallback == "drop") == (not layer.weight.numel())
    monkeypatch.setattr(module, "take_weight", None)  # not a second time
    check(layer.process(), weight)
    assert len(layer.reports) == 1


def test_layers_of_others_are_not_taken():
    layer = Layer(random(OUT, K))
    layer.quant_method = layer.inner
    assert not keep_packed(layer)


@every_fallback
def test_without_sparsity_a_layer_is_vllms(fallback):
    weight = random(OUT, K)
    layer = Layer(weight, fallback, selection=None).process()
    assert layer.reports == [None]
    check(layer, weight, selection=False)
    assert layer.inner.processed == 1
    assert layer.counters.tolist() == [0, 0]
    weight = sparsify(weight, NMPattern(1, 4))
    layer.load(weight)  # it stays what it is: code was compiled for it
    check(layer.process(), weight, selection=False)
    assert layer.reports == [None]


@every_fallback
def test_pruned_and_dense_weights_of_dense_layers(fallback):
    pruned, options = sparsify(random(OUT, K), NMPattern(1, 4)), {"selection": None}
    layer = Layer(pruned, fallback, **options).process()
    check(layer, pruned, selection=False)
    assert layer.reports[0].calls == {"packed": 2}
    layer = Layer(random(OUT, K), fallback, dense_weights="auto", **options)
    weight = layer.weight.data.clone()
    check(layer.process(), weight, selection=False)
    assert layer.reports[0].calls == {"stream": 2}
    assert layer.counters.tolist() == [0, 0]


@every_fallback
@pytest.mark.parametrize(
    "weight",
    [random(OUT, 1, 4), torch.empty(OUT, 0), torch.empty(OUT, K, device="meta")],
    ids=["convolution", "empty", "missing"],
)
def test_what_is_no_weight_of_a_product_is_left_alone(weight, fallback):
    layer = Layer(weight, fallback)
    assert not keep_packed(layer)
    layer.process()
    assert (layer.inner.processed, layer.reports) == (1, [None])


def test_the_weight_that_attention_reads_stays():
    """MLA absorbs this weight after all layers were processed."""
    weight = random(OUT, K)
    layer = Layer(weight, "drop")
    layer._cpu_skip_gemm_dispatch = True
    assert not layer.quant_method.take(layer)
    assert torch.equal(layer.weight, weight)
    check(layer.process(), weight)
    assert layer.inner.processed == 1


@every_fallback
def test_processed_twice(fallback):
    weight = random(OUT, K)
    layer = Layer(weight, fallback).process().process()
    assert len(layer.reports) == 1
    check(layer, weight)


@every_fallback
def test_loaded_again(fallback):
    """What vLLM's ``reload_weights`` does to a layer: dense, pruned, dense again."""
    weight = random(OUT, K)
    layer = Layer(weight, fallback).process()
    buffers = dict(layer.named_buffers())
    for seed in (7, 8, 9):
        weight = random(OUT, K, seed=seed)
        if seed == 8:
            weight = sparsify(weight, NMPattern(1, 4))
        kept = {name: layer._buffers.pop(name) for name in buffers}
        layer.load(weight)
        layer.process()
        layer._buffers.update(kept)  # vLLM puts them back
        check(layer, weight)
        assert layer.weight.numel() == 0
        assert (layer.reports[0].weights.packed is not None) == (seed == 8)
    assert len(layer.reports) == 1
    assert layer.inner.processed == (4 if fallback == "keep" else 0)


def test_a_copied_layer_still_runs():
    weight = random(OUT, K)
    layer = Layer(weight).process()
    layer.vllm_sparse_counters = layer.counters.clone()
    layer.vllm_sparse_key = layer.vllm_sparse_key.clone()
    check(layer, weight)


def test_nothing_is_left_of_a_layer():
    layer = Layer(random(OUT, K)).process()
    layer(random(3, K))
    linear = weakref.ref(layer.reports[0])
    del layer
    gc.collect()
    assert linear() is None


def test_vllm_finds_what_the_inner_method_has():
    layer = Layer(random(OUT, K))
    method = layer.quant_method
    assert method.something_vllm_looks_up == "of the inner method"
    assert method.supports_pre_processed_weights
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = method.nothing_of_the_kind
    assert copy.copy(method).inner is method.inner
