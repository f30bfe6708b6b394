"""The canary on layers of a step: which token, which steps, and the sums."""

from __future__ import annotations

import gc
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from support.cpu_kernels import kernels
from vllm.model_executor.layers.linear import LinearMethodBase

from nmsparse import NMPattern, sparsify
from vllm_sparse.buffers import add_buffer
from vllm_sparse.canary import canary as module
from vllm_sparse.canary import ops, taps
from vllm_sparse.canary.canary import Canary, choose_token, make_canary
from vllm_sparse.canary.method import TappedMethod
from vllm_sparse.canary.ops import NO_ROW, tap_token
from vllm_sparse.canary.taps import LAYERS_PER_KIND, choose_layers
from vllm_sparse.cpu.method import CpuLinearMethod
from vllm_sparse.custom_ops import ELEMENTS
from vllm_sparse.execution import Execution
from vllm_sparse.method import SparseLinearMethod
from vllm_sparse.owned import Selection
from vllm_sparse.phases import DECODE, PADDING, PREFILL, TokenPhases

K, OUT, SLOTS = 32, 6, 8
PATTERN = NMPattern(8, 16)


class Inner(LinearMethodBase):
    """vLLM's: the product of ``layer.weight``, which it counts."""

    calls = 0

    def create_weights(self, layer, *args, **kwargs):
        pass

    def process_weights_after_loading(self, layer):
        layer.processed = True

    def apply(self, layer, x, bias=None):
        self.calls += 1
        return F.linear(x, layer.weight, bias)


class Layer(torch.nn.Module):
    """A sparse layer of vLLM, by the reference or by a kernel of ours."""

    def __init__(self, phases, phase=DECODE, pattern=PATTERN, owns=None, bias=False):
        super().__init__()
        self.params_dtype = torch.float32
        self.input_size, self.output_size = K, OUT
        weight = torch.randn(OUT, K, generator=torch.Generator().manual_seed(0))
        self.loaded = weight.clone()
        self.weight = torch.nn.Parameter(weight, requires_grad=False)
        self.bias = torch.ones(OUT) if bias else None
        self.counters = torch.zeros(2, dtype=torch.int64)
        add_buffer(self, "codes", phases.codes)
        add_buffer(self, "counters", self.counters)
        if owns is not None:
            self.quant_method = CpuLinearMethod(
                Inner(),
                selection=Selection(pattern, phase),
                execution=Execution(**owns),
                phases=phases,
                counters=self.counters,
                after_load=lambda linear: None,
            )
            self.quant_method.process_weights_after_loading(self)
            return
        self.quant_method = SparseLinearMethod(
            Inner(),
            kept=pattern.n,
            group=pattern.m,
            phase=phase,
            criterion="magnitude",
            after_load=lambda: None,
        )

    def forward(self, x):
        return self.quant_method.apply(self, x, self.bias)


class Engine:
    """Phases, a canary and one layer of some kinds."""

    def __init__(self, share=1.0, kinds=("up",), **layer):
        self.phases = TokenPhases(SLOTS, torch.device("cpu"))
        self.canary = Canary(share, self.phases)
        self.layers = [Layer(self.phases, **layer) for _ in kinds]
        for number, (kind, made) in enumerate(zip(kinds, self.layers, strict=True)):
            name = f"model.layers.{number}.{kind}_proj"
            state = SimpleNamespace(kind=kind, name=name, counters=made.counters)
            self.canary.add(made, state)
        self.names = self.canary.attach()
        self.random = torch.Generator().manual_seed(1)

    def step(self, letters, x=None):
        """Run p(rompt) and d(ecode) tokens through every layer; return the input."""
        positions = torch.tensor([9 if one == "d" else 1 for one in letters])
        self.phases.publish(positions, torch.full((len(letters),), 5))
        if x is None:
            x = torch.randn(len(letters), K, generator=self.random)
        for layer in self.layers:
            layer(x)
        return x

    def totals(self, kind="up"):
        return self.canary.read()["kinds"][kind]


def by_hand(layer, tokens):
    """Return sums of error and distance of rows that are sparsified."""
    error = distance = 0.0
    for x in tokens:
        u, w = x.double(), layer.loaded.double()
        b = 0 if layer.bias is None else layer.bias.double()
        dense = w @ u + b
        y = w @ sparsify(x[None], PATTERN)[0].double() + b
        error += float((y - dense).norm() / dense.norm())
        distance += 1 - float(F.cosine_similarity(y, dense, dim=0))
    return pytest.approx(error, rel=1e-4), pytest.approx(distance, rel=1e-4)


@pytest.fixture(params=["reference", "keep", "drop"])
def owns(request):
    """Return execution options of the layers; None for vLLM's product."""
    if request.param == "reference":
        yield None
        return
    with kernels():
        yield {"kernels": "on", "dense_fallback": request.param}


@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("phase", [DECODE, 0], ids=["decode", "both"])
def test_sums_are_those_of_a_hand_written_reference(owns, phase, bias):
    engine = Engine(owns=owns, phase=phase, bias=bias)
    xs = [engine.step(letters)[place] for letters, place in (("d", 0), ("ppd", 2))]
    found = engine.totals()
    expected = by_hand(engine.layers[0], xs)
    assert found["tokens"] == 2
    assert (found["relative_error"], found["cosine_distance"]) == expected
    assert 0.1 < found["relative_error"] / 2 < 0.9


def test_a_pattern_that_keeps_everything_has_no_error():
    engine = Engine(pattern=NMPattern(16, 16))
    engine.step("d")
    assert engine.totals() == {
        "tokens": 1,
        "relative_error": 0.0,
        "cosine_distance": 0.0,
    }


def test_a_damaged_copy_of_a_weight_shows():
    with kernels():
        engine = Engine(owns={"kernels": "on"})
        engine.step("d")
        sound = engine.totals()["relative_error"]
        linear = engine.layers[0].quant_method.inner._linear
        linear.weights.rows[:, 0] += 50
        x = engine.step("d")
        error = engine.totals()["relative_error"] - sound
    assert error > 3 > by_hand(engine.layers[0], x)[0].expected


def test_a_damaged_selection_shows(monkeypatch):
    engine = Engine()
    monkeypatch.setattr(
        "vllm_sparse.custom_ops.sparsify", lambda x, *a, **k: x - sparsify(x, PATTERN)
    )
    x = engine.step("d")  # the smallest channels instead of the largest
    error, distance = by_hand(engine.layers[0], x)
    found = engine.totals()
    assert found["relative_error"] > 1.2 * error.expected
    assert found["cosine_distance"] > 1.2 * distance.expected


def test_prompts_and_padding_are_no_samples():
    engine = Engine(phase=0)
    engine.step("ppp")
    engine.phases.clear()
    engine.layers[0](torch.randn(4, K))
    assert engine.totals()["tokens"] == 0
    assert engine.canary._steps == 0


def test_every_third_decode_step_and_no_more_products():
    engine = Engine(share=0.3, kinds=("up", "up", "up", "up", "o"))
    inners = [layer.quant_method for layer in engine.layers]
    inners = [getattr(x, "inner", x) for x in inners]
    inners = [x.inner if isinstance(x, SparseLinearMethod) else x for x in inners]
    for _ in range(10):
        engine.step("p")
        engine.step("d")
    assert (engine.totals("up")["tokens"], engine.totals("o")["tokens"]) == (9, 3)
    # 20 steps, and 3 samples of each tapped layer.
    assert [inner.calls for inner in inners] == [23, 20, 23, 23, 23]


def test_a_step_is_compared_once_before_the_next_one():
    engine = Engine(share=0.5)
    engine.step("d")
    engine.step("d")
    engine.phases.clear()  # as a dummy step does
    engine.layers[0](torch.randn(2, K))
    first = engine.totals()
    assert first["tokens"] == 1
    assert engine.totals() == first
    tapped = engine.layers[0].vllm_sparse_canary_before.clone()
    engine.step("d")
    assert engine.totals() == first
    assert torch.equal(engine.layers[0].vllm_sparse_canary_before, tapped)


def test_another_request_at_every_turn():
    codes = torch.tensor([PREFILL, DECODE, PREFILL, DECODE, DECODE, PADDING])
    codes = codes.to(torch.uint8)
    found = [choose_token(codes, turn) for turn in range(4)]
    assert [int(row) for row, _ in found] == [1, 3, 4, 1]
    assert all(found for _, found in found)
    assert not choose_token(torch.tensor([PREFILL, PADDING]), 1)[1]


def test_a_layer_that_ran_dense_is_no_sample():
    """As with ``sparse_steps: fast``: nothing was counted, so nothing is compared."""
    engine = Engine()
    engine.layers[0].quant_method.inner.phase = PREFILL
    engine.step("d")
    assert engine.totals()["tokens"] == 0


def test_with_fast_a_mixed_step_of_ours_is_no_sample():
    with kernels():
        engine = Engine(owns={"kernels": "on", "sparse_steps": "fast"})
        engine.step("pd")
        assert engine.totals()["tokens"] == 0
        engine.step("dd")
        assert engine.totals()["tokens"] == 1


def test_a_layer_that_did_not_run_is_no_sample():
    engine = Engine(kinds=("up", "down"))
    engine.step("d")
    skipped = engine.layers.pop()
    engine.step("d")
    assert engine.totals("up")["tokens"] == 2
    assert engine.totals("down")["tokens"] == 1
    assert skipped.counters[ELEMENTS] == K


def test_new_weights_drop_the_sample():
    engine = Engine()
    engine.step("d")
    layer = engine.layers[0]
    layer.quant_method.process_weights_after_loading(layer)
    assert layer.processed
    assert engine.totals()["tokens"] == 0
    engine.step("d")
    assert engine.totals()["tokens"] == 1


def test_counting_from_zero():
    engine = Engine(share=0.5)
    for _ in range(3):
        engine.step("d")
    engine.canary.reset()
    assert engine.totals()["tokens"] == 0
    engine.step("d")
    assert engine.totals()["tokens"] == 0
    engine.step("d")
    assert engine.totals()["tokens"] == 1


def test_a_dense_product_that_fails_is_said_once(monkeypatch):
    engine = Engine(kinds=("up", "o"))

    def fail(*args):
        raise RuntimeError("one row is not enough")

    engine.layers[0].quant_method.inner.dense = fail
    # Not caplog: what handlers vLLM's logger has depends on the tests before.
    said = []
    monkeypatch.setattr(
        taps.logger, "warning", lambda text, *args: said.append(text % args)
    )
    for _ in range(3):
        engine.step("d")
    assert engine.totals("up")["tokens"] == 0
    assert engine.totals("o")["tokens"] == 3
    assert len(said) == 1
    assert "one row is not enough" in said[0]
    assert "model.layers.0.up_proj" in said[0]


def test_the_engine_can_be_forgotten():
    engine = Engine()
    engine.step("d")
    engine.layers.clear()
    gc.collect()
    assert engine.totals()["tokens"] == 0


def test_layers_are_spread_over_the_depth():
    kinds = ["qkv", "o"] * 9 + ["head"]
    assert choose_layers(kinds) == [2, 3, 8, 9, 14, 15, 18]
    assert choose_layers(["a", "b", "a"]) == [0, 1, 2]
    assert choose_layers([]) == []
    assert LAYERS_PER_KIND == 3


def test_what_is_tapped_is_listed_and_wrapped():
    engine = Engine(kinds=("up",) * 4)
    wrapped = [isinstance(x.quant_method, TappedMethod) for x in engine.layers]
    assert wrapped == [True, False, True, True]
    names = [f"model.layers.{i}.up_proj" for i in (0, 2, 3)]
    assert engine.names == engine.canary.read()["layers"] == names
    assert engine.layers[0].quant_method.kept == 8  # the inner method's
    assert not engine.layers[0].state_dict().keys() - {"weight"}


@pytest.mark.parametrize("tap", [ops._tap_cpu, ops._tap_cuda, tap_token])
@pytest.mark.parametrize(("row", "expected"), [(0, 0), (2, 2), (7, 2)])
def test_the_op_copies_one_row(tap, row, expected):
    x, y = torch.randn(1, 3, 4), torch.randn(1, 3, 2)
    before, after = torch.zeros(1, 4), torch.zeros(1, 2)
    tap(x, y, torch.tensor([row]), before, after)
    assert torch.equal(before, x[0, expected : expected + 1])
    assert torch.equal(after, y[0, expected : expected + 1])
    tap(x[:, :0], y[:, :0], torch.tensor([row]), before, after)
    assert torch.equal(before, x[0, expected : expected + 1])


def test_the_op_leaves_other_steps_alone():
    before, after = torch.zeros(1, 4), torch.zeros(1, 2)
    tap_token(torch.ones(3, 4), torch.ones(3, 2), torch.tensor([NO_ROW]), before, after)
    assert not before.any()
    assert not after.any()


def test_the_op_is_sound():
    arguments = (
        torch.randn(3, 4),
        torch.randn(3, 2),
        torch.tensor([1]),
        torch.zeros(1, 4),
        torch.zeros(1, 2),
    )
    torch.library.opcheck(torch.ops.vllm_sparse.tap_token.default, arguments)


@pytest.mark.parametrize(
    ("device", "offloads", "reason"),
    [("cpu", True, "weights are offloaded"), ("meta", False, "not made for meta")],
)
def test_where_it_cannot_be_it_says_so(device, offloads, reason, monkeypatch):
    said = []
    monkeypatch.setattr(
        module.logger, "warning", lambda text, *a: said.append(text % a)
    )
    phases = TokenPhases(SLOTS, torch.device("cpu"))
    phases.codes = phases.codes.to(device)
    assert make_canary(0.1, phases, offloads=offloads) is None
    assert len(said) == 1
    assert reason in said[0]
    assert make_canary(0.0, phases, offloads=offloads) is None
    assert len(said) == 1


def test_without_sparse_layers_it_says_so(monkeypatch):
    said = []
    monkeypatch.setattr(module.logger, "warning", lambda text, *a: said.append(text))
    engine = Engine(kinds=())
    assert "nothing to compare" in said[0]
    assert engine.phases.listener is None
    assert engine.canary.read() == {"share": 1.0, "layers": [], "kinds": {}}
