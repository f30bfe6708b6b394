"""C++ ``sparsify_online`` and ``OnlinePlan``: equal to the reference.

Every ISA level runs this file: see ``test_cpu_isa.py``.
"""

from __future__ import annotations

import pytest
import torch
from support.cpu_kernels import (
    DTYPES,
    at_the_end,
    bits,
    hostile_memory,
    kernels,
    threads,
)
from support.online_cases import CRITERIA, MITIGATIONS, make_online, random

from nmsparse.dispatch import explain
from nmsparse.native.memory import k_major
from nmsparse.ops.linear import linear
from nmsparse.ops.linear.planned import SparseLinearPlan
from nmsparse.ops.online import Constants, Online, finish_online, online_linear
from nmsparse.ops.online.cpu import sparsify_online_cpu
from nmsparse.ops.online.planned import OnlinePlan
from nmsparse.ops.online.reference import sparsify_online_reference
from nmsparse.ops.sparsify import Correction, compact, sparsify
from nmsparse.ops.sparsify.cpu import sparsify_cpu
from nmsparse.ops.sparsify.reference import sparsify_reference
from nmsparse.pattern import NMPattern

PARTS = ("values", "scale", "token_shift", "residual")
ALL = ("var", "ls", "output_shift", "r_sparse")
SOME = ((), ("d_pts",), ("d_pts_median", *ALL), ("l_pts", *ALL), ("s_pts", "r_sparse"))
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 4e-2, torch.float16: 5e-3}


@pytest.fixture(autouse=True, scope="module")
def _kernels():
    with kernels():
        yield


def label(value):
    return "+".join(value) or "none" if isinstance(value, tuple) else None


def assert_same(found, expected):
    for name in PARTS:
        ours, theirs = getattr(found, name), getattr(expected, name)
        assert (ours is None) == (theirs is None), name
        if ours is None:
            continue
        assert ours.dtype is theirs.dtype
        assert ours.shape == theirs.shape
        if name == "scale":
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
        else:
            # Equal to the bit; a zero may have any sign, and a NaN any payload.
            assert torch.equal(ours.isnan(), theirs.isnan()), name
            assert torch.equal(ours.nan_to_num(0), theirs.nan_to_num(0)), name


@pytest.mark.parametrize("mitigation", MITIGATIONS, ids=label)
def test_every_combination_equals_the_reference(mitigation):
    weight = random(24, 32, seed=1)
    for seed, criterion in enumerate(CRITERIA):
        for groups in (False, True):
            online = make_online(
                "8:16", criterion, mitigation, weight=weight, groups=groups
            )
            x = random(5, 32, seed=seed)
            with hostile_memory():
                found = sparsify_online_cpu(at_the_end(x), online)
            assert_same(found, sparsify_online_reference(x, online))


@pytest.mark.parametrize("text", ["1:4", "3:5", "7:7", "16:32", "50%"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_odd_shapes_and_ties(dtype, text):
    inputs = 5 * 7 * 32 if text != "3:5" else 35
    weight = random(3, inputs, seed=1)
    for tokens in (0, 1, 3, 17):
        # Coarse values, so that ties occur in every group.
        x = (random(tokens, inputs, seed=2) * 2).round().div(2).to(dtype)
        for criterion in CRITERIA:
            for names in SOME:
                online = make_online(
                    text, criterion, names, weight=weight, groups=tokens == 3
                )
                with hostile_memory(), threads(2):
                    found = sparsify_online_cpu(at_the_end(x), online)
                assert_same(found, sparsify_online_reference(x, online))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_and_infinity(dtype):
    weight = random(8, 32, seed=1)
    x = random(4, 32, dtype=dtype, seed=3)
    x[0, 3], x[1, 7], x[1, 8], x[2, 9] = torch.nan, torch.inf, -torch.inf, torch.nan
    x[2, 10] = torch.inf
    for criterion in CRITERIA:
        for names in SOME:
            online = make_online("2:4", criterion, names, weight=weight, groups=True)
            found = sparsify_online_cpu(x, online)
            assert_same(found, sparsify_online_reference(x, online))


def test_layouts():
    online = make_online("8:16", mitigation=SOME[2], weight=random(24, 32), groups=True)
    x = random(32, 6, seed=4)
    expected = sparsify_online_cpu(x.t().contiguous(), online)
    assert_same(sparsify_online_cpu(x.t(), online), expected)
    before = x.clone()
    sparsify_online_cpu(x.t(), online)
    assert torch.equal(bits(x), bits(before)), "the input was modified"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sparsify_takes_a_correction(dtype):
    x = random(2, 3, 64, dtype=dtype, seed=5)
    parts = {
        "factor": random(64, seed=6).abs(),
        "channel_shift": random(64, seed=7),
        "token_shift": random(6, seed=8),
    }
    for names in (("factor",), ("channel_shift",), ("token_shift",), tuple(parts)):
        correction = Correction(**{name: parts[name] for name in names})
        pattern = NMPattern(2, 8)
        found = sparsify_cpu(x, pattern, "wina" if "factor" in names else "magnitude",
                             correction=correction)  # fmt: skip
        expected = sparsify_reference(x, pattern, "magnitude", correction)
        assert torch.equal(bits(found), bits(expected))
        listed = compact(x.view(6, 64), pattern, correction=correction)
        assert torch.equal(listed.to_dense().view(x.shape), found)


@pytest.mark.parametrize("op", ["sparsify", "compact"])
def test_criteria_without_their_factor_are_refused(op):
    run = {"sparsify": sparsify, "compact": compact}[op]
    for criterion in ("wina", "amber_pruner", "second_order"):
        assert explain(op, criterion=criterion).backend == "cpu"
        with pytest.raises(ValueError, match=f"{criterion} needs a factor per channel"):
            run(random(2, 16), NMPattern(2, 4), criterion=criterion)
    with pytest.raises(ValueError, match=r"sparsify: .* variance"):
        sparsify(random(2, 16), NMPattern(2, 4), correction=Correction(variance=True))
    with pytest.raises(ValueError, match=rf"{op}: factor has shape \(8,\)"):
        run(random(2, 16), NMPattern(2, 4), correction=Correction(torch.ones(8)))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_linear_scales_outputs_and_adds_a_constant(dtype, backend, monkeypatch):
    monkeypatch.setenv("NMSPARSE_BACKEND", backend)
    rows, scale, constant = (
        random(64, 41, dtype=dtype), random(41, seed=1), random(41, seed=2),
    )  # fmt: skip
    x = compact(
        random(5, 64, dtype=dtype),
        NMPattern(8, 16),
        correction=Correction(variance=True),
    )
    bias = random(41, dtype=dtype, seed=3)
    found = linear(x, rows, bias, output_scale=scale, constant=constant)
    wide = x.to_dense().double() @ rows.double() * x.scale.double()[:, None]
    wide = wide * (1 + scale.double()) + constant.double() + bias.double()
    torch.testing.assert_close(
        found, wide.to(dtype), rtol=TOLERANCE[dtype] / 4, atol=TOLERANCE[dtype] / 2
    )
    with pytest.raises(ValueError, match=r"output_scale has shape \(40,\)"):
        linear(x, rows, output_scale=scale[:40])


# -- the plan -------------------------------------------------------------------------


def plan_of(weight, online, tokens, **options):
    groups = online.parameters.channel_groups
    rows = k_major(weight if groups is None else weight[:, groups])
    constants = Constants.of(weight, online)
    return OnlinePlan(rows, online, tokens, constants=constants, **options)


@pytest.mark.parametrize("mitigation", MITIGATIONS, ids=label)
@pytest.mark.parametrize("criterion", CRITERIA)
def test_the_plan_equals_online_linear(criterion, mitigation):
    weight, bias = random(24, 32, seed=1), random(24, seed=2)
    for tokens, groups in ((1, True), (3, False), (3, True)):
        online = make_online(
            "8:16", criterion, mitigation, weight=weight, groups=groups
        )
        plan = plan_of(weight, online, tokens)
        # Other tokens at every call: buffers of the last one must not show.
        for seed in range(2):
            x = random(tokens, 32, seed=seed)
            nonzeros = torch.zeros(1, dtype=torch.int64)
            with hostile_memory():
                found = plan(at_the_end(x), bias, nonzeros)
            expected = online_linear(x, weight, bias, online)
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
            kept = sparsify_online_reference(x, online).values
            assert nonzeros == kept.count_nonzero()


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("text", ["3:8", "50%", "8:8"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_plans_of_every_dtype_and_shape(dtype, text, per_token):
    weight = (random(70, 96, seed=1) / 8).to(dtype)
    bias = random(70, dtype=dtype, seed=2)
    for names in SOME:
        for tokens in (0, 1, 2, 17):
            online = make_online(
                text, "second_order", names, weight=weight, groups=tokens == 2
            )
            plan = plan_of(weight, online, tokens, per_token=per_token)
            x = random(tokens, 96, dtype=dtype, seed=tokens)
            with threads(2):
                found = plan(x, bias)
            expected = online_linear(x, weight, bias, online)
            torch.testing.assert_close(
                found, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype]
            )


def test_a_plan_of_nothing_is_the_plain_plan():
    rows = k_major(random(40, 64, seed=1))
    x = random(3, 64)
    online = Online(NMPattern(8, 16))
    found = OnlinePlan(rows, online, 3)(x, None)
    assert torch.equal(found, SparseLinearPlan(rows, online.pattern, 3)(x, None))


def test_plans_do_not_share_memory():
    weight = random(24, 32, seed=1)
    names = ("d_pts", *ALL)
    first, second = (
        plan_of(weight * sign, make_online("8:16", "clact", names, weight=weight), 3)
        for sign in (1, -1)
    )
    x = random(3, 32)
    before = first(x, None)
    kept = before.clone()
    second(x + 1, None)
    first(x + 1, None)
    assert torch.equal(before, kept)
    assert torch.equal(first(x, None), kept)


def test_a_plan_refuses_missing_constants_and_other_inputs():
    weight = random(24, 32, seed=1)
    for name in ("d_pts", "l_pts"):
        online = make_online("8:16", mitigation=(name,), weight=weight)
        with pytest.raises(ValueError, match="row_sum or constant is missing"):
            OnlinePlan(k_major(weight), online, 3)
    plan = plan_of(weight, make_online("8:16", mitigation=("d_pts",), weight=weight), 3)
    for x in (torch.ones(4, 32), torch.ones(32), torch.ones(3, 32).half()):
        with pytest.raises(ValueError, match=r"Expected torch.float32 \(3, 32\)"):
            plan(x, None)


def test_finish_rounds_once_in_the_dtype_of_the_product():
    weight = random(24, 32, seed=1)
    online = make_online("8:16", mitigation=("d_pts", *ALL), weight=weight)
    x = random(4, 32, dtype=torch.bfloat16)
    found = sparsify_online_cpu(x, online)
    product = (found.values.float() @ weight.t()).bfloat16()
    y = finish_online(product, found, online, Constants.of(weight, online))
    assert y.dtype is torch.bfloat16
    torch.testing.assert_close(
        y, online_linear(x, weight, None, online), rtol=4e-2, atol=4e-2
    )
