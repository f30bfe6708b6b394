"""CLACT: it differs from magnitude, and equals it for one token."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nmsparse.criteria.clact import clact
from nmsparse.ops.sparsify import compact, sparsify
from nmsparse.pattern import NMPattern


def test_hand_computed():
    # methods: 2 * |(2, 10)| = 20.40 beats 3 * |(3, 0.1)| = 9.00.
    x = torch.tensor([[2.0, 3.0], [10.0, 0.1]])
    scores = x.abs() * clact.batch_factor(x)
    torch.testing.assert_close(scores[0], torch.tensor([20.3961, 9.0050]), rtol=1e-4,
                               atol=0)  # fmt: skip
    act = sparsify(x, NMPattern(1, 2))
    found = sparsify(x, NMPattern(1, 2), criterion="clact")
    assert act.tolist() == [[0.0, 3.0], [10.0, 0.0]]
    assert found.tolist() == [[2.0, 0.0], [10.0, 0.0]]


def test_the_norm_of_the_token_changes_no_choice():
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    published = x.abs() / (x.norm(dim=1, keepdim=True) + 1e-8) * x.norm(dim=0)
    ours = x.abs() * clact.batch_factor(x)
    assert torch.equal(
        published.unflatten(1, (-1, 4)).argsort(-1),
        ours.unflatten(1, (-1, 4)).argsort(-1),
    )


FLOATS = st.floats(width=32, allow_nan=False)


@given(st.lists(FLOATS, min_size=8, max_size=8))
@settings(deadline=None)
def test_one_token_is_chosen_by_magnitude(values):
    x = torch.tensor([values])
    expected = sparsify(x, NMPattern(2, 4))
    assert torch.equal(sparsify(x, NMPattern(2, 4), criterion="clact"), expected)


@pytest.mark.parametrize("tokens", [0, 1])
def test_no_factor_without_neighbours(tokens):
    assert clact.batch_factor(torch.ones(tokens, 4)) is None


def test_tokens_of_any_shape_are_one_step():
    x = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(0))
    expected = compact(x.view(6, 16), NMPattern(2, 4), criterion="clact").to_dense()
    assert torch.equal(
        sparsify(x, NMPattern(2, 4), criterion="clact"), expected.view(2, 3, 16)
    )
