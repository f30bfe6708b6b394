"""Where blocks are computed."""

from __future__ import annotations

import os

import torch

from offline_prune.errors import InputError


def choose_device(name: str | None) -> torch.device:
    """Return the device that was asked for, or a GPU if there is one.

    With ``torchrun`` every process of a machine takes a GPU of its own, as long as
    there are enough.

    Raises:
        InputError: if the device cannot be used.
    """
    if name is None:
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        place = int(os.environ.get("LOCAL_RANK", "0"))
        name = f"cuda:{place % count}" if count else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        # AssertionError is what a build without CUDA raises.
        text = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"Device {name!r} cannot be used ({text}). Expected cpu, or cuda on a "
            "machine with a GPU: leave device out to let it be chosen."
        ) from None
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device
