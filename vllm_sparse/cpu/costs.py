"""How many bytes of a layer's weight each way reads, and why not fewer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm_sparse.cpu.products import GATHER, MASKED, PACKED, PER_TOKEN, UNPACK
from vllm_sparse.table import TOKENS
from vllm_sparse.work import (
    DENSE_FASTER,
    DTYPE,
    MANY_TOKENS,
    MIXED_STEP,
    Outcome,
    Work,
)

if TYPE_CHECKING:
    import torch

    from nmsparse.packed import PackedWeight
    from vllm_sparse.owned import Selection


class Costs:
    """Bytes of one layer.

    Args:
        shape: K and O of this rank.
        dtype: of the weight.
        packed: its packed copy; None if there is none.
        selection: what is sparsified; None for a dense input.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        dtype: torch.dtype,
        packed: PackedWeight | None,
        selection: Selection | None,
    ) -> None:
        channels, outputs = shape
        self._row = outputs * dtype.itemsize
        self._dense = channels * self._row
        self._packed = None if packed is None else packed.nbytes
        self._listed = self._low_rank = 0
        self._selects = selection is not None
        if selection is not None:
            pattern = selection.pattern
            self._listed = channels // pattern.m * pattern.n
            if selection.treatment is not None:
                given = selection.treatment.parameters
                matrices = (given.low_rank_in, given.low_rank_out)
                elements = sum(x.numel() for x in matrices if x is not None)
                self._low_rank = elements * dtype.itemsize

    def outcome(self, way: str, tokens: int, selected: bool | None) -> Outcome:
        """Return what steps of this kind cost.

        Args:
            way: how they run.
            tokens: of the step, 17 for more than 16; 0 if the input has another type.
            selected: whether all tokens are sparse, none, or (None) some.
        """
        product = way.removeprefix(f"{MASKED}+")
        saves, row_bytes, read = True, 0, self._dense
        if product == GATHER and tokens > 1:
            row_bytes, read = self._row, 0  # the kernel knows how many
        elif product in (GATHER, PER_TOKEN):
            # Tokens may keep the same channels: at most the whole weight.
            read = min(tokens * self._listed * self._row, self._dense)
        elif product in (PACKED, UNPACK) and self._packed is not None:
            read = self._packed
        else:
            saves = False
        sparse = product != way or product in (GATHER, PER_TOKEN)
        return Outcome(
            way,
            dense=self._dense,
            read=read + (self._low_rank if sparse else 0),
            row_bytes=row_bytes,
            reason=None if saves else self._reason(tokens, selected),
            mixed=sparse and selected is None,
        )

    def _reason(self, tokens: int, selected: bool | None) -> str | None:
        wanted = self._packed is not None or (self._selects and selected is not False)
        if not wanted:
            return None
        if not tokens:
            return DTYPE
        if selected is None:
            return MIXED_STEP
        return MANY_TOKENS if tokens > TOKENS[-1] else DENSE_FASTER


class Ledger:
    """How steps of a layer run, and what they did.

    Attributes:
        outcomes: by number of tokens, and whether all, none or some (None) are sparse.
    """

    def __init__(self) -> None:
        self.outcomes: dict[tuple[int, bool | None], Outcome] = {}
        # What was done with other weights or tables: sums, because a model whose
        # weights are loaded again and again must not grow.
        self._earlier = Work()

    def forget(self) -> None:
        """Choose anew, and keep what was counted."""
        for outcome in self.outcomes.values():
            outcome.add_to(self._earlier)
        self.outcomes.clear()

    def work(self) -> Work:
        """Return what was done."""
        past = self._earlier
        calls, fallbacks = past.calls.copy(), past.fallbacks.copy()
        work = Work(calls, fallbacks, past.read, past.skipped)
        for outcome in self.outcomes.values():
            outcome.add_to(work)
        return work

    def reset(self) -> None:
        """Count from zero again."""
        self._earlier = Work()
        for outcome in self.outcomes.values():
            outcome.calls = outcome.rows = 0
