"""Which layers are tapped, and what a tap holds."""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from vllm.logger import init_logger

from vllm_sparse.buffers import add_buffer
from vllm_sparse.canary.compare import compare
from vllm_sparse.canary.method import TappedMethod
from vllm_sparse.method import product_bias
from vllm_sparse.treatment.shards import Split

if TYPE_CHECKING:
    from vllm.model_executor.layers.linear import LinearBase

    from vllm_sparse.state import LayerState

logger = init_logger("vllm." + __name__)

# Bounds the cost of a sampled step: as many dense products of one token for every kind.
LAYERS_PER_KIND = 3


def choose_layers(kinds: Sequence[str]) -> list[int]:
    """Return the places of the layers that are tapped.

    Args:
        kinds: of all candidates, in the order of the model.

    Returns:
        A few of every kind, from the middle of equal parts of the model's depth;
        ascending, and the same on every tensor-parallel rank.
    """
    places: defaultdict[str, list[int]] = defaultdict(list)
    for place, kind in enumerate(kinds):
        places[kind].append(place)
    chosen: list[int] = []
    for found in places.values():
        count = min(LAYERS_PER_KIND, len(found))
        chosen += [found[(2 * i + 1) * len(found) // (2 * count)] for i in range(count)]
    return sorted(chosen)


class Tap:
    """One tapped layer.

    Args:
        layer: a sparse layer of this rank; its method is wrapped.
        state: what is known about it.
        row: ``[1]`` int64, the token that is copied; shared by all taps.
        reloaded: called when its weight was loaded (again).

    Attributes:
        kind: label of the layer.
        counters: ``[2]`` int64 of the layer: they advance where it sparsifies.
    """

    def __init__(
        self,
        layer: LinearBase,
        state: LayerState,
        row: torch.Tensor,
        reloaded: Callable[[], None],
    ) -> None:
        assert state.counters is not None
        self.kind, self.name = state.kind, state.name
        self.counters = state.counters
        split, dtype = Split.of(layer), layer.params_dtype
        self._before = torch.zeros(1, split.k_local, dtype=dtype, device=row.device)
        self._after = torch.zeros(1, split.o_local, dtype=dtype, device=row.device)
        # Sessions outlive engines; weights must not.
        self._find: Callable[[], Any] = weakref.ref(layer)
        self._failed = False
        add_buffer(layer, "canary_row", row)
        add_buffer(layer, "canary_before", self._before)
        add_buffer(layer, "canary_after", self._after)
        layer.quant_method = TappedMethod(layer.quant_method, reloaded)

    def compare(self) -> torch.Tensor | None:
        """Return ``[2]`` float64, how far the tapped result is from the dense one.

        None if there is no dense result, which is said once.
        """
        layer = self._find()
        if layer is None or self._failed:
            return None
        method = layer.quant_method.inner
        try:
            dense = method.dense(layer, self._before, product_bias(layer))
            return compare(self._after, dense)
        except Exception as error:  # an observer must not stop the server
            self._failed = True
            logger.warning(
                "vllm-sparse: the canary cannot check %s any more: its dense product "
                "of one token failed: %s: %s",
                self.name,
                type(error).__name__,
                error,
            )
            return None
