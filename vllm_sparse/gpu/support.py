"""Why layers of a GPU engine do not run kernels of ours, in words. No Triton here."""

from __future__ import annotations

import importlib.util
import os
from importlib import metadata
from typing import TYPE_CHECKING, Any

import torch

from nmsparse.ops.gpu import CAPABILITY

if TYPE_CHECKING:
    from vllm_sparse.treatment.layer import Treatment

# vLLM's plain product; another one was asked for by name.
_STOCK = "default_unquantized_gemm"
_FALSE = ("", "0", "false")


def installed_triton() -> str | None:
    """Return the version of Triton without importing it; None if there is none."""
    if importlib.util.find_spec("triton") is None:
        return None
    for name in ("triton", "pytorch-triton"):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return "of unknown version"


def engine_problem(*, sleeps: bool = False, offloads: bool = False) -> str | None:
    """Return why no layer of this process can run kernels of ours; None if they can.

    Must be called where the engine's device is the current one.

    Args:
        sleeps: whether the engine may give its memory back for a while.
        offloads: whether the engine keeps weights in the host's memory.
    """
    if installed_triton() is None:
        return "triton is not installed"
    if torch.version.cuda is None or not torch.cuda.is_available():
        return "torch sees no CUDA device"
    found = torch.cuda.get_device_capability()
    if found < CAPABILITY:
        return "compute capability {}.{} is below {}.{}".format(*found, *CAPABILITY)
    if os.environ.get("VLLM_BATCH_INVARIANT", "0").lower() not in _FALSE:
        return "VLLM_BATCH_INVARIANT asks for one product at every number of tokens"
    if sleeps:
        # Level 2 loses what is not a weight or a buffer: tickets that must be zero.
        return "--enable-sleep-mode would lose the kernels' scratch memory"
    if offloads:
        return "weights are offloaded, and our layout would bring them all back"
    return None


def layer_problem(method: Any, treatment: Treatment | None) -> str | None:
    """Return why one layer has no kernel of ours; None if it has.

    Args:
        method: the method vLLM chose, unquantized.
        treatment: what the layer does beyond magnitude; None for nothing.
    """
    gemm = getattr(method, "_gemm_impl", None)
    if gemm is None:  # of a packed checkpoint
        gemm = getattr(getattr(method, "inner", None), "_gemm_impl", None)
    if gemm is not None and gemm.__name__ != _STOCK:
        return f"vLLM was asked for another product ({gemm.__name__})"
    if treatment is None:
        return None
    online = treatment.online
    if online.residual:
        return "r_sparse needs the dropped channels too"
    if online.statistic == "median":
        return "d_pts_median has no kernel"
    return None
