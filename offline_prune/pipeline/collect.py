"""Statistics of every layer's input, from one dense pass over a block."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import nn

from offline_prune.errors import InputError
from offline_prune.pipeline.experts import expert_inputs
from offline_prune.pipeline.layers import Layer
from offline_prune.pipeline.ranks import Ranks
from offline_prune.pipeline.stream import Stream
from offline_prune.statistics.inputs import InputStatistics
from offline_prune.statistics.needs import Need


class _EndOfInputsError(Exception):
    """All inputs of a block were seen: what follows makes only its output."""


class Collector:
    """Hooks that accumulate the inputs of a block's layers.

    Layers with the same input (q, k and v; gate and up) share one accumulator: which
    they are is seen from the tensors of the first window.

    Args:
        layers: of one block.
        needs: what is accumulated.
        windows: number of windows of all processes.
        ranks: the processes that share them.
        sample_rows: rows of the sample that is kept.
        device: where the block is. A process that sees no token of some expert must
            sum with the others on the same kind of device.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        *,
        needs: Collection[Need],
        windows: int,
        ranks: Ranks,
        sample_rows: int,
        device: torch.device,
    ) -> None:
        self._layers = layers
        self._needs = needs
        self._windows = windows
        self._ranks = ranks
        self._rows = sample_rows
        self._device = device
        self._window = 0
        self.statistics: dict[str, InputStatistics] = {}
        self._leaders: dict[str, str] = {}
        self._last: tuple[str, torch.Tensor] | None = None
        self._order: list[str] = []
        self._hooked: list[str] = []
        self._ends = False
        self._handles: list[Any] = []

    def __enter__(self) -> Collector:
        modules: dict[nn.Module, list[Layer]] = {}
        for layer in self._layers:
            modules.setdefault(layer.module, []).append(layer)
        for module, layers in modules.items():
            self._hooked.append(layers[0].name)
            if layers[0].expert is None:
                hook = self._linear(layers[0])
            else:
                hook = self._experts(module, layers)
            self._handles.append(
                module.register_forward_pre_hook(hook, with_kwargs=True)
            )
        return self

    def __exit__(self, *exception: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._last = None

    def run(self, stream: Stream, index: int, block: nn.Module) -> None:
        """Run the block over all windows, as far as inputs are still to be seen."""
        for position in range(len(stream)):
            self._window = self._ranks.index(position)
            with contextlib.suppress(_EndOfInputsError):
                stream.output(index, block, position)
            # Once every layer was called, and once: then the last call is the last.
            self._ends = sorted(self._order) == sorted(self._hooked)
            stream.tick()

    def shared(self) -> dict[str, InputStatistics]:
        """Return every layer's statistics; empty ones for experts never chosen."""
        found = {}
        for layer in self._layers:
            leader = self._leaders.get(layer.name, layer.name)
            found[layer.name] = self._of(leader, layer.in_features)
        return found

    def _of(self, name: str, features: int) -> InputStatistics:
        if name not in self.statistics:
            self.statistics[name] = InputStatistics(
                features,
                needs=self._needs,
                sample_rows=self._rows,
                sequences=self._windows,
                device=self._device,
            )
        return self.statistics[name]

    def _linear(self, layer: Layer) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            x = args[0] if args else next(iter(kwargs.values()))
            if layer.name not in self._leaders:
                same = self._last is not None and self._last[1] is x
                self._leaders[layer.name] = (
                    self._last[0] if same and self._last else layer.name
                )
            if self._leaders[layer.name] == layer.name:
                self._last = (layer.name, x)
                self._update(layer.name, x)
            self._seen(layer.name)

        return hook

    def _seen(self, name: str) -> None:
        """Stop the block once the layer that was the first window's last is seen."""
        if not self._ends:
            self._order.append(name)
        elif name == self._order[-1]:
            raise _EndOfInputsError

    def _experts(self, module: nn.Module, layers: Sequence[Layer]) -> Any:
        names = {(layer.expert, layer.part): layer.name for layer in layers}
        for (expert, part), name in names.items():
            if part == "up" and (expert, "gate") in names:
                self._leaders[name] = names[expert, "gate"]

        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            hidden, chosen = args[0], args[1]
            for expert, inputs, inner in expert_inputs(module, hidden, chosen):
                for part, x in (("gate", inputs), ("up", inputs), ("down", inner)):
                    name = names.get((expert, part))
                    if name is not None and self._leaders.get(name, name) == name:
                        self._update(name, x)
            self._seen(layers[0].name)

        return hook

    def _update(self, name: str, x: torch.Tensor) -> None:
        x = x.detach().flatten(0, -2)
        self._of(name, x.shape[-1]).update(x, index=self._window)


def collect(
    stream: Stream,
    index: int,
    block: nn.Module,
    *,
    layers: Sequence[Layer],
    needs: Collection[Need],
    sample_rows: int,
    ranks: Ranks,
) -> dict[str, InputStatistics]:
    """Run a dense block over all windows and return its layers' statistics.

    Args:
        stream: hidden states before the block; they are left as they are.
        index: number of the block.
        block: the block, loaded.
        layers: its layers.
        needs: what to accumulate; nothing is run if empty.
        sample_rows: rows of the sample.
        ranks: the processes that share the calibration.

    Raises:
        InputError: if an input is not finite.
    """
    collector = Collector(
        layers,
        needs=needs,
        windows=ranks.total(len(stream)),
        ranks=ranks,
        sample_rows=sample_rows,
        device=next(block.parameters()).device,
    )
    if needs:
        with collector:
            collector.run(stream, index, block)
    shared = collector.shared()
    done = set()
    for name, statistics in shared.items():
        if id(statistics) in done:
            continue
        done.add(id(statistics))
        ranks.reduce(statistics)
        if statistics.nonfinite:
            raise InputError(
                f"The input of {name} holds {statistics.nonfinite} NaN or infinite "
                "values on the calibration text. Expected finite activations: the "
                "model overflows in its dtype, convert it to bfloat16 or float32."
            )
    return shared
