"""What a pruning run leaves for people: ``results.json``, report, model card, plots."""

from __future__ import annotations
