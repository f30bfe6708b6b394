"""Run the fuzzer: ``python -m fuzzing TARGET --cases 1000000 --seconds 600``.

It feeds everything that is read from a model folder or a cache. A case is made from two
numbers, the seed and its own number, so that a finding can be made again: ``python -m
fuzzing config --seed 1 --first 4711 --cases 1``. See docs/security.md.
"""

from __future__ import annotations

import sys

from fuzzing.campaign import main

if __name__ == "__main__":
    sys.exit(main())
