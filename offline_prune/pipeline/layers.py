"""The weights of a block that can be pruned, all seen as ``[O, K]``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from nmsparse.targets import Specificity, best_match
from offline_prune.errors import InputError
from offline_prune.pipeline.experts import is_experts
from offline_prune.pipeline.skeleton import Skeleton

# Small layers that decide where a token goes: never pruned unless named in full.
ROUTERS = (r"re:.*\.(gate|router|shared_expert_gate)(\..*)?$",)
# Parameters of stacked experts, and the weights that each holds.
_EXPERT_PARTS = (("gate_up_proj", ("gate", "up")), ("down_proj", ("down",)))


@dataclass(frozen=True, slots=True)
class Layer:
    """One weight.

    Attributes:
        name: name in the files, without ``.weight``.
        tensor: name of the tensor in the files.
        module: the module whose input is the layer's input.
        path: the module's name within its block.
        parameter: the module's parameter that holds the weight.
        transposed: whether it is stored ``[K, O]`` (GPT-2's Conv1D).
        expert: number of the expert, None for an ordinary layer.
        part: ``gate``, ``up`` or ``down`` of an expert.
        rows: rows of the expert's parameter that belong to this weight.
        out_features: O.
        in_features: K.
    """

    name: str
    tensor: str
    module: nn.Module
    path: str
    parameter: str
    transposed: bool
    expert: int | None
    part: str
    rows: tuple[int, int]
    out_features: int
    in_features: int

    @property
    def size(self) -> int:
        """Number of weights."""
        return self.out_features * self.in_features

    @property
    def kind(self) -> str:
        """Last part of the name, such as ``down_proj``."""
        return self.name.rpartition(".")[2]

    def view(self) -> torch.Tensor:
        """Return the weight as ``[O, K]``, sharing memory with the module."""
        weight: torch.Tensor = getattr(self.module, self.parameter).data
        if self.expert is not None:
            return weight[self.expert, slice(*self.rows)]
        return weight.t() if self.transposed else weight

    def stored(self) -> torch.Tensor:
        """Return a contiguous copy in the layout of the files."""
        weight = self.view()
        return (weight.t() if self.transposed else weight).contiguous().clone()


def find_layers(
    skeleton: Skeleton,
    index: int,
    *,
    targets: Sequence[str] = (),
    ignore: Sequence[str] = (),
) -> list[Layer]:
    """Return the prunable weights of a block, in the model's order.

    Args:
        skeleton: the model; the block's weights need not be loaded.
        index: number of the block.
        targets: what to prune (name, ``re:`` expression or class); empty for all.
        ignore: what to leave dense; wins over ``targets``.

    Raises:
        InputError: if the block has experts in a layout that is not known.
    """
    found = []
    block, prefix = skeleton.blocks[index], skeleton.name(index)
    for path, module in block.named_modules():
        for layer in _layers_of(skeleton, prefix, path, module, ignore):
            names = (type(module).__name__, "Linear")
            if best_match(ignore, layer.name, names)[0]:
                continue
            match = best_match(targets, layer.name, names)[0]
            if targets and not match:
                continue
            router = best_match(ROUTERS, layer.name, ())[0]
            if router and match is not Specificity.NAME:
                continue
            found.append(layer)
    return found


def _layers_of(
    skeleton: Skeleton,
    prefix: str,
    path: str,
    module: nn.Module,
    ignore: Sequence[str],
) -> list[Layer]:
    from transformers.pytorch_utils import Conv1D

    if is_experts(module):
        return _experts(skeleton, prefix, path, module)
    name = f"{prefix}.{path}"
    if not isinstance(module, nn.Linear | Conv1D):
        stacked = [n for n, p in module.named_parameters(recurse=False) if p.ndim == 3]
        if stacked and not best_match(ignore, name, (type(module).__name__,))[0]:
            raise InputError(
                f"{name} holds experts in a layout that is not known "
                f"({type(module).__name__}.{stacked[0]}). Expected gate_up_proj "
                f"[E, 2I, H] and down_proj [E, H, I]: leave them dense with ignore "
                f"{name!r}."
            )
        return []
    stored = skeleton.reader.find(f"{name}.weight")
    tensor = stored.plain if stored else f"{name}.weight"
    transposed = isinstance(module, Conv1D)
    shape = tuple(module.weight.shape)
    out_features, in_features = shape[::-1] if transposed else shape
    return [
        Layer(
            name=tensor.removesuffix(".weight"),
            tensor=tensor,
            module=module,
            path=path,
            parameter="weight",
            transposed=transposed,
            expert=None,
            part="",
            rows=(0, out_features),
            out_features=out_features,
            in_features=in_features,
        )
    ]


def _experts(
    skeleton: Skeleton, prefix: str, path: str, module: nn.Module
) -> list[Layer]:
    layers = []
    for parameter, parts in _EXPERT_PARTS:
        stored = skeleton.reader.find(f"{prefix}.{path}.{parameter}")
        if stored is None or not stored.stacked:
            raise InputError(
                f"{prefix}.{path}: its experts are stored in one tensor. Expected one "
                "tensor for each expert, as transformers saves them: save the model "
                "with transformers first."
            )
        _, rows, columns = getattr(module, parameter).shape
        height = rows // len(parts)
        for expert, names in enumerate(stored.names):
            for position, (part, tensor) in enumerate(zip(parts, names, strict=True)):
                layers.append(
                    Layer(
                        name=tensor.removesuffix(".weight"),
                        tensor=tensor,
                        module=module,
                        path=path,
                        parameter=parameter,
                        transposed=False,
                        expert=expert,
                        part=part,
                        rows=(position * height, (position + 1) * height),
                        out_features=height,
                        in_features=columns,
                    )
                )
    return layers
