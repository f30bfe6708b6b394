"""``SparseLinearPlan`` with criteria and mitigations: two kernel calls a layer.

A class of its own, so that a plan without them does no more work than before.
"""

from __future__ import annotations

import torch

from nmsparse.mitigation.shift import token_statistic
from nmsparse.ops.cpu import floats, pointer
from nmsparse.ops.linear.planned import SparseLinearPlan, scratch
from nmsparse.ops.online.finish import low_rank
from nmsparse.ops.online.online import Online
from nmsparse.ops.online.reference import regroup
from nmsparse.ops.online.terms import Constants
from nmsparse.ops.sparsify.correction import Correction

_NONE = Constants()


class OnlinePlan(SparseLinearPlan):
    """Sparsify T dense tokens as ``online`` says and multiply the kept rows.

    The result is that of ``sparsify_online``, the product and ``finish_online``, with
    the bias, up to rounding: here it is rounded once.

    Args:
        rows: ``[K, O]``, rows contiguous (``nmsparse.k_major``). With channel groups
            they are in the order of the groups: ``k_major(weight[:, channel_groups])``.
        online: how; ``online.check`` passed. Low-rank matrices in the dtype of the rows
            are not copied (``Parameters.to``).
        tokens: T.
        constants: what the weight owes to the shifts.
        per_token: walk every token's list by itself instead of the union.

    Raises:
        ValueError: if a constant that the shifts need is missing.
    """

    def __init__(
        self,
        rows: torch.Tensor,
        online: Online,
        tokens: int,
        *,
        constants: Constants = _NONE,
        per_token: bool = False,
    ) -> None:
        super().__init__(rows, online.pattern, tokens, per_token=per_token)
        given = online.parameters.to("cpu", dtype=rows.dtype)
        if (online.statistic and constants.row_sum is None) or (
            given.channel_shift is not None and constants.constant is None
        ):
            raise ValueError(
                "OnlinePlan: the tokens are shifted, but row_sum or constant is "
                "missing. Expected them: make them with Constants.of(weight, online)."
            )
        self._statistic = online.statistic
        self._criterion = online.criterion if online.needs_batch else None
        self._groups = given.channel_groups
        self._channel_shift = given.channel_shift
        # In the order of the groups, as the rows are.
        ordered = Correction(given.factor, given.channel_shift)
        if self._groups is not None:
            ordered = regroup(ordered, self._groups)
        # Named: the kernels read them at every call.
        self._scale = torch.ones(tokens, dtype=torch.float32)
        self._vectors = tuple(
            floats(vector)
            for vector in (
                ordered.factor,
                ordered.channel_shift,
                constants.row_sum if self._statistic else None,
                given.output_scale,
                constants.constant,
            )
        )
        sparsify, gather = self._sparsify, self._gather
        sparsify.factor, sparsify.channel_shift = map(pointer, self._vectors[:2])
        gather.row_sum, gather.output_scale, gather.constant = map(
            pointer, self._vectors[2:]
        )
        if online.variance:
            sparsify.scale = gather.scale = self._scale.data_ptr()
        if online.residual:
            self._low_rank = given
            # The plan calls it between the two kernels.
            self._kernel, self._run_gather = self._run_gather, self._gather_low_rank

    def __call__(
        self,
        x: torch.Tensor,
        bias: torch.Tensor | None,
        nonzeros: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return ``[T, O]``; as :meth:`SparseLinearPlan.__call__`.

        With channel groups ``x`` has its channels in their own order.
        """
        self._check(x)
        shift = factor = None
        if self._statistic is not None:
            shift = token_statistic(x, self._statistic)
            self._sparsify.token_shift = self._gather.token_shift = shift.data_ptr()
        if self._criterion is not None:
            shifts = Correction(None, self._channel_shift, shift)
            factor = shifts.with_factor_of(self._criterion, x).factor
        self._step = x, shift
        if self._groups is not None:
            x = x.index_select(1, self._groups)
            factor = None if factor is None else factor[self._groups]
        if factor is not None:
            self._sparsify.factor = factor.data_ptr()
        try:
            return super().__call__(x, bias, nonzeros)
        finally:
            del self._step

    def _gather_low_rank(self, address: int) -> int:
        """Run the product with what the dropped channels give as its addend."""
        x, shift = self._step
        shifted = Correction(None, self._channel_shift, shift).shifted(x)
        dropped = x.clone() if shifted is None else shifted.to(x.dtype)
        _, indices = scratch(self._tokens, self._listed, self._dtype)
        kept = indices.long() if self._groups is None else self._groups[indices]
        dropped.scatter_(1, kept, 0)
        addend = low_rank(dropped, self._low_rank)
        self._gather.addend = addend.data_ptr()
        code: int = self._kernel(address)
        return code
