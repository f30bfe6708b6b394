"""``GpuLinearMethod``: the weight it leaves, and what it runs. On CPU tensors here."""

from __future__ import annotations

import copy
import gc
import weakref
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from vllm.model_executor.layers.linear import (
    RowParallelLinear,
    UnquantizedLinearMethod,
)

from nmsparse import sparsify
from nmsparse.config import ActivationSparsity
from nmsparse.ops.online import online_linear, prepare
from nmsparse.pattern import NMPattern
from vllm_sparse.execution import Execution
from vllm_sparse.gpu import method as module
from vllm_sparse.gpu.method import GpuLinearMethod
from vllm_sparse.gpu.weights import is_k_major
from vllm_sparse.method import product_bias
from vllm_sparse.owned import Selection
from vllm_sparse.phases import ALL, DECODE, TokenPhases
from vllm_sparse.table import TOKENS
from vllm_sparse.treatment.layer import make_treatment

OUT, K = 24, 32
PATTERN = NMPattern(8, 16)
PRUNED = NMPattern(1, 4)


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


class Inner(UnquantizedLinearMethod):
    """vLLM's method on a GPU: leaves the weight as it is."""

    something_vllm_looks_up = "of the inner method"

    def __init__(self):
        self.processed = 0

    def process_weights_after_loading(self, layer):
        self.processed += 1

    def apply(self, layer, x, bias=None):
        return F.linear(x, layer.weight, bias)


class Layer(torch.nn.Module):
    """An unquantized layer of vLLM."""

    prefix, params_dtype = "x.y_proj", torch.float32
    input_size, output_size = K, OUT

    def __init__(self, weight, *, sparse=True, treatment=None, phase=ALL, **execution):
        super().__init__()
        self.load(weight)
        self.reports = []
        self.phases = TokenPhases(24, torch.device("cpu"))
        self.counters = torch.zeros(2, dtype=torch.int64)
        if treatment is not None:
            treatment = make_treatment(
                self, ActivationSparsity(**treatment), {}, device=torch.device("cpu")
            )
        self.treatment = treatment
        self.quant_method = GpuLinearMethod(
            Inner(),
            layer=self,
            selection=Selection(PATTERN, phase, treatment) if sparse else None,
            execution=Execution(**execution),
            masks=self.phases.masks(phase),
            counters=self.counters,
            after_load=self.reports.append,
        )
        self.step("ddd")

    def weight_loader(self, parameter, loaded):
        parameter.data.copy_(loaded)

    def load(self, weight):
        self.weight = torch.nn.Parameter(weight.clone(), requires_grad=False)

    def step(self, letters):
        positions = torch.tensor([int(x == "d") for x in letters])
        self.phases.publish(positions, torch.ones(len(letters), dtype=torch.int32))

    def process(self):
        self.quant_method.process_weights_after_loading(self)
        return self

    def forward(self, x, bias=None):
        return self.quant_method.apply(self, x, bias)

    @property
    def inner(self):
        return self.quant_method.inner


@pytest.fixture
def measured(monkeypatch):
    """Give layers a table in which some ways win."""

    def win(*names):
        def tune(linear, terms, label):
            if linear.always:
                return {}
            ways = dict.fromkeys(names, 1.0)
            return {t: {linear.first: 2.0} | ways for t in TOKENS}

        monkeypatch.setattr(module, "tune", tune)

    return win


def check(layer, weight, sparse=True):
    x, bias = random(2, K, seed=4), random(OUT, seed=5)
    kept = sparsify(x, PATTERN) if sparse else x
    expected = F.linear(kept, weight, bias)
    layer.step("dd")
    torch.testing.assert_close(layer(x, bias), expected)
    torch.testing.assert_close(layer(x[None], bias), expected[None])


def test_the_weight_is_ours_and_everybodys(measured):
    measured("gather")
    weight = random(OUT, K)
    layer = Layer(weight)
    parameter = layer.weight
    layer.process()
    (linear,) = layer.reports
    assert layer.weight is parameter
    assert layer.weight.shape == (OUT, K)
    assert is_k_major(layer.weight)
    assert torch.equal(layer.weight, weight)
    assert layer.weight.untyped_storage().nbytes() == weight.nbytes
    assert (linear.weights.nbytes, linear.weights.sparsity) == (0, 0.0)
    assert layer.inner.processed == 1
    check(layer, weight)
    assert layer.counters.tolist() == [4 * K, 2 * K]
    assert layer.state_dict().keys() == {"weight"}, "no loader looks for our buffers"
    # What LoRA and others do with it.
    x = random(5, K)
    torch.testing.assert_close(F.linear(x, layer.weight), F.linear(x, weight))


@pytest.mark.parametrize(
    ("execution", "way"),
    [
        ({}, "dense"),
        ({"sparse_steps": "all"}, "masked"),
        ({"kernels": "on"}, "dense"),
        ({"kernels": "on", "sparse_steps": "all"}, "masked"),
        ({"kernels": "on", "shared_lists": "auto"}, "shared"),
    ],
    ids=str,
)
def test_what_runs_without_a_table(execution, way):
    """Nothing is measured on a CPU, as with ``kernels: on`` on a GPU."""
    weight = random(OUT, K)
    layer = Layer(weight, **execution).process()
    (linear,) = layer.reports
    few = "gather" if "kernels" in execution else way
    many = "dense" if way == "shared" else way
    found = [linear.plan(t).way for t in (1, 2, 3, 16, 17, 999)]
    assert found == [few, few, way, way, many, many]
    check(layer, weight, sparse=few != "dense")


@pytest.mark.parametrize("phase", [ALL, DECODE])
@pytest.mark.parametrize(
    ("criterion", "mitigation"), [("wina", ("d_pts", "var")), ("magnitude", ("var",))]
)
@pytest.mark.parametrize("winner", ["gather", "masked"])
def test_a_treatment_reads_the_weight_and_its_tensors_reach_the_kernel(
    measured, criterion, mitigation, phase, winner
):
    measured(winner)
    treatment = {"pattern": "8:16", "criterion": criterion, "mitigation": mitigation}
    steps = {"gather": "fast", "masked": "all"}[winner]
    layer = Layer(random(OUT, K), treatment=treatment, phase=phase, sparse_steps=steps)
    layer.process()
    x, bias = random(3, K, seed=4) + 1, random(OUT, seed=5)
    for seed in (0, 7):
        weight = random(OUT, K, seed=seed)
        layer.weight.data.copy_(weight)  # loaded again, in place
        layer.process()
        online = layer.treatment.online
        given = replace(online.parameters, factor=None)
        online = prepare(weight, replace(online, parameters=given))
        layer.step("ddd")
        expected = online_linear(x, weight, bias, online)
        torch.testing.assert_close(layer(x, bias), expected)
        layer.step("pdp")
        if phase == DECODE:
            dense = F.linear(x, weight, bias)
            expected = torch.stack((dense[0], expected[1], dense[2]))
        torch.testing.assert_close(layer(x, bias), expected)
    assert len(layer.reports) == 1


def test_loaded_again_as_vllm_reloads(measured):
    """Fresh parameters are loaded and processed, then copied into those that graphs
    hold, which are put back."""
    measured("gather")
    layer = Layer(random(OUT, K)).process()
    held, buffers = layer.weight, dict(layer._buffers)
    place = held.data_ptr()
    for seed in (7, 8):
        weight = random(OUT, K, seed=seed)
        layer._buffers.clear()
        del layer.weight
        layer.load(weight)
        layer.process()
        held.data.copy_(layer.weight)
        layer.weight = held
        layer._buffers.update(buffers)
        check(layer, weight)
    assert layer.weight.data_ptr() == place
    assert len(layer.reports) == 1


def test_a_weight_that_was_replaced_and_not_processed(measured):
    measured("gather")
    layer = Layer(random(OUT, K)).process()
    weight = random(OUT, K, seed=3)
    layer.load(weight)
    check(layer, weight, sparse=False)


def test_processed_twice(measured):
    measured("gather")
    weight = random(OUT, K)
    layer = Layer(weight).process()
    place = layer.weight.data_ptr()
    layer.process()
    assert layer.weight.data_ptr() == place
    assert len(layer.reports) == 1
    check(layer, weight)


@pytest.mark.parametrize("sparse", [True, False])
def test_a_packed_copy_is_held_only_if_it_was_measured_to_win(measured, sparse):
    weight = sparsify(random(OUT, K), PRUNED)
    measured("packed")
    layer = Layer(weight, sparse=sparse).process()
    (linear,) = layer.reports
    held = linear.weights
    assert held.sparsity == 0.75
    assert held.nbytes == held.packed.nbytes > 0
    assert "bits and values" in linear.describe()
    check(layer, weight, sparse=False)
    held.packed.values.zero_()
    assert not layer(random(1, K)).any(), "it is what few tokens read"
    measured("gather")
    layer = Layer(weight, sparse=sparse).process()
    assert (layer.reports[0] is None) == (not sparse)
    check(layer, weight, sparse=sparse)
    if sparse:
        assert layer.reports[0].weights.nbytes == 0
    for options in ({"sparse_weights": "off"}, {"kernels": "on"}):
        layer = Layer(weight, sparse=sparse, **options).process()
        if sparse:
            assert layer.reports[0].weights.nbytes == 0
        else:
            assert layer.reports == [None]


def test_a_packed_copy_follows_the_weight(measured):
    measured("packed")
    layer = Layer(sparsify(random(OUT, K), PRUNED), sparse=False).process()
    packed = layer.reports[0].weights.packed
    weight = sparsify(random(OUT, K, seed=9), PRUNED)
    layer.weight.data.copy_(weight)
    layer.process()
    assert layer.reports[0].weights.packed is packed, "graphs hold its tensors"
    check(layer, weight, sparse=False)
    layer.weight.data.copy_(random(OUT, K))
    with pytest.raises(RuntimeError, match="non-zeros, but its packed copy holds"):
        layer.process()


def test_without_sparsity_a_layer_is_vllms(measured):
    measured("packed")
    weight = random(OUT, K)
    layer = Layer(weight, sparse=False).process()
    assert layer.reports == [None]
    assert layer.weight.is_contiguous()
    check(layer, weight, sparse=False)
    weight = sparsify(weight, PRUNED)
    layer.load(weight)  # it stays what it is: code was compiled for it
    check(layer.process(), weight, sparse=False)
    assert layer.reports == [None]


@pytest.mark.parametrize(
    "weight",
    [random(OUT, 1, 4), torch.empty(OUT, 0), torch.empty(OUT, K, device="meta")],
    ids=["convolution", "empty", "missing"],
)
def test_what_is_no_weight_of_a_product_is_left_alone(weight):
    layer = Layer(weight).process()
    assert (layer.inner.processed, layer.reports) == (1, [None])
    assert layer.weight.shape == weight.shape


def test_nothing_is_left_of_a_layer():
    layer = Layer(random(OUT, K), kernels="on").process()
    layer(random(2, K))
    linear = weakref.ref(layer.reports[0])
    del layer
    gc.collect()
    assert linear() is None


def test_vllm_finds_what_the_inner_method_has():
    method = Layer(random(OUT, K)).quant_method
    assert method.something_vllm_looks_up == "of the inner method"
    assert method.supports_pre_processed_weights
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = method.nothing_of_the_kind
    assert copy.copy(method).inner is method.inner


def test_kernels_that_do_not_run_leave_a_dense_layer(measured, monkeypatch):
    said = []
    monkeypatch.setattr(module.logger, "warning_once", lambda *a: said.append(a))

    def fail(*args):
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(module, "warm_up", fail)
    measured("gather", "packed")
    weight = sparsify(random(OUT, K), PRUNED)
    for execution in ({}, {"kernels": "on"}, {"sparse_steps": "all"}):
        layer = Layer(weight, **execution).process()
        (linear,) = layer.reports
        assert {linear.plan(tokens).way for tokens in (1, 2, 16, 99)} == {"dense"}
        assert linear.weights.packed is None
        assert "do not run on this GPU" in linear.describe()
        check(layer, weight, sparse=False)
        # Nor where the op falls back to the first way.
        layer.weight.data = layer.weight.data.contiguous()
        check(layer, weight, sparse=False)
    assert "no kernel image" in str(said[0][-1])


def test_a_weight_that_cannot_be_packed_stays_dense(measured, monkeypatch):
    measured("packed")

    def fail(weight):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(module.PackedWeight, "pack", fail)
    weight = sparsify(random(OUT, K), PRUNED)
    assert Layer(weight, sparse=False).process().reports == [None]
    (linear,) = Layer(weight).process().reports
    assert linear.weights.packed is None


def test_the_bias_of_a_row_parallel_layer_belongs_to_the_first_rank():
    layer = RowParallelLinear.__new__(RowParallelLinear)
    torch.nn.Module.__init__(layer)
    layer.bias = bias = torch.nn.Parameter(random(OUT))
    layer.skip_bias_add = False
    for rank, expected in ((0, bias), (1, None)):
        layer.tp_rank = rank
        assert product_bias(layer) is expected
    layer.tp_rank, layer.skip_bias_add = 0, True
    assert product_bias(layer) is None
