"""Which forms the plugin holds of a layer's weight, and which one a step reads."""

from __future__ import annotations

from dataclasses import dataclass

from vllm_sparse.execution import AUTO, MIN_SPARSITY, OFF, ROWS_GAIN
from vllm_sparse.plan.layers import Layer
from vllm_sparse.plan.traffic import (
    DENSE,
    MAX_TOKENS,
    MIN_SHARED_TOKENS,
    Form,
    lists,
    packed,
    packed_bytes,
    shared,
)


@dataclass(frozen=True, slots=True)
class Held:
    """Our forms of one layer's weight.

    Attributes:
        listed: whether rows are gathered by lists of channels.
        packed: whether there are bits and values.
    """

    listed: bool
    packed: bool

    def __bool__(self) -> bool:
        return self.listed or self.packed


def held(layer: Layer, device: str, sparse_weights: str = AUTO) -> Held:
    """Return what the plugin makes of a layer.

    On a CPU it is one form, the one that reads fewest bytes; on a GPU rows, which take
    no memory of their own, and a packed copy beside them.

    Args:
        layer: of one rank.
        device: ``gpu`` or ``cpu``.
        sparse_weights: as in ``serve``.
    """
    listed = layer.pattern is not None and not layer.no_kernel
    many = layer.zeros >= MIN_SPARSITY and not layer.quantized
    packs = many and sparse_weights != OFF
    if device == "cpu" and listed and packs:
        assert layer.pattern is not None
        share = packed_share(layer)
        packs = share <= layer.pattern.density + ROWS_GAIN
        listed = not packs
    return Held(listed, packs)


def packed_share(layer: Layer) -> float:
    """Return values and bits of a packed weight against the dense one's bytes."""
    density = 1 - layer.zeros
    return packed_bytes(layer, density, offsets=False) / layer.dense_bytes


def step_form(layer: Layer, kept: Held, tokens: int, *, shared_lists: bool) -> Form:
    """Return the form that reads fewest bytes in a step.

    Args:
        layer: of one rank.
        kept: what there is of its weight.
        tokens: T. Above 16 a step is dense: the product is vLLM's.
        shared_lists: whether 3 to 16 tokens may share one list.
    """
    forms = [DENSE]
    if tokens <= MAX_TOKENS:
        if kept.listed:
            assert layer.pattern is not None
            density = layer.pattern.density
            forms.append(lists(density))
            if shared_lists and tokens >= MIN_SHARED_TOKENS:
                forms.append(shared(density))
        if kept.packed:
            forms.append(packed(1 - layer.zeros))
    return min(forms, key=lambda form: form.read(layer, tokens))
