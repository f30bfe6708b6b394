"""The session of a GPU engine: which layers are ours, and why not the others.

The engine is told that its device is a GPU; tensors stay on the CPU.
"""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from vllm.model_executor.layers.linear import LinearMethodBase
from vllm.model_executor.model_loader.reload.utils import get_layer_size

from nmsparse import sparsify
from nmsparse.config import SparsityConfig
from nmsparse.dispatch import BACKEND_ENV
from nmsparse.pattern import NMPattern
from vllm_sparse import owner
from vllm_sparse import session as module
from vllm_sparse.execution import Execution
from vllm_sparse.gpu import support
from vllm_sparse.gpu.method import GpuLinearMethod
from vllm_sparse.method import SparseLinearMethod
from vllm_sparse.options import FINGERPRINT, LAYERS, Found
from vllm_sparse.phases import Steps
from vllm_sparse.session import Session
from vllm_sparse.state import layer_report
from vllm_sparse.treatment.method import TreatedLinearMethod

OUT, K = 24, 32
NAME = "model.layers.0.mlp.up_proj"


def default_unquantized_gemm():
    """Have the name of vLLM's."""


def flashinfer_gemm():
    """Have another."""


class UnquantizedLinearMethod(LinearMethodBase):
    """vLLM's, by name."""

    def __init__(self, gemm=default_unquantized_gemm):
        self._gemm_impl = gemm

    def create_weights(self, layer, *args, **kwargs):
        pass

    def process_weights_after_loading(self, layer):
        pass

    def apply(self, layer, x, bias=None):
        return F.linear(x, layer.weight, bias)


class Fp8LinearMethod(UnquantizedLinearMethod):
    pass


class Linear(torch.nn.Module):
    def __init__(self, name=NAME, method=None, dtype=torch.float32):
        super().__init__()
        self.prefix, self.params_dtype = name, dtype
        self.input_size = self.input_size_per_partition = K
        self.output_size = self.output_size_per_partition = OUT
        weight = torch.randn(OUT, K, generator=torch.Generator().manual_seed(0))
        self.weight = torch.nn.Parameter(weight, requires_grad=False)
        self.quant_method = method or UnquantizedLinearMethod()

    def weight_loader(self, parameter, loaded):
        parameter.data.copy_(loaded)


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch):
    monkeypatch.setattr(module, "model_class", lambda config: SimpleNamespace())
    monkeypatch.setattr(support, "engine_problem", lambda **_: None)
    monkeypatch.delenv(BACKEND_ENV, raising=False)


@pytest.fixture
def make(monkeypatch):
    """Return a function that makes the session of a GPU engine."""

    def session(pattern="8:16", criterion="magnitude", mitigation=(), **execution):
        config = SparsityConfig.uniform(
            pattern, criterion=criterion, mitigation=mitigation
        )
        return build(config, **execution)

    def build(config, offload=0, **execution):
        engine = SimpleNamespace(
            parallel_config=SimpleNamespace(
                use_ubatching=False,
                use_sequence_parallel_moe=False,
                pipeline_parallel_size=1,
            ),
            cache_config=SimpleNamespace(kv_sharing_fast_prefill=False),
            scheduler_config=SimpleNamespace(max_num_batched_tokens=32),
            device_config=SimpleNamespace(device="cpu"),
            model_config=SimpleNamespace(enable_sleep_mode=False),
            offload_config=SimpleNamespace(
                uva=SimpleNamespace(cpu_offload_gb=offload),
                prefetch=SimpleNamespace(offload_group_size=0),
            ),
            additional_config={},
        )
        monkeypatch.setattr(module, "_device_type", lambda device: "cuda")
        return Session(engine, Found(config, "a test", None), Execution(**execution))

    session.build = build
    return session


def attach(session, layer, load=True):
    session.attach(layer)
    if load:
        layer.quant_method.process_weights_after_loading(layer)
    return session.layers[-1]


def test_an_unquantized_layer_is_ours(make):
    session, layer = make(kernels="on"), Linear()
    weight = layer.weight.data.clone()
    state = attach(session, layer)
    assert isinstance(layer.quant_method, GpuLinearMethod)
    assert state.backend == "triton"
    assert state.reason.endswith("our K-major rows for few tokens, dense for many")
    x = torch.randn(2, K)
    session.phases.publish(torch.ones(2), torch.zeros(2))
    found = layer.quant_method.apply(layer, x)
    torch.testing.assert_close(found, F.linear(sparsify(x, NMPattern(8, 16)), weight))
    report = layer_report(state, state.counters.tolist(), [Steps(1, True, 3)])
    assert report["calls"] == {"gather": 3}
    assert report["bytes_read"] == report["bytes_skipped"] == 3 * weight.nbytes // 2
    assert json.loads(json.dumps(report)) == report
    assert report["ways"]["1"] == "gather"
    assert report["ways"]["4"] == "dense"
    assert report["extra_bytes"] == 0
    assert report["density"] == 0.5
    assert report["weight_sparsity"] == 0.0
    session.prepare(torch.nn.Module())  # no heads, no CPU kernels


@pytest.mark.parametrize(
    ("rule", "execution", "layer", "reason"),
    [
        ({}, {"kernels": "off"}, {}, "kernels are off"),
        ({"pattern": "16:16"}, {}, {}, "all channels stay, so there is nothing to"),
        ({"criterion": "clact"}, {}, {}, "the criterion looks at several tokens"),
        ({"mitigation": ("d_pts_median",)}, {}, {}, "d_pts_median has no kernel"),
        ({}, {}, {"method": Fp8LinearMethod()}, "vLLM's Fp8LinearMethod has no dense"),
        ({}, {}, {"dtype": torch.float64}, "no kernel for torch.float64"),
        (
            {},
            {},
            {"method": UnquantizedLinearMethod(flashinfer_gemm)},
            "vLLM was asked for another product (flashinfer_gemm)",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_why_a_layer_is_not_ours(make, rule, execution, layer, reason):
    session, layer = make(**rule, **execution), Linear(**layer)
    state = attach(session, layer, load=False)
    assert isinstance(layer.quant_method, SparseLinearMethod)
    assert f"; not by kernels of ours: {reason}" in state.reason
    treated = bool(rule.get("mitigation") or rule.get("criterion"))
    assert isinstance(layer.quant_method, TreatedLinearMethod) == treated


def test_low_rank_is_not_ours(make):
    residual = SimpleNamespace(online=SimpleNamespace(residual=True))
    assert support.layer_problem(None, residual) == (
        "r_sparse needs the dropped channels too"
    )
    inside = SimpleNamespace(inner=UnquantizedLinearMethod(flashinfer_gemm))
    assert "flashinfer_gemm" in support.layer_problem(inside, None)
    inside = SimpleNamespace(inner=UnquantizedLinearMethod())
    assert support.layer_problem(inside, None) is None


@pytest.mark.parametrize(
    ("forced", "ours"), [("triton", True), ("", True), ("reference", False)]
)
def test_a_forced_backend(make, monkeypatch, forced, ours):
    monkeypatch.setenv(BACKEND_ENV, forced)
    session, layer = make(), Linear()
    if forced == "triton":  # the ops of other layers would be refused on a CPU
        monkeypatch.setattr(module, "explain", lambda *a, **k: SimpleNamespace(
            backend="triton", reason="forced"))  # fmt: skip
    state = attach(session, layer, load=False)
    assert isinstance(layer.quant_method, GpuLinearMethod) == ours
    assert ("NMSPARSE_BACKEND=reference" in state.reason) == (not ours)


def test_a_problem_of_the_engine_is_said(make, monkeypatch):
    said = []
    monkeypatch.setattr(owner.logger, "warning", lambda text, *a: said.append(text % a))
    monkeypatch.setattr(
        support, "engine_problem", lambda **_: "triton is not installed"
    )
    state = attach(make(), Linear(), load=False)
    assert state.reason.endswith("not by kernels of ours: triton is not installed")
    assert said == [
        "vllm-sparse: no GPU kernels, so nothing gets faster: triton is not installed"
    ]


def test_an_engine_that_sleeps(make, monkeypatch):
    asked = []
    monkeypatch.setattr(support, "engine_problem", lambda **given: asked.append(given))
    make()
    make.build(SparsityConfig.uniform("8:16"), offload=2)
    assert asked == [
        {"sleeps": False, "offloads": False},
        {"sleeps": False, "offloads": True},
    ]


def test_what_was_made_of_layers_is_part_of_the_compile_key(make):
    """vLLM hashes additional_config at the first forward pass, after loading."""

    def key(session, *layers):
        for layer in layers:
            attach(session, layer, load=False)
        for layer in layers:
            layer.quant_method.process_weights_after_loading(layer)
        return session.vllm_config.additional_config["vllm_sparse"][LAYERS]

    ours = key(make(kernels="on"), Linear())
    assert key(make(kernels="on"), Linear()) == ours
    assert key(make(kernels="off"), Linear()) != ours
    assert (
        key(make(kernels="on"), Linear(), Linear("model.layers.1.mlp.up_proj")) != ours
    )
    empty = Linear()
    empty.weight.data = torch.empty(0)  # nothing of ours becomes of it
    assert key(make(kernels="on"), empty) != ours


def test_the_key_reaches_copies_of_the_configuration(make):
    session = make(kernels="on")
    other = SimpleNamespace(additional_config={"vllm_sparse": {"phase": "both"}})
    session.sign(other)
    attach(session, Linear())
    found = other.additional_config["vllm_sparse"]
    assert found["phase"] == "both"
    assert found[FINGERPRINT] == session.config.fingerprint
    mine = session.vllm_config.additional_config["vllm_sparse"]
    assert found[LAYERS] == mine[LAYERS]


@pytest.mark.parametrize("kernels", ["on", "off"])
def test_a_reload_does_not_wait_for_our_buffers(make, kernels):
    layer = Linear()
    attach(make("8:16", "wina", ("d_pts", "var"), kernels=kernels), layer)
    assert any(name.startswith("vllm_sparse_") for name in dict(layer.named_buffers()))
    assert get_layer_size(layer) == layer.weight.numel()


def test_a_dense_layer_is_only_looked_at_for_zeros(make):
    data = {
        "groups": {"g": {"targets": ["re:.*none"], "activation": {"pattern": "2:4"}}}
    }
    config = SparsityConfig.parse(data, source="test")
    layer = Linear()
    state = attach(make.build(config), layer, load=False)
    assert isinstance(layer.quant_method, GpuLinearMethod)
    assert state.backend == "dense"
    for options in ({"sparse_weights": "off"}, {"kernels": "on"}):
        layer = Linear()
        attach(make.build(config, **options), layer, load=False)
        assert isinstance(layer.quant_method, UnquantizedLinearMethod)


def test_shared_lists_are_warned_about(make, monkeypatch):
    said = []
    monkeypatch.setattr(
        owner.logger, "warning_once", lambda text, *a: said.append(text)
    )
    attach(make(), Linear(), load=False)
    assert said == []
    attach(make(shared_lists="auto"), Linear(), load=False)
    assert "the answer to a request depends on the requests beside it" in said[0]


def test_how_the_engine_s_problem_is_found(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(support, "installed_triton", lambda: None)
    assert support.engine_problem() == "triton is not installed"
    monkeypatch.setattr(support, "installed_triton", lambda: "3.9")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert support.engine_problem() == "torch sees no CUDA device"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    assert support.engine_problem() == "compute capability 7.5 is below 8.0"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.delenv("VLLM_BATCH_INVARIANT", raising=False)
    assert support.engine_problem() is None
    assert "--enable-sleep-mode" in support.engine_problem(sleeps=True)
    assert "offloaded" in support.engine_problem(offloads=True)
    monkeypatch.setenv("VLLM_BATCH_INVARIANT", "1")
    assert "VLLM_BATCH_INVARIANT" in support.engine_problem()


def test_the_installed_triton():
    assert support.installed_triton()


def imported(code):
    """Return the modules of a fresh process after some code."""
    code = f"import json, sys\n{code}\nprint(json.dumps(list(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_off_means_off():
    """A session alone imports nothing of the GPU, and its layer no kernel.

    vLLM imports Triton by itself; our kernels come with the first sparse step.
    """
    before = imported("import vllm_sparse.session")
    assert not [name for name in before if name.startswith("vllm_sparse.gpu")]
    after = imported("import vllm_sparse.session, vllm_sparse.gpu.method")
    assert "vllm_sparse.gpu.method" in after
    kernels = [name for name in after if name.endswith("_triton")]
    assert [name for name in kernels if name.startswith("nmsparse")] == []


def test_looking_for_support_needs_no_triton():
    assert "triton" not in imported("import vllm_sparse.gpu.support")
