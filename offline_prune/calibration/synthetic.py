"""Random tokens: enough to try the pipeline, and no substitute for text.

Ids are drawn by Zipf's law over the vocabulary, in which byte-pair encoders put
frequent tokens first. There is no grammar in them: methods that look at activations get
misleading statistics, so use a text wherever quality counts.
"""

from __future__ import annotations

from collections.abc import Collection

import torch


def synthetic_windows(
    *,
    vocab_size: int,
    count: int,
    length: int,
    seed: int,
    excluded: Collection[int] = (),
) -> list[torch.Tensor]:
    """Return windows of random token ids.

    Args:
        vocab_size: rows of the model's embedding.
        count: number of windows.
        length: tokens of a window.
        seed: decides them.
        excluded: ids that are not drawn, such as special tokens.

    Returns:
        ``count`` tensors, int64 ``[length]``.
    """
    left_out = frozenset(excluded)
    ids = torch.tensor([i for i in range(vocab_size) if i not in left_out])
    # The offset keeps the first tokens from taking everything.
    cumulative = (1.0 / (torch.arange(len(ids), dtype=torch.float64) + 10)).cumsum(0)
    generator = torch.Generator().manual_seed(seed)
    draws = torch.rand(count, length, generator=generator, dtype=torch.float64)
    places = torch.searchsorted(cumulative / cumulative[-1], draws, right=True)
    return list(ids[places.clamp(max=len(ids) - 1)].unbind())
