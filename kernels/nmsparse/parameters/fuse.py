"""Parameters of a fused layer (``qkv_proj``) from those of its parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from nmsparse.parameters.layer import Parameters
from nmsparse.parameters.tensors import PARAMETERS, check_tensor

if TYPE_CHECKING:
    import torch


def fuse(
    parts: Sequence[Mapping[str, torch.Tensor]], *, names: Sequence[str] = ()
) -> Parameters:
    """Join the parameters of the parts of one layer.

    The parts share an input: what belongs to it must be identical. What belongs to
    outputs is concatenated in the given order.

    Args:
        parts: one mapping from parameter name to tensor for each part; one part for a
            layer that is not fused.
        names: names of the parts, for errors.

    Raises:
        ValueError: if parts have different parameters, or differ in what they share.
    """
    if not parts:
        return Parameters()
    titles = [*names[: len(parts)]]
    titles += [f"part {number}" for number in range(len(titles), len(parts))]
    first = parts[0]
    for title, part in zip(titles, parts, strict=True):
        for name, tensor in part.items():
            try:
                check_tensor(name, tensor)
            except ValueError as error:
                raise ValueError(f"{title}: {error}") from None
        if set(part) != set(first):
            raise ValueError(
                f"{titles[0]} has parameters {_listed(first)}, {title} has "
                f"{_listed(part)}. They are parts of one layer, so expected the same: "
                "calibrate the model again."
            )
    return Parameters(**{name: _join(name, parts, titles) for name in first})


def _join(
    name: str, parts: Sequence[Mapping[str, torch.Tensor]], titles: Sequence[str]
) -> torch.Tensor:
    import torch

    tensors = [part[name] for part in parts]
    if not PARAMETERS[name].input_side:
        if len({(tensor.dtype, tensor.shape[1:]) for tensor in tensors}) > 1:
            shapes = ", ".join(f"{t.dtype} {list(t.shape)}" for t in tensors)
            raise ValueError(
                f"{name} of {', '.join(titles)} is {shapes}. Expected one dtype and "
                "rank: calibrate the model again."
            )
        return torch.cat(tensors) if len(tensors) > 1 else tensors[0]
    for title, tensor in zip(titles, tensors, strict=True):
        same = tensor.dtype == tensors[0].dtype and torch.equal(tensor, tensors[0])
        if not same:
            raise ValueError(
                f"{name} differs between {titles[0]} and {title}. They are parts of "
                "one layer and share its input, so expected the same tensor: "
                "calibrate the model again."
            )
    return tensors[0]


def _listed(names: Mapping[str, object]) -> str:
    return ", ".join(sorted(names)) or "none"
