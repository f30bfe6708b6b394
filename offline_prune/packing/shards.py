"""One weight file, packed or unpacked: tensors that are not concerned stay as they are.

Tensors are mapped from the file and read one by one; what is in memory at once is the
new file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from nmsparse.packed import DTYPES, PackedWeight
from nmsparse.packed_format import decode, encode
from nmsparse.packed_manifest import BITMASK, VALUES, WEIGHT, PackedFormatError
from offline_prune.errors import InputError
from offline_prune.packing.folder import open_weights
from offline_prune.packing.save import save_weights

Shapes = Mapping[str, tuple[int, int]]


def pack_file(
    source: Path, target: Path, linears: Shapes, *, min_sparsity: float
) -> dict[str, float]:
    """Write ``target``: ``source`` with its sparse linear weights packed.

    Args:
        source: a safetensors file.
        target: the file to write.
        linears: modules that may be packed, with ``(O, K)``.
        min_sparsity: share of zeros from which a weight is packed.

    Returns:
        The sparsity of every weight of ``linears`` in the file.

    Raises:
        InputError: if a weight does not have the shape of its module.
    """
    tensors: dict[str, torch.Tensor] = {}
    sparsity: dict[str, float] = {}
    with open_weights(source) as file:
        for name in file.keys():  # noqa: SIM118 (it is no dict)
            tensor = file.get_tensor(name)
            module = name.removesuffix(WEIGHT)
            if module == name or module not in linears or tensor.dtype not in DTYPES:
                tensors[name] = tensor
                continue
            if tuple(tensor.shape) != tuple(linears[module]):
                raise InputError(
                    f"{source}: {name} has shape {list(tensor.shape)}. Expected "
                    f"{list(linears[module])}, by config.json: the two belong to "
                    "different models."
                )
            stored = int(tensor.count_nonzero())
            sparsity[module] = 1.0 - stored / tensor.numel()
            if sparsity[module] < min_sparsity:
                tensors[name] = tensor
                continue
            bitmask, values = encode(PackedWeight.pack(tensor))
            tensors[module + BITMASK], tensors[module + VALUES] = bitmask, values
        save_weights(tensors, target, file.metadata())
    return sparsity


def unpack_file(source: Path, target: Path, modules: Shapes) -> None:
    """Write ``target``: ``source`` with its packed weights dense again.

    Args:
        source: a safetensors file.
        target: the file to write.
        modules: the packed modules, with ``(O, K)``.

    Raises:
        PackedFormatError: naming the tensor that is damaged.
    """
    tensors: dict[str, torch.Tensor] = {}
    with open_weights(source) as file:
        names = set(file.keys())
        for name in sorted(names):
            module = name.removesuffix(BITMASK)
            if module == name:
                if name.removesuffix(VALUES) not in modules:
                    tensors[name] = file.get_tensor(name)
                continue
            if module + VALUES not in names:
                raise PackedFormatError(
                    f"{source}: {module + VALUES} is not in this file. Expected it "
                    f"beside {name}: pack the original model again."
                )
            pair = file.get_tensor(name), file.get_tensor(module + VALUES)
            weight = decode(module, *pair, shape=modules[module])
            tensors[module + WEIGHT] = weight.unpack()
        save_weights(tensors, target, file.metadata())
