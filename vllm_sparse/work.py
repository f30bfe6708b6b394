"""What the calls of a sparse layer did: ways, bytes of weights, and why none was saved.

Bytes are those of the weight that a call must read at least once. What a cache gives
back a second time, activations, and the padding of rows (less than 64 bytes each) are
not in them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

MANY_TOKENS, DENSE_FASTER, MIXED_STEP = "many_tokens", "dense_faster", "mixed_step"
DTYPE, QUANTIZED, CRITERION = "dtype", "quantized", "criterion"
NO_KERNEL, KERNELS_OFF = "no_kernel", "kernels_off"

# Why a call of a sparse layer reads the whole weight. Documents are made from it.
REASONS: dict[str, str] = {
    MANY_TOKENS: "the step has more tokens than any sparse kernel is for (16)",
    DENSE_FASTER: "measured on this machine, the dense product is faster at that many "
    "tokens, or nothing was measured",
    MIXED_STEP: "some tokens of the step are sparse and some are not",
    DTYPE: "no kernel for the type of the weight or of the input",
    QUANTIZED: "vLLM's weight is quantized, so there is no dense one to take",
    CRITERION: "the criterion looks at several tokens, the kernels at one",
    NO_KERNEL: "no kernel on this machine, or none for this layer; `GET /sparsity` and "
    "the log say why",
    KERNELS_OFF: "`--kernels off`",
}


@dataclass(slots=True)
class Work:
    """Sums over calls.

    Attributes:
        calls: by way.
        fallbacks: of calls that should have read less, by reason.
        read: bytes of weights that were read.
        skipped: bytes that a dense product would have read more.
    """

    calls: Counter[str] = field(default_factory=Counter)
    fallbacks: Counter[str] = field(default_factory=Counter)
    read: int = 0
    skipped: int = 0

    def add(
        self,
        calls: int,
        *,
        dense: int,
        read: int,
        way: str | None = None,
        reason: str | None = None,
    ) -> None:
        """Add calls of one kind.

        Args:
            calls: their number.
            dense: bytes that they would have read, were they dense.
            read: bytes that they have read.
            way: how they ran; None if vLLM ran them.
            reason: why none of them read less; None if they did, or need not.
        """
        if not calls:
            return
        if way is not None:
            self.calls[way] += calls
        if reason is not None:
            self.fallbacks[reason] += calls
        self.read += read
        self.skipped += max(0, dense - read)


class Outcome:
    """How a layer runs steps of one kind, and how often it did.

    A layer looks it up at every call, so counting is an addition.

    Args:
        way: how.
        dense: bytes of the whole weight.
        read: bytes that each call reads.
        row_bytes: of each row that is read beside; 0 if none are.
        reason: why a call reads the whole weight; None if it does not, or need not.
        mixed: whether some tokens are sparsified and some are not.

    Attributes:
        calls: how many there were.
        rows: rows that they read, of those that only the kernel knows.
    """

    __slots__ = (
        *("calls", "dense", "mixed", "read"),
        *("reason", "row_bytes", "rows", "way"),
    )

    def __init__(
        self,
        way: str,
        *,
        dense: int,
        read: int,
        row_bytes: int = 0,
        reason: str | None = None,
        mixed: bool = False,
    ) -> None:
        self.way = way
        self.dense = dense
        self.read = read
        self.row_bytes = row_bytes
        self.reason = reason
        self.mixed = mixed
        self.calls = self.rows = 0

    def add_to(self, work: Work) -> None:
        """Add what was done."""
        read = self.calls * self.read + self.rows * self.row_bytes
        work.add(
            self.calls,
            dense=self.calls * self.dense,
            read=read,
            way=self.way,
            reason=self.reason,
        )
