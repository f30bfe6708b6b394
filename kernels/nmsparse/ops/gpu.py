"""What the Triton backends of all ops share: whether they can run a call.

No Triton here: it is heavy to import, and ``explain`` needs an answer without it.
"""

from __future__ import annotations

import importlib.util
import os
from typing import TYPE_CHECKING

import torch

from nmsparse.criteria import criteria
from nmsparse.ops.packed.limits import MAX_TOKENS

if TYPE_CHECKING:
    from nmsparse.dispatch import Call

NOTE = "Triton on the GPU"
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
# bfloat16 arithmetic and the memory model that the kernels' tickets rely on.
CAPABILITY = (8, 0)
_LEAST_TICKETS = 1 << 16
# By device, the last one in use. Captured graphs still point at the others.
_TICKETS: dict[torch.device, list[torch.Tensor]] = {}


def refuse(call: Call) -> str | None:
    """Return why the Triton kernels cannot run ``call``; None if they can."""
    if call.device not in ("cuda", "cpu"):
        return f"the tensor is on {call.device}"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if call.dtype not in {str(d).removeprefix("torch.") for d in DTYPES}:
        return f"no kernel for {call.dtype}"
    if call.criterion is not None and call.criterion not in criteria:
        return f"criterion {call.criterion} is not in the kernel"
    if call.op == "packed" and call.tokens > MAX_TOKENS:
        return f"{call.tokens} tokens: more than {MAX_TOKENS} are for a dense product"
    if call.device == "cuda":
        return _refuse_gpu()
    return None if is_interpreted() else "the tensor is on cpu"


def is_interpreted() -> bool:
    """Whether CPU tensors are wanted here: tests only, never chosen by itself."""
    from nmsparse.dispatch import BACKEND_ENV

    forced = os.environ.get(BACKEND_ENV) == "triton"
    return forced and os.environ.get("TRITON_INTERPRET") == "1"


def _refuse_gpu() -> str | None:
    if torch.version.cuda is None:
        return "tested with CUDA only"
    found = torch.cuda.get_device_capability()
    if found < CAPABILITY:
        return "the GPU has compute capability {}.{}, below {}.{}".format(
            *found, *CAPABILITY
        )
    return None


def tickets(device: torch.device, count: int) -> torch.Tensor:
    """Return zeros that programs of one kernel count arrivals on.

    They are the device's: one kernel at a time uses them, as one stream gives. Every
    kernel leaves zeros behind.

    Args:
        device: of the kernel.
        count: how many are needed, a few at most more than tokens in a step.

    Returns:
        At least ``count`` int32 zeros.

    Raises:
        RuntimeError: if they must grow while a CUDA graph is captured.
    """
    made = _TICKETS.setdefault(device, [])
    if not made or made[-1].numel() < count:
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                f"tickets: {count} are needed while a CUDA graph is captured, and "
                f"{made[-1].numel() if made else 0} are there. Expected them before: "
                "run the same call once outside capture."
            )
        size = max(_LEAST_TICKETS, 1 << (count - 1).bit_length())
        made.append(torch.zeros(size, dtype=torch.int32, device=device))
    return made[-1]
