"""Online sparsity in pure torch: oracles of the methods, and every combination."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.online_cases import (
    CRITERIA,
    MITIGATIONS,
    SHIFTS,
    exact_online,
    make_online,
    make_parameters,
    random,
)

from nmsparse.criteria import criteria
from nmsparse.keep import verify
from nmsparse.ops.online import (
    Constants,
    Online,
    finish_online,
    online_linear,
    prepare,
    sparsify_online,
)
from nmsparse.ops.online.reference import sparsify_online_reference
from nmsparse.parameters import Parameters
from nmsparse.pattern import NMPattern, parse_pattern

X = torch.tensor([[4.0, -3.0, 1.0, 2.0], [0.5, 3.0, -1.0, 2.0]])
WEIGHT, BIAS = random(24, 32, seed=1), random(24, seed=2)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LEARNED = ("s_pts", "l_pts", "ls", "output_shift", "r_sparse")


@pytest.fixture(autouse=True)
def _reference(monkeypatch):
    monkeypatch.setenv("NMSPARSE_BACKEND", "reference")


def label(value):
    return "+".join(value) or "none" if isinstance(value, tuple) else None


def online_of(*mitigation, pattern="2:4"):
    return Online(parse_pattern(pattern), mitigation=mitigation)


# -- oracles of the methods -----------------------------------------------------------


def test_act_by_hand():
    found = sparsify_online(X, online_of())
    assert found.values.tolist() == [[4.0, -3.0, 0.0, 0.0], [0.0, 3.0, 0.0, 2.0]]
    assert found.scale is found.token_shift is found.residual is None


@pytest.mark.parametrize(
    ("name", "shift", "dense"),
    [
        ("d_pts", [1.0, 1.125], [[4.0, -3.0, 1.0, 1.0], [1.125, 3.0, -1.0, 1.125]]),
        ("d_pts_median", [1.0, 0.5], [[4.0, -3.0, 1.0, 1.0], [0.5, 3.0, -1.0, 0.5]]),
    ],
)
def test_d_pts_by_hand(name, shift, dense):
    found = sparsify_online(X, online_of(name))
    assert found.token_shift.tolist() == shift
    assert (found.values + found.token_shift[:, None]).tolist() == dense
    # A weight of one row a channel shows the dense view.
    assert online_linear(X, torch.eye(4), None, online_of(name)).tolist() == dense


def test_var_by_hand():
    found = sparsify_online(X, online_of("var"))
    expected = torch.tensor([1.024941, 1.166667])
    torch.testing.assert_close(found.scale, expected, rtol=1e-6, atol=0)


def test_clact_differs_from_act():
    x = torch.tensor([[2.0, 3.0], [10.0, 0.1]])
    act, found = (
        sparsify_online(x, Online(NMPattern(1, 2), criterion)).values
        for criterion in ("magnitude", "clact")
    )
    assert act.tolist() == [[0.0, 3.0], [10.0, 0.0]]
    assert found.tolist() == [[2.0, 0.0], [10.0, 0.0]]


@pytest.mark.parametrize("shift", SHIFTS, ids=lambda s: s or "none")
@pytest.mark.parametrize("groups", [False, True], ids=["in order", "groups"])
def test_var_restores_the_variance_of_every_token(shift, groups):
    names = tuple(name for name in (shift, "var") if name)
    online = make_online("2:8", mitigation=names, weight=WEIGHT, groups=groups)
    x = random(9, 32, seed=3)
    found = sparsify_online(x, online)
    u = found.values + replace_values(x, online)
    scaled = found.values.double() * found.scale[:, None]
    torch.testing.assert_close(
        scaled.var(dim=1), u.double().var(dim=1), rtol=1e-5, atol=0
    )


def replace_values(x, online):
    """Return the dropped part of the shifted tokens."""
    more = make_parameters(("r_sparse",))
    residual = Online(
        online.pattern,
        online.criterion,
        (*online.mitigation, "r_sparse"),
        replace(
            online.parameters,
            low_rank_in=more.low_rank_in,
            low_rank_out=more.low_rank_out,
        ),
    )
    return sparsify_online(x, residual).residual


@given(st.integers(-40, 40), st.sampled_from(["d_pts", "d_pts_median"]))
@settings(deadline=None)
def test_d_pts_is_invariant_to_a_constant(steps, name):
    # Multiples of 1/8 and sums of few of them: nothing is rounded.
    x = (random(5, 32, seed=4) * 8).round() / 8
    constant = steps / 8
    online = make_online("8:16", mitigation=(name, "var"), weight=WEIGHT)
    found = online_linear(x + constant, WEIGHT, BIAS, online)
    expected = online_linear(x, WEIGHT, BIAS, online) + constant * WEIGHT.sum(1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_learned_parameters_of_zero_are_none(criterion):
    x = random(6, 32, seed=5)
    plain = make_online("8:16", criterion, weight=WEIGHT)
    expected = online_linear(x, WEIGHT, BIAS, plain)
    for name in LEARNED:
        online = make_online("8:16", criterion, (name,), weight=WEIGHT, zero=True)
        found = online_linear(x, WEIGHT, BIAS, online)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6, msg=name)
    # Of R-Sparse, A = 0 is enough.
    online = make_online("8:16", criterion, ("r_sparse",), weight=WEIGHT)
    zero = torch.zeros_like(online.parameters.low_rank_out)
    online = replace(online, parameters=replace(online.parameters, low_rank_out=zero))
    assert torch.equal(online_linear(x, WEIGHT, BIAS, online), expected)


# -- every combination ----------------------------------------------------------------


@pytest.mark.parametrize("mitigation", MITIGATIONS, ids=label)
@pytest.mark.parametrize("criterion", CRITERIA)
def test_the_sparse_algebra_is_the_dense_definition(criterion, mitigation):
    x = random(7, 32, seed=6)
    cases = (("2:4", False), ("3:8", True), ("8:16", True), ("16:16", False))
    for pattern, groups in cases:
        online = make_online(
            pattern, criterion, mitigation, weight=WEIGHT, groups=groups
        )
        found = online_linear(x, WEIGHT, BIAS, online)
        expected = exact_online(x, WEIGHT, BIAS, online)
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("mitigation", MITIGATIONS, ids=label)
@pytest.mark.parametrize("criterion", CRITERIA)
def test_all_channels_give_the_dense_output(criterion, mitigation):
    learned = any(name in LEARNED for name in mitigation)
    for dtype in DTYPES:
        x = random(5, 32, seed=8, dtype=dtype)
        online = make_online(
            "16:16", criterion, mitigation, weight=WEIGHT, zero=True, groups=learned
        )
        found = online_linear(x, WEIGHT, BIAS, online)
        expected = (x.float() @ WEIGHT.t() + BIAS).to(dtype)
        if learned:  # a shifted activation is rounded to its dtype
            bound = max(16 * torch.finfo(dtype).eps, 1e-5)
            torch.testing.assert_close(found, expected, rtol=bound, atol=bound)
        else:
            assert torch.equal(found, expected), "a bias, or a bit, was lost"


@pytest.mark.parametrize("shift", ["s_pts", "l_pts"])
def test_a_channel_shift_is_given_back_whole(shift):
    online = make_online("16:16", mitigation=(shift,), weight=WEIGHT)
    x = random(5, 32, seed=9)
    found = online_linear(x, WEIGHT, BIAS, online)
    torch.testing.assert_close(found, x @ WEIGHT.t() + BIAS, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mitigation", MITIGATIONS, ids=label)
def test_at_most_n_of_m_before_the_shift_is_given_back(mitigation):
    x = random(6, 32, seed=10)
    for criterion in CRITERIA:
        for text in ("1:4", "3:8", "8:16", "70%"):
            online = make_online(text, criterion, mitigation, weight=WEIGHT)
            values = sparsify_online(x, online).values
            assert verify(values, online.pattern)
            # Of random values none is zero: exactly N of each group are used.
            kept, group = online.pattern.group(32)
            assert ((values != 0).sum(1) == 32 // group * kept).all()


def test_groups_are_taken_over_permuted_channels():
    online = make_online("2:8", mitigation=("var",), weight=WEIGHT, groups=True)
    x = random(6, 32, seed=10)
    values = sparsify_online(x, online).values
    assert verify(values[:, online.parameters.channel_groups], online.pattern)
    assert not verify(values, online.pattern)


@pytest.mark.parametrize("mitigation", MITIGATIONS, ids=label)
@pytest.mark.parametrize("criterion", [c for c in CRITERIA if c != "clact"])
def test_a_token_does_not_depend_on_its_neighbours(criterion, mitigation):
    assert criteria.get(criterion).per_token
    online = make_online("4:8", criterion, mitigation, weight=WEIGHT, groups=True)
    x = random(9, 32, seed=11)
    together = sparsify_online(x, online)
    alone = sparsify_online(x[4:5], online)
    for name in ("values", "scale", "token_shift", "residual"):
        whole, one = getattr(together, name), getattr(alone, name)
        assert (whole is None) == (one is None)
        assert whole is None or torch.equal(whole[4:5], one)


def test_clact_does_depend_on_them():
    x = torch.tensor([[2.0, 3.0], [10.0, 0.1]])
    online = Online(NMPattern(1, 2), "clact")
    alone = sparsify_online(x[:1], online).values
    assert not torch.equal(sparsify_online(x, online).values[:1], alone)


@pytest.mark.parametrize("bias", [None, BIAS], ids=["no bias", "bias"])
@pytest.mark.parametrize("mitigation", MITIGATIONS, ids=label)
def test_in_pieces_as_a_layer_does_it(mitigation, bias):
    online = make_online("4:8", "wina", mitigation, weight=WEIGHT)
    x = random(5, 32, seed=12)
    found = sparsify_online(x, online)
    by_weight = Constants.of(WEIGHT, online)
    by_product = Constants.from_product(lambda x: x @ WEIGHT.t(), online, like=x)
    for constants in (by_weight, by_product):
        y = finish_online(found.values @ WEIGHT.t(), found, online, constants)
        y = y if bias is None else y + bias
        expected = online_linear(x, WEIGHT, bias, online)
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_tokens(dtype):
    names = ("d_pts", "var", "ls", "output_shift", "r_sparse")
    for criterion in CRITERIA:
        online = make_online("4:8", criterion, names, weight=WEIGHT, groups=True)
        found = online_linear(torch.zeros(0, 32, dtype=dtype), WEIGHT, BIAS, online)
        assert found.shape == (0, 24)
        assert found.dtype is dtype


def test_nan_and_infinity_stay_where_they_are():
    online = make_online("2:4", mitigation=("r_sparse", "var"), weight=WEIGHT)
    x = random(3, 32, seed=13)
    x[1, 5], x[1, 6], x[1, 7] = torch.nan, torch.inf, -torch.inf
    found = sparsify_online(x, online)
    assert found.values[1, 5].isnan()
    assert found.values[1, 6] == torch.inf
    assert found.residual[1, 7] == -torch.inf
    assert found.residual[1, :7].isfinite().all()
    assert found.scale[1] == 1
    plain = sparsify_online(x[::2], online)
    assert torch.equal(found.values[::2], plain.values)


def test_infinity_times_a_factor_of_zero_is_a_nan_that_is_kept():
    x = torch.tensor([[1.0, torch.inf, 2.0, 3.0]])
    parameters = Parameters(factor=torch.tensor([1.0, 0.0, 1.0, 1.0]))
    online = Online(NMPattern(1, 4), "second_order", (), parameters)
    found = sparsify_online_reference(x, online).values
    assert found.tolist() == [[0.0, torch.inf, 0.0, 0.0]]


# -- refusals -------------------------------------------------------------------------


def test_missing_and_unused_parameters_are_refused():
    with pytest.raises(ValueError, match=r"Mitigation ls needs output_scale\. .*calib"):
        online_of("ls").check(4, 4)
    unused = Online(NMPattern(2, 4), parameters=make_parameters(("l_pts",)))
    with pytest.raises(ValueError, match=r"channel_shift, but no .* l_pts or s_pts"):
        unused.check(32, 24)
    with pytest.raises(ValueError, match=r"Criterion second_order needs factor"):
        Online(NMPattern(2, 4), "second_order").check(32, 24)
    with pytest.raises(ValueError, match=r"Criterion wina needs factor, .*prepare"):
        Online(NMPattern(2, 4), "wina").check(32, 24)
    for criterion in ("magnitude", "clact"):
        given = Parameters(factor=torch.ones(32))
        with pytest.raises(ValueError, match=f"criterion {criterion} takes none"):
            Online(NMPattern(2, 4), criterion, (), given).check(32, 24)
    with pytest.raises(ValueError, match="both take the slot shift"):
        online_of("d_pts", "l_pts").check(32, 24)
    with pytest.raises(ValueError, match="in_features 30 is not a multiple"):
        online_of().check(30, 24)
    with pytest.raises(ValueError, match="Unknown criterion 'act'"):
        Online(NMPattern(2, 4), "act").check(32, 24)


@pytest.mark.parametrize("criterion", ["wina", "amber_pruner", "second_order"])
def test_a_missing_factor_is_never_ignored(criterion):
    online = Online(NMPattern(2, 4), criterion)
    with pytest.raises(ValueError, match=f"Criterion {criterion} needs a factor"):
        sparsify_online(X, online)
    assert not online.is_plain


def test_missing_constants_are_refused():
    for name, part in (("d_pts", "row_sum"), ("l_pts", "constant")):
        online = make_online("4:8", mitigation=(name,), weight=WEIGHT)
        found = sparsify_online(random(2, 32), online)
        with pytest.raises(ValueError, match=f"{part} is missing"):
            finish_online(found.values @ WEIGHT.t(), found, online, Constants())


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"x has shape \(4,\)\. Expected \[T, K\]"):
        sparsify_online(X[0], online_of())
    with pytest.raises(ValueError, match=r"Expected \[T, K\] and \[O, K\]"):
        online_linear(X, WEIGHT, None, online_of())
    online = make_online("4:8", mitigation=("ls",), weight=WEIGHT)
    with pytest.raises(ValueError, match=r"output_scale has shape \[24\]"):
        online_linear(random(2, 32), WEIGHT[:20], None, online)


# -- preparation ----------------------------------------------------------------------


def test_prepare_makes_the_factor_once():
    online = Online(NMPattern(2, 4), "wina", ("var",))
    made = prepare(WEIGHT, online)
    torch.testing.assert_close(made.parameters.factor, WEIGHT.norm(dim=0))
    assert prepare(WEIGHT * 2, made) is made
    for plain in (online_of(), Online(NMPattern(2, 4), "clact")):
        assert prepare(WEIGHT, plain) is plain
    with pytest.raises(ValueError, match="parameters file"):
        prepare(WEIGHT, Online(NMPattern(2, 4), "second_order"))


def test_what_is_plain():
    assert online_of().is_plain
    assert not online_of("var").is_plain
    assert not Online(NMPattern(2, 4), "clact").is_plain
    assert not make_online("2:4", groups=True).is_plain
