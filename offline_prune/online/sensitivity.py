"""What a sparse input of each layer costs, at every level of density.

``final``: the effect on the model's output, to second order. With ``g`` the gradient of
the loss at a layer's input and ``d`` the dropped part of the input, a token's cost is
``(g . d)^2 / 2``, in nats: the Fisher information's estimate of the divergence between
dense and sparse predictions, one layer sparse at a time. Labels are the model's own, so
there is no first order. ``block``: the error of the block's output (TEAL's measure,
arXiv 2408.14690). Estimates in our formulation. The first token of a window is left
out: its huge activations (an attention sink) would drown all others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch

from nmsparse.keep import order_keys
from nmsparse.ops.online import Online
from offline_prune.online.emulated_layer import EmulatedLayer
from offline_prune.online.fused import FusedLinear
from offline_prune.online.levels import Levels
from offline_prune.online.reverse import Seen, walk_back
from offline_prune.pipeline.capture import Capture
from offline_prune.pipeline.skeleton import Skeleton
from offline_prune.pipeline.stream import Stream

# Layer name to the cost of every level from 1; the last is dense and costs nothing.
Costs = dict[str, list[float]]
# Gives what is done to a layer's input at a level.
AtLevel = Callable[[FusedLinear, int], Online]


@dataclass(slots=True)
class FinalCosts:
    """Collects costs on the model's output; pass :meth:`visit` to ``walk_back``.

    Attributes:
        levels: the densities.
        at: what is done at a level.
    """

    levels: Levels
    at: AtLevel
    _sums: dict[str, torch.Tensor] = field(default_factory=dict)
    _tokens: dict[str, int] = field(default_factory=dict)

    def visit(self, seen: Seen) -> None:
        """Add one window of one layer."""
        name, x, g = seen.layer.name, seen.inputs[1:], seen.gradient[1:]
        sums = self._sums.setdefault(
            name, torch.zeros(self.levels.count, dtype=torch.float64)
        )
        changes = changes_by_level(x, g, self.at(seen.layer, 1), self.levels)
        sums[:-1] += 0.5 * changes.double().square().sum(1).cpu()
        self._tokens[name] = self._tokens.get(name, 0) + len(x)

    def result(self) -> Costs:
        """Return nats per token."""
        return {
            name: (sums / max(1, self._tokens[name])).tolist()
            for name, sums in self._sums.items()
        }


def changes_by_level(
    x: torch.Tensor, gradient: torch.Tensor, online: Online, levels: Levels
) -> torch.Tensor:
    """Return ``g . d`` of every token at every level below the dense one.

    What a level drops is part of what the levels below it drop, so one ranking of each
    group's channels gives all levels.

    Args:
        x: ``[T, K]`` input of the layer.
        gradient: ``[T, K]`` float32.
        online: criterion and static tensors; its pattern is not used.
        levels: the densities.

    Returns:
        ``[levels.count - 1, T]`` float32.
    """
    tokens, channels = x.shape
    wide = x.float()
    # In the dtype of x without a factor, as the selection does: shorter keys.
    scores, products = x.abs(), wide * gradient
    factor = online.correction(x).factor
    if factor is not None:
        scores = wide.abs() * factor.float()
    order = online.parameters.channel_groups
    if order is not None:
        scores, products = scores[:, order], products[:, order]
    kept, group = zip(
        *(levels.pattern(n).group(channels) for n in range(1, levels.count)),
        strict=True,
    )
    ranks = _best_first(order_keys(scores, group[0], signed=False))
    ranked = products.view(tokens, -1, group[0]).gather(-1, ranks).sum(1)
    dropped = ranked.flip(1).cumsum(1).flip(1)
    return dropped[:, list(kept)].t()


def _best_first(keys: torch.Tensor) -> torch.Tensor:
    """Return positions in the order of their keys, int64 ``[..., M]``.

    Args:
        keys: of ``nmsparse.keep.order_keys``; their low 16 bits count positions down.
    """
    if keys.is_cpu:
        # numpy sorts whole numbers with vector instructions, torch does not.
        ordered = torch.from_numpy(np.sort(keys.numpy(), axis=-1))
    else:
        ordered = keys.sort(dim=-1).values
    places: torch.Tensor = keys.shape[-1] - 1 - (ordered.flip(-1) & 0xFFFF).long()
    return places


@dataclass(slots=True)
class OutputEnergies:
    """Collects the mean squared gradient at every output, for ``second_order``."""

    _sums: dict[str, torch.Tensor] = field(default_factory=dict)
    _tokens: dict[str, int] = field(default_factory=dict)

    def visit(self, seen: Seen) -> None:
        """Add one window of one layer."""
        name = seen.layer.name
        self._sums[name] = self._sums.get(name, 0) + seen.output_energy.cpu()
        self._tokens[name] = self._tokens.get(name, 0) + len(seen.inputs) - 1

    def result(self) -> dict[str, torch.Tensor]:
        """Return ``[O]`` float32 of every fused layer."""
        return {
            name: total / max(1, self._tokens[name])
            for name, total in self._sums.items()
        }


def final_costs(
    skeleton: Skeleton,
    capture: Capture,
    windows: Sequence[torch.Tensor],
    *,
    layers: Sequence[Sequence[FusedLinear]],
    levels: Levels,
    at: AtLevel,
    seed: int = 0,
    tick: Callable[[], object] = lambda: None,
) -> Costs:
    """Return the costs of all layers on the model's output, in nats per token."""
    costs = FinalCosts(levels, at)
    walk_back(
        skeleton,
        capture,
        windows,
        layers=layers,
        visit=costs.visit,
        seed=seed,
        tick=tick,
    )
    return costs.result()


def block_costs(
    skeleton: Skeleton,
    capture: Capture,
    windows: Sequence[torch.Tensor],
    *,
    layers: Sequence[Sequence[FusedLinear]],
    levels: Levels,
    at: AtLevel,
    tick: Callable[[], object] = lambda: None,
) -> Costs:
    """Return the costs of all layers on their block's output.

    A cost is the mean over tokens of the squared error of the block's output, divided
    by the square of what the block adds to its input.
    """
    stream = Stream(capture, windows)
    found: Costs = {}
    for index in range(len(skeleton.blocks)):
        block = skeleton.load(index)
        before = list(stream.hidden)
        dense = [stream.output(index, block, p) for p in range(len(stream))]
        for layer in layers[index]:
            costs = []
            for level in range(1, levels.count):
                sparse = EmulatedLayer(layer, at(layer, level), lambda *_: None)
                try:
                    outs = [stream.output(index, block, p) for p in range(len(stream))]
                finally:
                    sparse.restore()
                costs.append(_mean_error(outs, dense, before))
            found[layer.name] = [*costs, 0.0]
        stream.hidden = dense
        for _ in range(len(stream)):
            tick()
        skeleton.unload(index)
    return found


def _mean_error(
    outs: Sequence[torch.Tensor],
    dense: Sequence[torch.Tensor],
    before: Sequence[torch.Tensor],
) -> float:
    total, tokens = 0.0, 0
    for out, want, entry in zip(outs, dense, before, strict=True):
        error = (out - want)[0, 1:].double().square().sum(1)
        size = (want - entry)[0, 1:].double().square().sum(1)
        total += float((error / size.clamp(min=1e-12)).sum())
        tokens += len(error)
    return total / max(1, tokens)


def input_energies(
    skeleton: Skeleton,
    capture: Capture,
    windows: Sequence[torch.Tensor],
    *,
    layers: Sequence[Sequence[FusedLinear]],
    tick: Callable[[], object] = lambda: None,
) -> Mapping[str, torch.Tensor]:
    """Return the mean squared input of every channel, ``[K]`` float64, by layer.

    Every token counts by the shares of its channels, the first of a window as well.
    """
    stream = Stream(capture, windows)
    sums: dict[str, torch.Tensor] = {}
    for index in range(len(skeleton.blocks)):
        block = skeleton.load(index)
        handles = []
        for layer in layers[index]:
            first = next(iter(layer.parts.values()))
            add = partial(_add_energy, sums, layer.name)
            handles.append(first.register_forward_pre_hook(add))
        try:
            for position in range(len(stream)):
                stream.hidden[position] = stream.output(index, block, position)
                tick()
        finally:
            for handle in handles:
                handle.remove()
        skeleton.unload(index)
    return sums


def _add_energy(
    sums: dict[str, torch.Tensor],
    name: str,
    module: torch.nn.Module,
    args: tuple[torch.Tensor, ...],
) -> None:
    x = args[0].reshape(-1, args[0].shape[-1]).double()
    # Each token by its share: tokens of huge norm would decide alone.
    x = x / x.norm(dim=1, keepdim=True).clamp(min=1e-30)
    sums[name] = sums.get(name, 0) + x.square().sum(0).cpu()
