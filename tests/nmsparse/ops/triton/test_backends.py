"""The ops through dispatch, Triton forced, against their references."""

from __future__ import annotations

import pytest
import torch
from support.selections import DTYPES, bits, permutation, random

from nmsparse import dispatch
from nmsparse.dispatch import BACKEND_ENV, Call, explain
from nmsparse.ops import gpu
from nmsparse.ops.online import Online, sparsify_online
from nmsparse.ops.online.reference import sparsify_online_reference
from nmsparse.ops.sparsify import Correction, compact, sparsify
from nmsparse.ops.sparsify.reference import compact_reference, sparsify_reference
from nmsparse.parameters.layer import Parameters
from nmsparse.pattern import NMPattern, parse_pattern

PATTERNS = ("2:4", "8:16", "3:5", "80:80", "50%")


@pytest.fixture(autouse=True)
def _forced(monkeypatch):
    monkeypatch.setenv(BACKEND_ENV, "triton")
    dispatch._decide.cache_clear()
    yield
    dispatch._decide.cache_clear()


@pytest.mark.parametrize("text", PATTERNS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sparsify_and_compact(text, dtype, device):
    pattern = parse_pattern(text)
    x = random(2, 3, 160, dtype=dtype, coarse=True).to(device)
    assert explain("sparsify", device=device).backend == "triton"
    expected = sparsify_reference(x, pattern, "magnitude")
    assert torch.equal(bits(sparsify(x, pattern)), bits(expected))
    correction = Correction(
        factor=random(160).abs().to(device),
        token_shift=random(6, seed=1).to(device),
    )
    expected = sparsify_reference(x, pattern, "magnitude", correction)
    assert torch.equal(
        bits(sparsify(x, pattern, correction=correction)), bits(expected)
    )
    flat = x.view(6, 160)
    correction = Correction(channel_shift=random(160).to(device), variance=True)
    found = compact(flat, pattern, correction=correction)
    wanted = compact_reference(flat, pattern, "magnitude", correction)
    assert found.indices.dtype is torch.int32
    assert torch.equal(found.indices, wanted.indices)
    assert torch.equal(bits(found.values), bits(wanted.values))
    torch.testing.assert_close(found.scale, wanted.scale, rtol=1.2e-7, atol=0.0)
    assert found.in_features == 160


def test_clact_weighs_with_the_norms_of_the_step(device):
    x = random(4, 64, seed=3).to(device)
    pattern = NMPattern(8, 16)
    expected = sparsify_reference(x, pattern, "clact")
    assert not torch.equal(expected, sparsify(x, pattern))
    assert torch.equal(sparsify(x, pattern, criterion="clact"), expected)
    found = compact(x, pattern, criterion="clact")
    assert torch.equal(found.to_dense(), expected)


@pytest.mark.parametrize("shape", [(0, 16), (2, 0, 16), (3, 0)])
def test_empty(shape, device):
    x = torch.empty(shape, device=device)
    assert sparsify(x, NMPattern(2, 4)).shape == shape
    with pytest.raises(ValueError, match="not a multiple of m=5"):
        sparsify(torch.empty(0, 16, device=device), NMPattern(2, 5))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("statistic", [None, "d_pts", "d_pts_median"])
@pytest.mark.parametrize("criterion", ["magnitude", "second_order", "clact"])
@pytest.mark.parametrize("learned", [False, True])
def test_online(dtype, statistic, criterion, learned, device):
    names = () if statistic is None else (statistic,)
    tensors = {}
    if criterion == "second_order":
        tensors["factor"] = random(80, seed=4).abs()
    if learned:
        if statistic is None:
            names = ("l_pts",)
            tensors["channel_shift"] = random(80, seed=5)
        names = (*names, "var", "r_sparse")
        tensors["low_rank_in"] = random(2, 80, seed=6).to(dtype)
        tensors["low_rank_out"] = random(8, 2, seed=7).to(dtype)
        tensors["channel_groups"] = permutation(80, "cpu")
    parameters = Parameters(**{name: t.to(device) for name, t in tensors.items()})
    online = Online(NMPattern(8, 16), criterion, names, parameters)
    online.check(80, 8)
    x = random(3, 80, dtype=dtype, seed=8, coarse=True).to(device)
    x[0, 3] = 0.0
    found = sparsify_online(x, online)
    expected = sparsify_online_reference(x, online)
    assert torch.equal(bits(found.values), bits(expected.values))
    assert (found.residual is None) == (expected.residual is None) == (not learned)
    if learned:
        assert torch.equal(bits(found.residual), bits(expected.residual))
        torch.testing.assert_close(found.scale, expected.scale, rtol=1.2e-7, atol=0.0)
    if statistic:
        torch.testing.assert_close(
            found.token_shift, expected.token_shift, rtol=1.2e-7, atol=0.0
        )
    else:
        assert found.token_shift is None


def call(op="sparsify", device="cpu", dtype="bfloat16", tokens=1, **more):
    return Call(op, device, dtype, tokens, **more)


def test_refusals(monkeypatch):
    assert gpu.refuse(call(device="meta")) == "the tensor is on meta"
    assert gpu.refuse(call(dtype="float64")) == "no kernel for float64"
    assert gpu.refuse(call(criterion="own")) == "criterion own is not in the kernel"
    packed = gpu.refuse(call("packed", tokens=17))
    assert packed == "17 tokens: more than 16 are for a dense product"
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: None)
    assert gpu.refuse(call()) == "triton is not installed"


@pytest.mark.parametrize(
    ("forced", "interpreted"), [("triton", "0"), ("cpu", "1"), ("", "1")]
)
def test_the_interpreter_is_never_chosen_by_itself(forced, interpreted, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert gpu.refuse(call()) is None
    monkeypatch.setenv("TRITON_INTERPRET", interpreted)
    monkeypatch.setenv(BACKEND_ENV, forced)
    assert gpu.refuse(call()) == "the tensor is on cpu"


def test_old_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    reason = "the GPU has compute capability 7.5, below 8.0"
    assert gpu.refuse(call(device="cuda")) == reason
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    assert gpu.refuse(call(device="cuda")) is None
    assert gpu.refuse(call("packed", "cuda", tokens=16)) is None
    monkeypatch.setattr(torch.version, "cuda", None)
    assert gpu.refuse(call(device="cuda")) == "tested with CUDA only"
