"""Lists of tokens for tests of gathered products, and what the product must be."""

from __future__ import annotations

from dataclasses import replace

import torch

from nmsparse.ops.linear.reference import linear_reference
from nmsparse.ops.sparsify import CompactActivation
from nmsparse.ops.sparsify.lists import TokenLists

# Relative to the largest output: one rounding of the result to the dtype. Triton's
# interpreter cuts bfloat16 off instead of rounding it, which is twice as much.
TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
TERMS = ("bias", "row_sum", "addend", "output_scale", "constant")


def normal(*shape, dtype=torch.float32, seed=0, device="cpu"):
    made = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return made.to(dtype).to(device)


def random_lists(
    tokens,
    channels,
    kept,
    *,
    dtype=torch.float32,
    device="cpu",
    dense=(),
    shared=False,
    scale=False,
    shift=False,
    wide=False,
    seed=0,
):
    """Return lists of random channels; what lies beyond a count is poison.

    Args:
        dense: numbers of the tokens that stay dense. A shared list is then dense too.
        wide: int32 channel numbers.
    """
    pick = torch.Generator().manual_seed(seed)
    rows = 1 if shared else tokens
    # Lists of the engine have room for a dense token; some of it is never used.
    room = (channels if dense else kept) + 3
    index_dtype = torch.int32 if wide else torch.int16
    # The largest number there is: a row far behind the weight if anyone read it.
    indices = torch.full((rows, room), torch.iinfo(index_dtype).max, dtype=index_dtype)
    values = torch.full((tokens, room), torch.nan, dtype=dtype)
    counts = torch.full((rows,), kept, dtype=torch.int32)
    full = [t for t in range(rows) if t in dense or (shared and dense)]
    for row in range(rows):
        count = channels if row in full else kept
        counts[row] = count
        chosen = torch.randperm(channels, generator=pick)[:count].sort().values
        indices[row, :count] = chosen.to(index_dtype)
    x = torch.randn(tokens, room, generator=pick).to(dtype)
    for token in range(tokens):
        count = int(counts[0 if shared else token])
        values[token, :count] = x[token, :count]
    sparse = None
    if dense:
        sparse = torch.tensor([t not in dense for t in range(tokens)])
    per_token = torch.rand(2, tokens, generator=pick) + 0.5
    return TokenLists(
        values=values.to(device),
        indices=indices.to(device),
        counts=counts.to(device),
        in_features=channels,
        kept=kept,
        scale=per_token[0].to(device) if scale else None,
        token_shift=per_token[1].to(device) if shift else None,
        sparse=None if sparse is None else sparse.to(device),
    )


def random_terms(names, tokens, outputs, *, dtype=torch.float32, device="cpu", seed=5):
    """Return the named terms of ``gather_lists``."""
    made = {}
    for number, name in enumerate(TERMS):
        if name in names:
            shape = (tokens, outputs) if name == "addend" else (outputs,)
            as_dtype = dtype if name in ("bias", "addend") else torch.float32
            made[name] = normal(
                *shape, dtype=as_dtype, seed=seed + number, device=device
            )
    return made


def expected_product(lists, weight, *, bias=None, addend=None, **terms):
    """Return ``[T, O]``, not rounded: the reference, one token at a time."""
    lists = replace(lists, values=lists.values.double(), scale=_double(lists.scale))
    rows = []
    for token in range(lists.values.shape[0]):
        row = 0 if lists.indices.shape[0] == 1 else token
        count = int(lists.counts[row])
        one = CompactActivation(
            lists.values[token : token + 1, :count],
            lists.indices[row : row + 1, :count],
            lists.in_features,
        )
        plain = lists.sparse is not None and not lists.sparse[token]
        if plain:
            rows.append(linear_reference(one, weight, bias))
            continue
        here = slice(token, token + 1)
        one = replace(one, scale=None if lists.scale is None else lists.scale[here])
        shift = None if lists.token_shift is None else lists.token_shift[here]
        given = None if addend is None else addend[here]
        rows.append(linear_reference(one, weight, bias, shift, addend=given, **terms))
    return torch.cat(rows) if rows else torch.empty(0, weight.shape[1])


def _double(tensor):
    return None if tensor is None else tensor.double()


def assert_product(found, expected):
    assert found.shape == expected.shape
    finite = expected[expected.isfinite()]
    largest = finite.abs().max().item() if finite.numel() else 0.0
    atol = TOLERANCE[found.dtype] * max(largest, 1.0)
    torch.testing.assert_close(
        found.double(), expected.double(), rtol=0.0, atol=atol, equal_nan=True
    )
