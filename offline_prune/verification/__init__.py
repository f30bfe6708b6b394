"""Does a pruned folder hold what its ``results.json`` says? Read-only, streaming."""

from __future__ import annotations

from offline_prune.verification.verify import LayerCheck, Verification, verify

__all__ = ["LayerCheck", "Verification", "verify"]
