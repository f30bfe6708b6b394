"""Run the fuzzer: ``python -m fuzzing TARGET --cases 1000000 --seconds 600``."""

from __future__ import annotations

import sys

from fuzzing.campaign import main

if __name__ == "__main__":
    sys.exit(main())
