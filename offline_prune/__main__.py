"""``python -m offline_prune`` is the command ``offline-prune``."""

from __future__ import annotations

import sys

from offline_prune.cli import main

sys.exit(main())
