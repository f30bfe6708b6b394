"""Shifts: a token is selected around another point than zero.

arXiv 2509.22166 (PTS): ``sp(x - eta) + eta``. Added back before the product that would
be dense, so the product gets it back: ``eta_t * (W 1)`` for a number per token (D-PTS),
a constant ``W eta`` for a vector (S-PTS, L-PTS).

D-PTS takes the mean of the token in the text and its median in the released code (the
lower one of two, as torch does). S-PTS is one number for a layer there, from a
calibration; it is stored as a constant vector. L-PTS is a learned vector.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from nmsparse.mitigation.base import Mitigation

if TYPE_CHECKING:
    import torch

_ROWS = 256

D_PTS = Mitigation(
    name="d_pts",
    title="Dynamic per-token shift (D-PTS), mean",
    paper="2509.22166",
    slot="shift",
    statistic="mean",
)
D_PTS_MEDIAN = Mitigation(
    name="d_pts_median",
    title="Dynamic per-token shift (D-PTS), median",
    paper="2509.22166, released code",
    slot="shift",
    statistic="median",
)
S_PTS = Mitigation(
    name="s_pts",
    title="Static per-tensor shift (S-PTS)",
    paper="2509.22166",
    slot="shift",
    parameters=("channel_shift",),
)
L_PTS = Mitigation(
    name="l_pts",
    title="Learned per-channel shift (L-PTS)",
    paper="2509.22166",
    slot="shift",
    parameters=("channel_shift",),
)


def token_statistic(
    x: torch.Tensor, statistic: Literal["mean", "median"]
) -> torch.Tensor:
    """Return a number per token, ``[T]`` float32.

    Args:
        x: ``[T, K]`` float.
        statistic: ``mean`` (summed in float64, so that it depends neither on the other
            tokens nor on threads) or ``median`` (the lower one).
    """
    if statistic == "median":
        return x.float().median(dim=1).values
    if x.shape[0] <= _ROWS:
        return x.double().mean(dim=1).float()
    # In pieces: a float64 copy of a long prompt would be large.
    found = x.new_empty(x.shape[0]).float()
    for start in range(0, x.shape[0], _ROWS):
        rows = slice(start, start + _ROWS)
        found[rows] = x[rows].double().mean(dim=1)
    return found
