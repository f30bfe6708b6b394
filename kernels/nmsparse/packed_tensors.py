"""What packed forms of a weight have in common: rows at a time, bits, checked parts."""

from __future__ import annotations

from collections.abc import Iterator

import torch

# Elements of the dense weight that are handled at once.
_BLOCK = 1 << 20


def is_stored(weight: torch.Tensor) -> torch.Tensor:
    """Return where ``weight`` (``[..., K]``) is neither +0.0 nor -0.0."""
    return (as_integers(weight) << 1) != 0


def as_integers(weight: torch.Tensor) -> torch.Tensor:
    """View floats as integers, so that no bit changes.

    torch's ``scatter_`` rewrites a bfloat16 NaN, and a comparison takes subnormals for
    zeros where the processor is set to.
    """
    return weight.view(torch.int32 if weight.element_size() == 4 else torch.int16)


def row_blocks(out_features: int, in_features: int) -> Iterator[tuple[int, int]]:
    """Yield ranges of rows that are handled at once."""
    step = max(1, _BLOCK // max(1, in_features))
    for start in range(0, out_features, step):
        yield start, min(start + step, out_features)


def expect_tensor(
    subject: str,
    name: str,
    found: torch.Tensor,
    shape: tuple[int, ...],
    dtypes: tuple[torch.dtype, ...],
) -> None:
    """Refuse a part of another shape, dtype or layout.

    Args:
        subject: what it is a part of, for the message.
        name: of the part.
        found: the part.
        shape: that it must have.
        dtypes: that it may have.

    Raises:
        ValueError: naming the part.
    """
    fits = tuple(found.shape) == shape and found.dtype in dtypes
    if not fits or not found.is_contiguous():
        layout = "" if found.is_contiguous() else ", not contiguous"
        raise ValueError(
            f"{subject}: {name} is {found.dtype} {tuple(found.shape)}{layout}. "
            f"Expected {' or '.join(map(str, dtypes))} {shape}."
        )
