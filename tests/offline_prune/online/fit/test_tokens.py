"""Weights of tokens, by hand."""

from __future__ import annotations

import torch

from offline_prune.online.fit.tokens import (
    relative_errors,
    robust_error,
    token_weights,
)

DENSE = torch.tensor([[100.0, 0], [2, 0], [0, 1], [0.5, 0], [0, 0.01]])


def test_a_token_weighs_one_over_its_square_up_to_the_clip():
    # Of positions 1 to 4: 1/4, 1, 4, 10000; the lower median is 1.
    found = token_weights(DENSE, clip=5.0, first=True)
    torch.testing.assert_close(found, torch.tensor([0, 0.25, 1, 4, 5.0]))
    found = token_weights(DENSE, clip=5.0, first=False)
    torch.testing.assert_close(found, torch.tensor([1e-4, 0.25, 1, 4, 5.0]))


def test_tokens_without_an_output_are_clipped_and_nan_does_not_count():
    dense = torch.tensor([[1.0], [0.0], [1.0], [float("nan")], [float("inf")]])
    found = token_weights(dense, clip=3.0, first=False)
    assert found.tolist() == [1, 3, 1, 0, 0]
    assert token_weights(torch.zeros(3, 2), clip=3.0, first=True).tolist() == [0] * 3


def test_errors_count_relative_to_the_token():
    weights = token_weights(DENSE, clip=1e9, first=True)
    out = DENSE * torch.tensor([7, 1.1, 1.1, 1.1, 1.1])[:, None]
    torch.testing.assert_close(
        robust_error(out, DENSE, weights), torch.tensor(4 * 0.01), rtol=1e-4, atol=0
    )
    expected = torch.tensor([6, 0.1, 0.1, 0.1, 0.1])
    torch.testing.assert_close(relative_errors(out, DENSE), expected)
    assert relative_errors(torch.zeros(1, 2), torch.zeros(1, 2)).tolist() == [0]


def test_an_infinite_token_that_weighs_nothing_is_harmless():
    out = DENSE.clone()
    out[0] = float("inf")
    weights = token_weights(DENSE, clip=4.0, first=True)
    assert float(robust_error(out, DENSE, weights)) == 0
