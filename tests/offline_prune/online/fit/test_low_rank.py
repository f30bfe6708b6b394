"""R-Sparse against a plain singular value decomposition."""

from __future__ import annotations

import pytest
import torch

from nmsparse.ops.online import online_linear
from offline_prune.online.fit import low_rank
from offline_prune.online.fit.options import FitOptions
from offline_prune.online.fit.parts import with_tensors

# Fewer outputs than inputs, and more: two ways to the same vectors.
SHAPES = [(5, 8), (12, 8)]


def random(outputs, inputs, seed=0):
    g = torch.Generator().manual_seed(seed)
    matrix = torch.randn(outputs, inputs, generator=g).double()
    tokens = torch.randn(40, inputs, generator=g).double()
    tokens *= torch.linspace(0.1, 3, inputs)
    return matrix, tokens.T @ tokens, torch.rand(outputs, generator=g).double() + 0.1


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_no_matrix_of_that_rank_is_better(shape, weighted):
    matrix, moment, energy = random(*shape)
    a, b = low_rank.decompose(
        matrix, moment, rank=3, energy=energy if weighted else None
    )
    assert a.shape == (shape[0], 3)
    assert b.shape == (3, shape[1])
    root = (energy / energy.mean()).sqrt() if weighted else torch.ones(shape[0])
    half = torch.linalg.cholesky(moment)

    def error(found):
        return ((root[:, None] * (matrix - found)) @ half).square().sum()

    # Eckart and Young: what is left are the smaller singular values.
    sizes = torch.linalg.svdvals((root[:, None] * matrix) @ half)
    torch.testing.assert_close(error(a @ b), sizes[3:].square().sum())
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    plain = u[:, :3] * s[:3] @ vt[:3]
    assert error(plain) > 1.1 * error(a @ b), "the test could not fail"


@pytest.mark.parametrize("shape", SHAPES)
def test_singular_values_are_shared_evenly(shape):
    matrix, moment, _ = random(*shape)
    a, b = low_rank.decompose(matrix, moment, rank=3)
    torch.testing.assert_close(a.T @ a, b @ moment @ b.T)
    sizes = (a.T @ a).diagonal()
    assert (sizes[:-1] > sizes[1:]).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_directions_without_inputs_are_left_out(shape):
    matrix, moment, _ = random(*shape)
    moment[:, 2:] = 0
    moment[2:] = 0
    a, b = low_rank.decompose(matrix, moment, rank=4)
    assert a.isfinite().all()
    assert b.isfinite().all()
    assert int((a.abs().sum(0) > 0).sum()) == 2
    a, b = low_rank.decompose(matrix, torch.zeros_like(moment), rank=4)
    assert not a.any()
    assert not b.any()


def fit(made, online, evidence=None, **options):
    evidence = evidence or made.evidence()
    return low_rank.fit(evidence, online, options=FitOptions(**options))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mitigation", [(), ("d_pts",)])
def test_at_full_rank_the_result_is_the_dense_output(case, shape, mitigation):
    made = case(*shape)
    online = made.online("r_sparse", *mitigation)
    fitted = with_tensors(online, fit(made, online, rank=100))
    assert fitted.parameters.low_rank_in.shape[0] == min(shape)
    for x in made.xs:
        dense = x[1:] @ made.weight.T + made.bias
        found = online_linear(x[1:], made.weight, made.bias, fitted)
        torch.testing.assert_close(found, dense, rtol=1e-3, atol=1e-3)
        bare = online_linear(x[1:], made.weight, made.bias, online)
        assert (bare - dense).abs().max() > 0.5, "the test could not fail"


def test_after_a_scale_it_fits_what_is_really_missing(case):
    made = case(12, 8, tokens=60)
    online = made.online("ls", "r_sparse")
    online = with_tensors(online, {"output_scale": torch.full((12,), 0.4)})
    tensors = fit(made, online, rank=8, ridge=1e-6)
    plain = fit(made, made.online("r_sparse"), rank=8)

    def left(tensors):
        seen = made.evidence().seen(with_tensors(online, tensors))
        return sum(float(s.weights @ s.left.square().sum(1)) for s in seen)

    assert left(tensors) < 0.95 * left(plain)


def test_important_outputs_are_served_first(case):
    made = case(12, 8, tokens=60)
    online = made.online("r_sparse")
    energy = torch.full((12,), 1e-3)
    energy[3] = 1.0

    def left(tensors):
        seen = made.evidence().seen(with_tensors(online, tensors))
        return sum(float(s.weights @ s.left[:, 3].square()) for s in seen)

    weighted = made.evidence(output_energy=energy)
    assert left(fit(made, online, weighted, rank=1)) < 0.1 * left(
        fit(made, online, rank=1)
    )


def test_matrices_have_the_dtype_of_the_weight(case):
    made = case(6, 8, dtype=torch.bfloat16)
    tensors = fit(made, made.online("r_sparse"), rank=2)
    assert {x.dtype for x in tensors.values()} == {torch.bfloat16}
