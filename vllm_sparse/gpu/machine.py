"""What measured times depend on, besides the layer: the GPU and the versions."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any

from vllm_sparse import __version__
from vllm_sparse.compat import installed_vllm
from vllm_sparse.gpu.clock import Clock
from vllm_sparse.gpu.support import installed_triton


def context(clock: Clock) -> dict[str, Any]:
    """Return what measured times depend on, besides the layer."""
    return {
        "gpu": clock.name,
        "driver": _driver(),
        "torch": metadata.version("torch"),
        "triton": installed_triton(),
        "vllm": installed_vllm(),
        "vllm_sparse": __version__,
    }


def _driver() -> str:
    """Return the line in which the kernel module names its version."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text("utf-8")
    except OSError:
        return "unknown"
    return text.partition("\n")[0].strip()
