"""``compact`` and ``linear`` of one layer as two calls with prepared arguments.

At one token a layer takes a tenth of a millisecond, and describing a call anew takes
tens of microseconds: an engine that runs the same layers at every step prepares them.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable

import torch

from nmsparse.native import abi
from nmsparse.native.memory import padded_rows
from nmsparse.pattern import Pattern


class SparseLinearPlan:
    """Sparsify T dense tokens by magnitude and multiply the kept rows of a weight.

    The result is that of ``linear(compact(x, pattern), rows, bias)`` on this backend.
    For criteria and mitigations see ``nmsparse.ops.online.planned.OnlinePlan``.

    Args:
        rows: ``[K, O]``, rows contiguous (``nmsparse.k_major``).
        pattern: which channels of each token stay.
        tokens: T.
        per_token: walk every token's list by itself instead of the union.

    Attributes:
        rows_read: rows of the weight that the last call read, a C integer.
    """

    def __init__(
        self,
        rows: torch.Tensor,
        pattern: Pattern,
        tokens: int,
        *,
        per_token: bool = False,
    ) -> None:
        channels, outputs = rows.shape
        kept, group = pattern.group(channels)
        self._rows = rows
        self._dtype = rows.dtype
        self._tokens = tokens
        self._listed = channels // group * kept
        code = abi.DTYPES[rows.dtype]
        self._sparsify = abi.SparsifyArgs(
            tokens=tokens, channels=channels, dtype=code, kept=kept, group=group
        )
        self._gather = abi.GatherArgs(
            weight=rows.data_ptr(),
            tokens=tokens,
            listed=self._listed,
            channels=channels,
            outputs=outputs,
            values_stride=self._listed,
            indices_stride=self._listed,
            weight_stride=rows.stride(0),
            out_stride=outputs,
            dtype=code,
            strategy=abi.PER_TOKEN if per_token else abi.UNION,
            padded=int(padded_rows(rows)),
        )
        self.rows_read = ctypes.c_int64(0)
        self._gather.rows_read = ctypes.addressof(self.rows_read)
        self._expected = (tokens, channels)
        self._shape = (tokens, outputs)
        library = abi.kernels()
        self._run_sparsify = library.nms_sparsify
        self._run_gather: Callable[[int], int] = library.nms_gather
        self._sparsify_at = ctypes.addressof(self._sparsify)
        self._gather_at = ctypes.addressof(self._gather)

    def _check(self, x: torch.Tensor) -> None:
        if x.shape != self._expected or x.dtype != self._dtype:
            raise ValueError(
                f"SparseLinearPlan: x is {x.dtype} {tuple(x.shape)}. Expected "
                f"{self._dtype} {self._expected}."
            )

    def __call__(
        self,
        x: torch.Tensor,
        bias: torch.Tensor | None,
        nonzeros: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return ``[T, O]``.

        Args:
            x: ``[T, K]`` in the dtype of the weight.
            bias: ``[O]`` or None.
            nonzeros: ``[1]`` int64, incremented by the number of kept values that are
                not zero; None not to count.

        Raises:
            ValueError: if ``x`` has another shape or dtype.
        """
        if x.shape != self._expected or x.dtype != self._dtype:
            self._check(x)
        if x.stride(1) != 1:
            x = x.contiguous()
        if bias is not None and (bias.dtype != self._dtype or bias.stride(0) != 1):
            bias = bias.to(self._dtype).contiguous()
        values, indices = scratch(self._tokens, self._listed, self._dtype)
        out = torch.empty(self._shape, dtype=self._dtype)
        threads = torch.get_num_threads()
        sparsify, gather = self._sparsify, self._gather
        sparsify.x = x.data_ptr()
        sparsify.x_stride = x.stride(0)
        sparsify.values = gather.values = values.data_ptr()
        sparsify.indices = gather.indices = indices.data_ptr()
        sparsify.nonzeros = None if nonzeros is None else nonzeros.data_ptr()
        gather.out = out.data_ptr()
        gather.bias = None if bias is None else bias.data_ptr()
        sparsify.threads = gather.threads = threads
        if code := self._run_sparsify(self._sparsify_at):
            abi.fail(code, sparsify)
        if code := self._run_gather(self._gather_at):
            abi.fail(code, gather)
        return out


class _Buffers(threading.local):
    def __init__(self) -> None:
        self.lists: dict[
            tuple[int, int, torch.dtype], tuple[torch.Tensor, torch.Tensor]
        ] = {}


_LOCAL = _Buffers()


def scratch(
    tokens: int, listed: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return this thread's buffers for one step's lists; the next call reuses them."""
    key = (tokens, listed, dtype)
    found = _LOCAL.lists.get(key)
    if found is None:
        values = torch.empty(tokens, listed, dtype=dtype)
        indices = torch.empty(tokens, listed, dtype=torch.int32)
        found = _LOCAL.lists[key] = (values, indices)
    return found
