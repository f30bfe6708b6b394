"""Packed checkpoints: a folder of pruned weights with bits in the place of zeros."""

from __future__ import annotations

from offline_prune.packing.convert import Conversion, pack, unpack

__all__ = ["Conversion", "pack", "unpack"]
