"""Checked arguments of the selection kernels of a GPU."""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

import torch

from nmsparse.ops.cpu import floats
from nmsparse.ops.gpu import DTYPES
from nmsparse.pattern import MAX_M


@dataclass(frozen=True, slots=True, eq=False)
class Arguments:
    """What ``list_tokens`` and ``mask_tokens`` were given, as kernels take it.

    Attributes:
        x: ``[T, K]``, rows contiguous.
        kept: N.
        group: M.
        factor: ``[K]`` float32 or None.
        channel_shift: ``[K]`` float32 or None.
        token_shift: ``[T]`` float32 or None.
        order: ``[K]`` int64 channel at each position, or None.
        sparse: ``[T]`` uint8 or None.
        counters: ``[2]`` int64 or None.
        counted: ``[T]`` uint8 or None.
        statistic: whether the mean of each token is its shift.
        variance: whether scales are wanted.
    """

    x: torch.Tensor
    kept: int
    group: int
    factor: torch.Tensor | None = None
    channel_shift: torch.Tensor | None = None
    token_shift: torch.Tensor | None = None
    order: torch.Tensor | None = None
    sparse: torch.Tensor | None = None
    counters: torch.Tensor | None = None
    counted: torch.Tensor | None = None
    statistic: bool = False
    variance: bool = False

    @classmethod
    def of(
        cls,
        x: torch.Tensor,
        kept: int,
        group: int,
        *,
        factor: torch.Tensor | None,
        channel_shift: torch.Tensor | None,
        token_shift: torch.Tensor | None,
        statistic: bool,
        variance: bool,
        channel_groups: torch.Tensor | None,
        sparse: torch.Tensor | None,
        counters: torch.Tensor | None,
        counted: torch.Tensor | None,
    ) -> Arguments:
        """Check and convert; see ``list_tokens`` for arguments and errors."""
        if x.dtype not in DTYPES:
            raise TypeError(
                f"list_tokens: x is {x.dtype}. Expected one of "
                f"{', '.join(map(str, DTYPES))}: convert it first."
            )
        if x.dim() != 2:
            raise ValueError(
                f"list_tokens: x has shape {tuple(x.shape)}. Expected [T, K]: flatten "
                "it first."
            )
        tokens, channels = x.shape
        # As unstructured patterns, K = 0 is one group of nothing.
        if not 1 <= kept <= group <= MAX_M or channels % group:
            raise ValueError(
                f"list_tokens: {kept} of {group} of {channels} channels is no "
                f"selection. Expected 1 <= kept <= group <= {MAX_M}, and a group that "
                "divides the channels."
            )
        if statistic and token_shift is not None:
            raise ValueError(
                "list_tokens: both statistic and token_shift are given. Expected one."
            )
        for name, tensor, size in (
            ("factor", factor, channels),
            ("channel_shift", channel_shift, channels),
            ("channel_groups", channel_groups, channels),
            ("token_shift", token_shift, tokens),
            ("sparse", sparse, tokens),
            ("counted", counted, tokens),
            ("counters", counters, 2),
        ):
            if tensor is not None and tuple(tensor.shape) != (size,):
                raise ValueError(
                    f"list_tokens: {name} has shape {tuple(tensor.shape)}. Expected "
                    f"[{size}]."
                )
        if counters is not None and (
            counters.dtype != torch.int64 or not counters.is_contiguous()
        ):
            raise TypeError(
                f"list_tokens: counters are {counters.dtype} with stride "
                f"{counters.stride()}. Expected contiguous torch.int64."
            )
        if kept == group:
            # Nothing is chosen: any groups do, and small ones share a program.
            kept = group = gcd(channels, 16)
        return cls(
            x if x.stride(1) == 1 else x.contiguous(),
            kept,
            group,
            floats(factor),
            floats(channel_shift),
            floats(token_shift),
            None if channel_groups is None else channel_groups.long().contiguous(),
            _flags(sparse),
            counters,
            _flags(counted),
            statistic,
            variance,
        )

    @property
    def tokens(self) -> int:
        """T."""
        return self.x.shape[0]

    @property
    def channels(self) -> int:
        """K."""
        return self.x.shape[1]

    @property
    def listed(self) -> int:
        """How many channels a sparse token keeps."""
        return self.channels // self.group * self.kept

    @property
    def shifts_tokens(self) -> bool:
        """Whether every token has a shift of its own."""
        return self.statistic or self.token_shift is not None

    @property
    def is_plain(self) -> bool:
        """Whether scores are the magnitudes of x itself."""
        return (
            not self.shifts_tokens
            and self.channel_shift is None
            and self.factor is None
        )

    @property
    def key_bits(self) -> int:
        """How wide the integer keys of the scores are."""
        return 15 if self.is_plain and self.x.dtype.itemsize == 2 else 31


def raw(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor as kernels see it: bfloat16 as its bits."""
    return tensor.view(torch.int16) if tensor.dtype is torch.bfloat16 else tensor


def fill_empty(
    given: Arguments,
    scale: torch.Tensor | None,
    shift: torch.Tensor | None,
    counts: torch.Tensor | None,
) -> None:
    """Write what the reference gives where there are no tokens or no channels."""
    if scale is not None:
        scale.fill_(1)
    if shift is not None:
        # The mean of nothing is not a number.
        value = torch.nan if given.token_shift is None else given.token_shift
        shift.copy_(torch.as_tensor(value))
    if counts is not None:
        counts.zero_()


def _flags(flags: torch.Tensor | None) -> torch.Tensor | None:
    if flags is None:
        return None
    if flags.dtype not in (torch.bool, torch.uint8):
        raise TypeError(
            f"list_tokens: flags of tokens are {flags.dtype}. Expected torch.bool or "
            "torch.uint8."
        )
    return flags.contiguous().view(torch.uint8)
