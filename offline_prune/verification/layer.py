"""One layer of a pruned folder against its entry in ``results.json``."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from nmsparse.packed_manifest import BITMASK, VALUES, WEIGHT
from nmsparse.pattern import NMPattern
from offline_prune.report.layers import LayerResult
from offline_prune.report.results import RESULTS_NAME
from offline_prune.verification.content import (
    Content,
    count_nonfinite,
    dense_content,
    packed_content,
)
from offline_prune.verification.tensors import StoredTensor, TensorIndex

_FLOATS = ("F16", "BF16", "F32", "F64")
_BITS = "U8"


def check_layer(
    index: TensorIndex, layer: LayerResult, packed: Collection[str]
) -> tuple[int | None, list[str]]:
    """Compare one layer's weight with its entry.

    Args:
        index: where the tensors are.
        layer: the entry.
        packed: modules whose weights are stored packed.

    Returns:
        The number of zeros, None if the weight cannot be read, and one sentence for
        each problem, each beginning with the layer's name.
    """
    module = layer.stored_as.removesuffix(WEIGHT)
    in_bits = module in packed
    names = (BITMASK, VALUES) if in_bits else (WEIGHT,)
    stored_as = [module + suffix for suffix in names] if in_bits else [layer.stored_as]
    problems = [
        f"{layer.name}: {name} is missing. Expected it in the weight files: copy the "
        "folder again."
        for name in stored_as
        if name not in index.tensors
    ] or list(_misshaped(index, layer, stored_as, in_bits=in_bits))
    if problems:
        return None, problems
    pattern = layer.nm
    if pattern is not None and layer.in_features % pattern.m:
        problems.append(
            f"{layer.name}: {layer.in_features} input channels are no multiple of "
            f"{pattern.m}. Expected whole groups for {pattern}, the pattern in "
            f"{RESULTS_NAME}."
        )
        pattern = None
    if in_bits:
        content, more = packed_content(
            module, index.tensors, pattern, in_features=layer.in_features
        )
        problems += more
    else:
        place = index.tensors[layer.stored_as]
        content = dense_content(
            layer.stored_as, place, pattern, transposed=layer.transposed
        )
    problems += _differences(layer, content, pattern)
    problems += _bias(index, layer, f"{module}.bias")
    return content.zeros, problems


def _misshaped(
    index: TensorIndex, layer: LayerResult, names: list[str], *, in_bits: bool
) -> Iterator[str]:
    """Yield a sentence for each tensor of another type or shape."""
    rows, columns = layer.out_features, layer.in_features
    for name in names:
        found = index.tensors[name]
        types: tuple[str, ...] = _FLOATS
        shape: tuple[int, ...] = (
            (columns, rows) if layer.transposed else (rows, columns)
        )
        if in_bits and name.endswith(BITMASK):
            types, shape = (_BITS,), (rows, -(-columns // 8))
        elif in_bits:
            shape = found.shape[:1]
        if not _fits(found, types, shape):
            yield (
                f"{layer.name}: {name} is {found.dtype} {list(found.shape)}. Expected "
                f"{' or '.join(types)} {list(shape)}, by {RESULTS_NAME}."
            )


def _bias(index: TensorIndex, layer: LayerResult, name: str) -> Iterator[str]:
    """Yield a sentence if the layer has a bias that is no number somewhere.

    Compensation by mean shift writes biases.
    """
    place = index.tensors.get(name)
    if place is not None and place.dtype in _FLOATS:
        count = count_nonfinite(name, place)
        if count:
            yield (
                f"{layer.name}: {count:,} elements of its bias are NaN or infinite. "
                "Expected finite numbers: prune the model again."
            )


def _fits(found: StoredTensor, types: tuple[str, ...], shape: tuple[int, ...]) -> bool:
    return found.dtype in types and found.shape == shape


def _differences(
    layer: LayerResult, content: Content, pattern: NMPattern | None
) -> Iterator[str]:
    """Yield a sentence for each count that is not what it should be."""
    if content.nonfinite:
        yield (
            f"{layer.name}: {content.nonfinite:,} of {layer.size:,} weights are NaN or "
            "infinite. Expected finite numbers: prune the model again."
        )
    if pattern is not None and content.first is not None:
        row, channel = content.first
        yield (
            f"{layer.name}: {content.broken:,} of {layer.size // pattern.m:,} groups "
            f"hold more than {pattern.n} non-zeros of {pattern.m} (first: row {row}, "
            f"channels {channel} to {channel + pattern.m - 1}). Expected {pattern}."
        )
    if content.zeros != layer.zeros:
        yield (
            f"{layer.name}: {content.zeros:,} of {layer.size:,} weights are zero. "
            f"Expected {layer.zeros:,}, by {RESULTS_NAME}."
        )
