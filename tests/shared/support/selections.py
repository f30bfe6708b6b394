"""What lists and masks of a GPU must be, from the pure-torch reference."""

from __future__ import annotations

import torch

from nmsparse.mitigation.shift import token_statistic
from nmsparse.ops.online.reference import in_order, regroup
from nmsparse.ops.sparsify import Correction
from nmsparse.ops.sparsify.reference import select, variance_scale
from nmsparse.pattern import NMPattern

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
PARTS = ("factor", "channel_shift", "token_shift", "statistic", "variance")


def random(*shape, dtype=torch.float32, seed=0, coarse=False):
    """Return normal values; with ``coarse`` few levels, so that scores tie."""
    found = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return ((found * 2).round() / 2 if coarse else found).to(dtype)


def bits(x):
    """Return bit patterns: -0.0 differs from 0.0, and a NaN equals itself."""
    return x.contiguous().view(_BITS[x.element_size()]).cpu()


def parts_of(names, tokens, channels, device, seed=40):
    """Return the named arguments of ``list_tokens`` that change a selection."""
    made = {
        "factor": random(channels, seed=seed).abs().to(device),
        "channel_shift": random(channels, seed=seed + 1).to(device),
        "token_shift": random(tokens, seed=seed + 2).to(device),
        "statistic": True,
        "variance": True,
    }
    return {name: made[name] for name in names}


def permutation(channels, device, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(channels, generator=generator).to(device)


def reference(x, kept, group, *, channel_groups=None, sparse=None, **parts):
    """Return keep ``[T, K]`` by position, values by channel, scale and token shift.

    Tokens that are not sparse keep all, as they are.
    """
    if parts.pop("statistic", False):
        parts["token_shift"] = token_statistic(x, "mean")
    variance = parts.pop("variance", False)
    correction = Correction(**parts)
    shift = correction.token_shift
    order = torch.arange(x.shape[1], device=x.device)
    if channel_groups is not None:
        order = channel_groups
    shifted, keep = select(
        x[:, order], NMPattern(kept, group), regroup(correction, order)
    )
    scale = variance_scale(shifted, keep) if variance else None
    values = in_order(torch.where(keep, shifted, 0).to(x.dtype), order)
    if sparse is not None:
        dense = ~sparse.bool()
        values = torch.where(dense[:, None], x, values)
        scale = None if scale is None else torch.where(dense, 1, scale)
        shift = None if shift is None else torch.where(dense, 0, shift)
    return keep, values, scale, shift


def assert_lists(found, x, kept, group, **parts):
    """Compare lists with the reference: channels and values exactly."""
    keep, values, scale, shift = reference(x, kept, group, **parts)
    channels = x.shape[1]
    order, sparse = parts.get("channel_groups"), parts.get("sparse")
    if order is None:
        order = torch.arange(channels, device=x.device)
    assert found.in_features == channels
    assert found.kept == channels // group * kept
    assert found.values.dtype is x.dtype
    for token in range(x.shape[0]):
        listed = order[keep[token].nonzero()[:, 0]]
        if sparse is not None and not sparse[token]:
            listed = torch.arange(channels, device=x.device)
        count = int(found.counts[token])
        assert count == len(listed)
        assert found.indices[token, :count].tolist() == listed.tolist()
        assert torch.equal(
            bits(found.values[token, :count]), bits(values[token, listed])
        )
    assert_terms(found, scale, shift)


def assert_terms(found, scale, shift):
    """Compare scales and shifts, both up to one rounding."""
    for name, expected in (("scale", scale), ("token_shift", shift)):
        value = getattr(found, name)
        assert (value is None) == (expected is None), name
        if value is not None:
            assert value.dtype is torch.float32
            torch.testing.assert_close(
                value, expected.float(), rtol=1.2e-7, atol=0.0, equal_nan=True
            )
