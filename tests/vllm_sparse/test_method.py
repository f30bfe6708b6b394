"""``SparseLinearMethod``: vLLM's method, with a sparsified input."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch
from vllm.model_executor.layers.linear import LinearMethodBase

from nmsparse import NMPattern, sparsify
from vllm_sparse.method import SparseLinearMethod
from vllm_sparse.phases import DECODE, PREFILL


class Inner(LinearMethodBase):
    """Record calls; multiply by the layer's weight."""

    requires_device_loading = False
    uses_meta_device = True
    supports_pre_processed_weights = True
    something_vllm_looks_up = "of the inner method"

    def __init__(self):
        self.calls = []

    def create_weights(self, layer, *args, **kwargs):
        self.calls.append(("create_weights", args, kwargs))

    def process_weights_after_loading(self, layer):
        self.calls.append(("process_weights_after_loading", layer))

    def apply(self, layer, x, bias=None):
        self.calls.append(("apply", x))
        return torch.nn.functional.linear(x, layer.weight, bias)

    def dequantize_weight(self, layer):
        self.calls.append(("dequantize_weight", layer))
        return layer.weight

    def embedding(self, layer, ids):
        return "of the inner method"


def make_method(inner=None, after_load=lambda: None, **changes):
    options = {"kept": 2, "group": 4, "phase": DECODE, "criterion": "magnitude"}
    return SparseLinearMethod(
        inner or Inner(), after_load=after_load, **(options | changes)
    )


def make_layer(codes):
    torch.manual_seed(0)
    layer = torch.nn.Module()
    layer.weight = torch.randn(5, 8)
    codes = torch.tensor(codes, dtype=torch.uint8)
    layer.register_buffer("vllm_sparse_codes", codes)
    layer.register_buffer("vllm_sparse_counters", torch.zeros(2, dtype=torch.int64))
    return layer


@pytest.mark.parametrize("with_bias", [False, True], ids=["no bias", "bias"])
def test_apply_sparsifies_the_tokens_of_the_phase_then_multiplies(with_bias):
    method, layer = make_method(), make_layer([PREFILL, DECODE, DECODE, 0])
    x, bias = torch.randn(3, 8), torch.randn(5) if with_bias else None
    y = method.apply(layer, x, bias)
    expected = x.clone()
    expected[1:] = sparsify(x[1:], NMPattern(2, 4))
    ((name, seen),) = method.inner.calls
    assert name == "apply"
    assert torch.equal(seen, expected)
    assert torch.equal(y, torch.nn.functional.linear(expected, layer.weight, bias))
    assert layer.vllm_sparse_counters.tolist() == [16, 8]


def test_apply_takes_a_batch_dimension():
    method, layer = make_method(phase=0), make_layer([DECODE] * 4)
    x = torch.randn(1, 3, 8)
    assert torch.equal(
        method.apply(layer, x), sparsify(x, NMPattern(2, 4)) @ layer.weight.t()
    )


def test_apply_compiles_whole():
    torch._dynamo.reset()
    layer, x = make_layer([DECODE] * 4), torch.randn(3, 8)

    class Plain(Inner):
        def apply(self, layer, x, bias=None):
            return torch.nn.functional.linear(x, layer.weight, bias)

    method = make_method(Plain())
    compiled = torch.compile(
        lambda x: method.apply(layer, x), fullgraph=True, backend="aot_eager"
    )
    assert torch.equal(compiled(x), sparsify(x, NMPattern(2, 4)) @ layer.weight.t())
    assert layer.vllm_sparse_counters.tolist() == [24, 12]


def test_weights_are_loaded_before_anyone_is_told():
    inner, layer = Inner(), torch.nn.Module()
    method = make_method(inner, after_load=lambda: inner.calls.append("told"))
    method.process_weights_after_loading(layer)
    assert inner.calls == [("process_weights_after_loading", layer), "told"]


def test_create_weights_and_dequantize_are_forwarded():
    method, layer = make_method(), make_layer([])
    method.create_weights(layer, 8, [5], weight_loader="loader")
    assert method.inner.calls == [
        ("create_weights", (8, [5]), {"weight_loader": "loader"})
    ]
    assert method.dequantize_weight(layer) is layer.weight


def test_the_inner_methods_class_attributes_win_over_the_base_classs():
    method = make_method()
    assert isinstance(method, LinearMethodBase)
    assert method.requires_device_loading is False
    assert method.uses_meta_device is True
    assert method.supports_pre_processed_weights is True


def test_other_attributes_are_the_inner_methods():
    method = make_method()
    assert method.something_vllm_looks_up == "of the inner method"
    method.inner.later = 3
    assert method.later == 3
    with pytest.raises(AttributeError, match="no attribute 'nowhere'"):
        method.nowhere  # noqa: B018


def test_nothing_of_vllms_base_class_hides_the_inner_method():
    # A vLLM that adds an attribute to the base class must not go unnoticed.
    method = make_method()
    # Embeddings are not linear layers, so nobody calls these on a linear's method.
    never_called = {"embedding", "tie_weights"}
    ours = {*vars(SparseLinearMethod), *vars(method)}
    public = {n for n, _ in inspect.getmembers(LinearMethodBase) if n[0] != "_"}
    assert public - ours == never_called


def test_it_can_be_copied():
    method = make_method()
    again = copy.deepcopy(method)
    assert again.inner is not method.inner
    assert again.kept == 2
    assert again.something_vllm_looks_up == "of the inner method"
