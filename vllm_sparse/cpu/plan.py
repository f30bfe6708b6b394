"""The prepared call of a layer's sparse product, for one number of tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nmsparse.ops.linear.planned import SparseLinearPlan
from nmsparse.ops.online.planned import OnlinePlan

if TYPE_CHECKING:
    import torch

    from vllm_sparse.owned import Selection

    Plan = SparseLinearPlan | OnlinePlan


def make_plan(
    rows: torch.Tensor, selection: Selection, tokens: int, per_token: bool
) -> Plan:
    """Return the prepared call of a layer for a number of tokens.

    Args:
        rows: ``[K, O]``, K-major.
        selection: what is sparsified.
        tokens: T.
        per_token: walk every token's rows by themselves.
    """
    treatment = selection.treatment
    if treatment is None:
        return SparseLinearPlan(rows, selection.pattern, tokens, per_token=per_token)
    return OnlinePlan(
        rows,
        treatment.online,
        tokens,
        constants=treatment.constants,
        per_token=per_token,
    )
