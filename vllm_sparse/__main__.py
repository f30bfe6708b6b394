"""``python -m vllm_sparse`` is the ``vllm-sparse`` command."""

from __future__ import annotations

import sys

from vllm_sparse.cli import main

if __name__ == "__main__":
    sys.exit(main())
