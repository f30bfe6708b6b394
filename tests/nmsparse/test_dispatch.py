"""Dispatch: best first, every refusal is told, and a forced backend is obeyed."""

from __future__ import annotations

import sys

import pytest
import torch

from nmsparse import dispatch
from nmsparse.dispatch import BACKEND_ENV, Backend, Call, choose, explain
from nmsparse.ops.sparsify import sparsify
from nmsparse.ops.sparsify.reference import sparsify_reference
from nmsparse.pattern import NMPattern

REFUSAL = "m must be 4, not 16"


def fast_sparsify(x, pattern, criterion):
    """Stand in for a faster backend; its result is recognisable."""
    return torch.full_like(x, 42.0)


def refuse(call):
    return None if call.pattern.m == 4 else REFUSAL.replace("16", str(call.pattern.m))


@pytest.fixture(autouse=True)
def _clean(monkeypatch):
    """Forget decisions before and after, and any backend forced from outside."""
    monkeypatch.delenv(BACKEND_ENV, raising=False)
    dispatch._decide.cache_clear()
    yield
    dispatch._decide.cache_clear()
    dispatch._load.cache_clear()


@pytest.fixture
def fast(monkeypatch):
    """Put a better backend, which takes only m=4, before the others."""
    backend = Backend("fast", "fast_backend_module:run", refuse, "made for this test")
    table = (backend, *dispatch.BACKENDS["sparsify"])
    monkeypatch.setitem(dispatch.BACKENDS, "sparsify", table)
    module = type("Module", (), {"run": staticmethod(fast_sparsify)})
    monkeypatch.setitem(sys.modules, "fast_backend_module", module)


@pytest.mark.parametrize("op", dispatch.BACKENDS)
def test_every_op_ends_with_a_reference_that_takes_everything(op):
    last = dispatch.BACKENDS[op][-1]
    assert last.name == "reference"
    assert last.refuse(Call(op, "meta", "float8", 0, NMPattern(3, 7))) is None


@pytest.mark.parametrize(
    "backend",
    [b for table in dispatch.BACKENDS.values() for b in table],
    ids=lambda b: b.target,
)
def test_targets_exist(backend):
    assert callable(dispatch._load(backend.target))


def test_explain_names_the_reason():
    decision = explain("sparsify", device="meta", pattern=NMPattern(8, 16))
    assert decision.op == "sparsify"
    assert decision.backend == dispatch.BACKENDS["sparsify"][-1].name
    assert "not faster than dense" in decision.reason
    assert str(decision).startswith("sparsify: reference (pure torch")


def test_call_describes_a_tensor():
    x = torch.zeros(2, 3, 16, dtype=torch.bfloat16)
    expected = Call("sparsify", "cpu", "bfloat16", 6, NMPattern(2, 4))
    assert Call.of("sparsify", x, NMPattern(2, 4)) == expected
    assert Call.of("linear", torch.zeros(0, 16), None).tokens == 0
    assert Call.of("linear", torch.zeros(3, 0), None).tokens == 0


def test_a_better_backend_is_chosen_where_it_accepts(fast):
    decision = explain("sparsify", pattern=NMPattern(2, 4))
    assert decision.backend == "fast"
    assert decision.reason == "made for this test"
    assert decision.rejected == ()
    assert str(decision) == "sparsify: fast (made for this test)"
    assert (sparsify(torch.ones(1, 4), NMPattern(2, 4)) == 42.0).all()


def test_a_better_backend_that_refuses_is_listed_with_its_reason(fast):
    decision = explain("sparsify", device="meta", pattern=NMPattern(8, 16))
    assert decision.backend == "reference"
    rejected = (
        ("fast", REFUSAL),
        ("cpu", "the tensor is on meta"),
        ("triton", "the tensor is on meta"),
    )
    assert decision.rejected == rejected
    refusals = "cpu: the tensor is on meta; triton: the tensor is on meta"
    assert str(decision).endswith(f"[fast: {REFUSAL}; {refusals}]")
    assert sparsify(torch.ones(1, 16), NMPattern(8, 16)).sum() == 8.0


def test_forced_backend_is_used_and_said(fast, monkeypatch):
    monkeypatch.setenv(BACKEND_ENV, "reference")
    decision = explain("sparsify", pattern=NMPattern(2, 4))
    assert decision.backend == "reference"
    assert decision.reason.startswith(f"forced by {BACKEND_ENV}; ")
    assert decision.rejected == ()
    call = Call("sparsify", "cpu", "float32", 1, NMPattern(2, 4))
    assert choose(call) is sparsify_reference


def test_the_environment_is_read_at_every_call(fast, monkeypatch):
    x = torch.ones(1, 4)
    assert sparsify(x, NMPattern(2, 4)).sum() == 168.0
    monkeypatch.setenv(BACKEND_ENV, "reference")
    assert sparsify(x, NMPattern(2, 4)).sum() == 2.0
    monkeypatch.setenv(BACKEND_ENV, "")
    assert sparsify(x, NMPattern(2, 4)).sum() == 168.0


def test_forced_backend_that_refuses_is_an_error(fast, monkeypatch):
    monkeypatch.setenv(BACKEND_ENV, "fast")
    with pytest.raises(
        RuntimeError,
        match=rf"sparsify: no backend for .*m=16.*\(fast: {REFUSAL}\)\. Unset "
        rf"{BACKEND_ENV} to let the reference run",
    ):
        sparsify(torch.ones(1, 16), NMPattern(8, 16))


def test_unknown_forced_backend(monkeypatch):
    monkeypatch.setenv(BACKEND_ENV, "referense")
    with pytest.raises(
        ValueError,
        match=rf"{BACKEND_ENV}='referense': Unknown backend of sparsify 'referense'\. "
        r"Did you mean: reference\? Available: .*reference",
    ):
        explain("sparsify", pattern=NMPattern(2, 4))


def test_unknown_op():
    with pytest.raises(
        ValueError, match=r"Unknown op 'sparsfy'\. Did you mean: sparsify\? Available:"
    ):
        explain("sparsfy")
