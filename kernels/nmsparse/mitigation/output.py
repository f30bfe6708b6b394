"""Learned corrections of outputs: ``(1 + d) * (W v)`` (LS) and ``+ c``.

arXiv 2509.22166 and its code: ``var_shift`` (LS) and ``shift``; both together are its
``scale_shift``.
"""

from __future__ import annotations

from nmsparse.mitigation.base import Mitigation

LS = Mitigation(
    name="ls",
    title="Learned output scale (LS)",
    paper="2509.22166",
    slot="output_scale",
    parameters=("output_scale",),
)
OUTPUT_SHIFT = Mitigation(
    name="output_shift",
    title="Learned output shift",
    paper="2509.22166, released code",
    slot="output_shift",
    parameters=("output_shift",),
)
