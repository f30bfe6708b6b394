"""Count what matters in a weight, a few million elements at a time.

A dense weight is read by slices of its file, a packed one by rows of its bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from nmsparse import bitmask as bits
from nmsparse.packed_manifest import BITMASK, VALUES
from nmsparse.pattern import NMPattern
from offline_prune.packing.folder import open_weights
from offline_prune.verification.tensors import StoredTensor

# Elements that are in memory at once.
_BLOCK = 1 << 22


@dataclass(slots=True)
class Content:
    """Counts of one weight ``[O, K]``.

    Attributes:
        zeros: elements equal to zero; -0.0 is.
        nonfinite: elements that are NaN or infinite.
        broken: groups of M with more than N non-zeros.
        first: row and first channel of the first of them.
    """

    zeros: int = 0
    nonfinite: int = 0
    broken: int = 0
    first: tuple[int, int] | None = None

    def add_groups(
        self, stored: torch.Tensor, pattern: NMPattern, *, row: int, channel: int
    ) -> None:
        """Count groups that hold too many non-zeros.

        Args:
            stored: ``[rows, channels]`` bool, channels a multiple of M.
            pattern: N:M.
            row: which row of the weight the first one is.
            channel: which channel the first one is.
        """
        rows, channels = stored.shape
        groups = stored.reshape(rows, channels // pattern.m, pattern.m)
        broken = groups.sum(-1) > pattern.n
        count = int(broken.sum())
        if count:
            where = broken.nonzero()[0].tolist()
            found = row + where[0], channel + where[1] * pattern.m
            self.first = min(self.first or found, found)
            self.broken += count


def dense_content(
    name: str, place: StoredTensor, pattern: NMPattern | None, *, transposed: bool
) -> Content:
    """Count a dense weight.

    Args:
        name: of the tensor.
        place: where it is; ``[O, K]``, or ``[K, O]`` if ``transposed``.
        pattern: N:M with M a divisor of K, None if unstructured.
        transposed: whether the file holds ``[K, O]``.
    """
    content = Content()
    with open_weights(place.file) as file:
        weight = file.get_slice(name)
        # Groups lie along K: a piece of a transposed weight holds whole groups.
        step = pattern.m if transposed and pattern is not None else 1
        for start, stop in _pieces(*place.shape, multiple=step):
            piece = weight[start:stop]
            stored = piece != 0
            content.zeros += stored.numel() - int(stored.sum())
            content.nonfinite += piece.numel() - int(piece.isfinite().sum())
            if pattern is not None:
                along = stored.T if transposed else stored
                row, channel = (0, start) if transposed else (start, 0)
                content.add_groups(along, pattern, row=row, channel=channel)
    return content


def count_nonfinite(name: str, place: StoredTensor) -> int:
    """Return how many elements of a vector ``[O]`` are NaN or infinite."""
    with open_weights(place.file) as file:
        vector = file.get_tensor(name)
    return int(vector.numel() - vector.isfinite().sum())


def packed_content(
    module: str,
    tensors: Mapping[str, StoredTensor],
    pattern: NMPattern | None,
    *,
    in_features: int,
) -> tuple[Content, list[str]]:
    """Count a packed weight.

    Args:
        module: whose bits ``[O, ceil(K / 8)]`` uint8 and values ``[stored]`` are read.
        tensors: where they are; both must be there, and of the right shape.
        pattern: N:M with M a divisor of K, None if unstructured.
        in_features: K.

    Returns:
        The counts, and one sentence for each way in which bits and values disagree.
    """
    content, problems, stored, tail = Content(), [], 0, False
    place = tensors[module + BITMASK]
    with open_weights(place.file) as file:
        packed = file.get_slice(module + BITMASK)
        for start, stop in _pieces(place.shape[0], in_features, multiple=1):
            words = bits.from_bytes(packed[start:stop].contiguous())
            tail |= not bits.tail_is_zero(words, in_features)
            keep = bits.unpack_keep(words, in_features)
            stored += int(keep.sum())
            if pattern is not None:
                content.add_groups(keep, pattern, row=start, channel=0)
    place = tensors[module + VALUES]
    with open_weights(place.file) as file:
        values = file.get_slice(module + VALUES)
        for start, stop in _pieces(place.shape[0], 1, multiple=1):
            piece = values[start:stop]
            content.zeros += int((piece == 0).sum())
            content.nonfinite += piece.numel() - int(piece.isfinite().sum())
    content.zeros += tensors[module + BITMASK].shape[0] * in_features - stored
    if tail:
        problems.append(
            f"{module}: its bits run beyond channel {in_features - 1}. Expected zeros "
            "there: the file is damaged, copy it again."
        )
    if place.shape[0] != stored:
        problems.append(
            f"{module}: it holds {place.shape[0]} values, but {stored} bits are set. "
            "Expected as many: the file is damaged, copy it again."
        )
    return content, problems


def _pieces(rows: int, columns: int, *, multiple: int) -> Iterator[tuple[int, int]]:
    """Yield ranges of rows that are read at once, whole multiples of ``multiple``."""
    step = max(1, _BLOCK // max(1, columns * multiple)) * multiple
    for start in range(0, rows, step):
        yield start, min(start + step, rows)
