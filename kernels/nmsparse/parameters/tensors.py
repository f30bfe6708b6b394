"""The tensors a layer may have: names, shapes, dtypes, and what values are allowed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nmsparse.suggest import unknown

if TYPE_CHECKING:
    import torch

_FLOATS = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True)
class Kind:
    """One parameter.

    Attributes:
        shape: letters of its sizes: ``K``, ``O``, and ``r`` for any rank.
        dtypes: names of the types it may have.
    """

    shape: str
    dtypes: tuple[str, ...] = ("float32",)

    @property
    def input_side(self) -> bool:
        """Whether it belongs to the input, which the parts of a fused layer share."""
        return "O" not in self.shape


PARAMETERS = {
    "factor": Kind("K"),
    "channel_shift": Kind("K"),
    "output_scale": Kind("O"),
    "output_shift": Kind("O"),
    "low_rank_in": Kind("rK", _FLOATS),
    "low_rank_out": Kind("Or", _FLOATS),
    "channel_groups": Kind("K", ("int64",)),
}


def check_tensor(name: str, tensor: torch.Tensor) -> None:
    """Verify one parameter by itself.

    Raises:
        ValueError: if the name is unknown, or the tensor has another number of
            dimensions or dtype, or a value that is not allowed.
    """
    if name not in PARAMETERS:
        raise ValueError(unknown("parameter", name, PARAMETERS))
    kind = PARAMETERS[name]
    dtype = str(tensor.dtype).removeprefix("torch.")
    if tensor.dim() != len(kind.shape) or dtype not in kind.dtypes:
        raise ValueError(
            f"{name} is {dtype} {list(tensor.shape)}. Expected "
            f"{' or '.join(kind.dtypes)} [{', '.join(kind.shape)}]."
        )
    if name == "channel_groups":
        ordered = tensor.sort().values
        if not bool((ordered == ordered.new_ones(len(ordered)).cumsum(0) - 1).all()):
            raise ValueError(
                f"{name} is no permutation. Expected every number from 0 to "
                f"{len(ordered) - 1} once."
            )
    elif not bool(tensor.isfinite().all()):
        raise ValueError(f"{name} holds NaN or infinity. Expected finite numbers.")
    elif name == "factor" and bool((tensor < 0).any()):
        raise ValueError(f"{name} holds a negative number. Expected none.")
