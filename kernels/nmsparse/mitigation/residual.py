"""R-Sparse: what was dropped still passes through a low-rank matrix.

R-Sparse (arXiv 2504.19449), in the form of arXiv 2509.22166: ``y = W v + A B (u - v)``,
A ``[O, r]`` and B ``[r, K]``. Its ``r * (K + O)`` weights are read for every token.
"""

from __future__ import annotations

from nmsparse.mitigation.base import Mitigation

R_SPARSE = Mitigation(
    name="r_sparse",
    title="Low rank on the residual (R-Sparse)",
    paper="2504.19449",
    slot="residual",
    parameters=("low_rank_in", "low_rank_out"),
)
