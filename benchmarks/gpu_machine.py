"""What rows say about a GPU and the software that drives it."""

from __future__ import annotations

import shutil
import subprocess
from importlib import metadata
from typing import Any

import torch


def machine(device: torch.device) -> dict[str, Any]:
    """Return names and sizes of the GPU, and versions; versions alone without one."""
    found: dict[str, Any] = {
        "torch": torch.__version__,
        "triton": metadata.version("triton"),
    }
    if device.type == "cuda":
        about = torch.cuda.get_device_properties(device)
        found |= {
            "gpu": about.name,
            "sms": about.multi_processor_count,
            "l2_bytes": about.L2_cache_size,
            "memory_bytes": about.total_memory,
            "driver": driver(),
            "cuda": torch.version.cuda,
        }
    return found


def driver() -> str:
    """Return the version of the GPU's driver."""
    if not shutil.which("nvidia-smi"):
        return "unknown"
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip().partition("\n")[0] or "unknown"
