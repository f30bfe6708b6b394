"""How a perturbation after one block has grown or shrunk at the end of the model.

Perturbations of all blocks travel together, so one pass over the blocks is enough:
after block l every window's hidden states are copied and perturbed, and from then on
the copy passes every block as the original does. Our formulation of arXiv 2606.15161,
whose text was not available.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from offline_prune.allocators.absorption import (
    Absorption,
    amplification,
    drift,
    perturb,
)
from offline_prune.pipeline.capture import Capture, run_block
from offline_prune.pipeline.layers import Layer
from offline_prune.pipeline.ranks import Ranks
from offline_prune.pipeline.stream import Stream
from offline_prune.scorers.base import Scorer
from offline_prune.selection import LayerTarget
from offline_prune.statistics.inputs import InputStatistics
from offline_prune.statistics.needs import Need

Result = tuple[list[float], list[float], list[float]]


class Amplification:
    """Perturbed copies of some windows on their way through the dense model.

    Args:
        options: size of the perturbation, draws and seed.
        capture: runs the model around its blocks.
        windows: this process's calibration windows.
        most: how many are used, of all processes: the first ones.
        scorer: prunes a block to see how large pruning's own perturbation is, if the
            options leave that open.
        sparsity: share of weights it removes then.
        ranks: the processes that share the calibration.
    """

    def __init__(
        self,
        options: Absorption,
        capture: Capture,
        windows: Sequence[torch.Tensor],
        *,
        most: int = 16,
        scorer: Scorer,
        sparsity: float,
        ranks: Ranks,
    ) -> None:
        self._options = options
        self._capture = capture
        # The same windows whatever the number of processes.
        self._windows = list(windows[: ranks.among_first(most)])
        self._scorer = scorer
        self._sparsity = sparsity
        self._ranks = ranks
        # perturbed[l][d][w]: window w, draw d, perturbed after block l.
        self._perturbed: list[list[list[torch.Tensor]]] = []
        self._previous: list[torch.Tensor] = []
        # Drift of every token right after it was perturbed, one a draw and window.
        self._sizes: list[list[torch.Tensor]] = []
        self._injected: list[float] = []
        self._norms: list[float] = []
        self._last: list[torch.Tensor] = []

    @property
    def needs(self) -> frozenset[Need]:
        """Statistics of a block's layers that the scorer works from."""
        return self._scorer.required if self._options.eta is None else frozenset()

    def after(
        self,
        index: int,
        block: nn.Module,
        stream: Stream,
        layers: Sequence[Layer],
        statistics: Mapping[str, InputStatistics],
    ) -> None:
        """Carry all copies through a block, then perturb its own output.

        Args:
            index: number of the block.
            block: the block, loaded and dense.
            stream: the dense stream, which has passed the block.
            layers: the block's layers.
            statistics: of the inputs of its layers.
        """
        for draws in self._perturbed:
            for copies in draws:
                for position, window in enumerate(self._windows):
                    call = self._capture.call(index, window)
                    copies[position] = run_block(block, copies[position], call)
        dense = [hidden[0].float() for hidden in stream.hidden[: len(self._windows)]]
        eta = self._options.eta
        if eta is None:
            eta = self._pruning_drift(index, block, layers, statistics, dense)
        self._injected.append(eta)
        self._norms.append(sum(float(h.norm(dim=-1).median()) for h in dense))
        draws, sizes = [], []
        for draw in range(self._options.draws):
            copies = []
            for position, hidden in enumerate(stream.hidden[: len(self._windows)]):
                noise = self._options.generator(
                    index, self._ranks.index(position), draw=draw
                )
                copy = perturb(hidden, eta, noise)
                copies.append(copy)
                # As rounded to the model's dtype, not as asked for.
                sizes.append(drift(hidden[0], copy[0]))
            draws.append(copies)
        self._sizes.append(sizes)
        self._perturbed.append(draws)
        self._last = dense
        self._previous = [h.clone() for h in stream.hidden[: len(self._windows)]]

    def result(self) -> Result:
        """Return amplification, norms and injected drifts, one number a block.

        The stream must have passed the last block.
        """
        logs, counts = [], []
        for sizes, draws in zip(self._sizes, self._perturbed, strict=True):
            copies = [copy for draw in draws for copy in draw]
            dense = [h for _ in draws for h in self._last]
            ratios = [
                amplification(size, drift(whole, copy[0].float()))
                for size, whole, copy in zip(sizes, dense, copies, strict=True)
            ]
            known = [math.log(r) for r in ratios if math.isfinite(r) and r > 0]
            logs.append(math.fsum(known))
            counts.append(float(len(known)))
        logs, counts = self._ranks.sums(logs), self._ranks.sums(counts)
        ratios = [
            math.exp(log / count) if count else math.nan
            for log, count in zip(logs, counts, strict=True)
        ]
        windows = max(1, self._ranks.total(len(self._windows)))
        norms = [value / windows for value in self._ranks.sums(self._norms)]
        return ratios, norms, self._injected

    def _pruning_drift(
        self,
        index: int,
        block: nn.Module,
        layers: Sequence[Layer],
        statistics: Mapping[str, InputStatistics],
        dense: Sequence[torch.Tensor],
    ) -> float:
        """Return the median drift of the block's output when only it is pruned."""
        saved = {layer.name: layer.view().clone() for layer in layers}
        for layer in layers:
            weight = layer.view().float()
            target = LayerTarget.count(round(self._sparsity * layer.size))
            found = statistics.get(layer.name)
            pruned = self._scorer.prune(weight, found, target).weight
            layer.view().copy_(pruned.to(layer.view().dtype))
        drifts = []
        for position, (window, whole) in enumerate(
            zip(self._windows, dense, strict=True)
        ):
            call = self._capture.call(index, window)
            start = self._previous[position] if index else self._capture.begin(window)
            moved = run_block(block, start, call)[0].float()
            drifts.append(float(drift(whole, moved).median()))
        for layer in layers:
            layer.view().copy_(saved[layer.name])
        # The same size on every process, so that their logs can be added.
        total, count = self._ranks.sums([sum(drifts), float(len(drifts))])
        return total / max(1.0, count)
