"""The statistic of a token: by hand, and independent of its neighbours."""

from __future__ import annotations

import pytest
import torch

from nmsparse.mitigation.shift import token_statistic

X = torch.tensor([[4.0, -3.0, 1.0, 2.0], [0.5, 3.0, -1.0, 2.0]])


@pytest.mark.parametrize(
    ("statistic", "expected"), [("mean", [1.0, 1.125]), ("median", [1.0, 0.5])]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_hand_computed(statistic, expected, dtype):
    found = token_statistic(X.to(dtype), statistic)
    assert found.tolist() == expected
    assert found.dtype is torch.float32


@pytest.mark.parametrize("statistic", ["mean", "median"])
@pytest.mark.parametrize("tokens", [0, 1, 255, 256, 257, 600])
def test_a_token_does_not_depend_on_its_batch(statistic, tokens):
    x = torch.randn(tokens, 48, generator=torch.Generator().manual_seed(0))
    found = token_statistic(x, statistic)
    assert found.shape == (tokens,)
    for t in range(0, tokens, 37):
        assert torch.equal(found[t : t + 1], token_statistic(x[t : t + 1], statistic))
