"""What the CPU backends of all ops share: whether they can run a call, and pointers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from nmsparse.criteria import criteria
from nmsparse.native import library
from nmsparse.native.abi import DTYPES

if TYPE_CHECKING:
    from nmsparse.dispatch import Call

NOTE = "C++ on the CPU"


def refuse(call: Call) -> str | None:
    """Return why the C++ kernels cannot run ``call``; None if they can."""
    if call.device != "cpu":
        return f"the tensor is on {call.device}"
    if call.dtype not in {str(d).removeprefix("torch.") for d in DTYPES}:
        return f"no kernel for {call.dtype}"
    if call.criterion is not None and call.criterion not in criteria:
        return f"criterion {call.criterion} is not in the kernel"
    status = library.status()
    return None if status.available else status.reason


def pointer(tensor: torch.Tensor | None) -> int | None:
    """Return the address of a tensor's data, None for no tensor."""
    return None if tensor is None else tensor.data_ptr()


def floats(tensor: torch.Tensor | None) -> torch.Tensor | None:
    """Return contiguous float32, as the kernels take vectors; None stays None."""
    return None if tensor is None else tensor.to(torch.float32).contiguous()
