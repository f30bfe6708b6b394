"""VAR: the product is scaled so that the kept values have the variance of the token.

arXiv 2509.22166: ``s_t = sqrt(var(u) / var(v))`` over all K channels, dropped ones as
zeros; 1 if either is zero. A factor of the whole token, so it scales the product. The
kernels compute it (``csrc/sparsify.h``), the reference in ``ops/sparsify``.
"""

from __future__ import annotations

from nmsparse.mitigation.base import Mitigation

VAR = Mitigation(
    name="var",
    title="Variance correction (VAR)",
    paper="2509.22166",
    slot="variance",
)
