"""What the packed kernels on a GPU can take; no Triton, so that a check may read it."""

from __future__ import annotations

from typing import Final

# More tokens are arithmetic, not reading: there a dense product is the right one.
MAX_TOKENS: Final = 16
