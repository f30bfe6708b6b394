"""The block that is in memory, with sparse layers in it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from nmsparse.ops.online import Online
from offline_prune.online.emulated_layer import EmulatedLayer
from offline_prune.online.fused import FusedLinear, fused_linears
from offline_prune.pipeline.capture import Call, Capture, run_block


class _EnoughError(Exception):
    """The input that was asked for has been seen."""


class Resident:
    """Run one block on windows, dense or with its layers as they are set.

    Args:
        block: the block, loaded.
        name: its full name.
        index: its number.
        capture: knows the block's other arguments.
        windows: token ids, all of one length.
        dense_first_token: whether position 0 is never sparsified.

    Attributes:
        layers: the block's linears by vLLM's names.
    """

    def __init__(
        self,
        block: nn.Module,
        name: str,
        *,
        index: int,
        capture: Capture,
        windows: Sequence[torch.Tensor],
        dense_first_token: bool,
    ) -> None:
        self.block = block
        self.dense_first_token = dense_first_token
        self.layers = {layer.name: layer for layer in block_linears(block, name)}
        self.tokens = len(windows[0])
        self._index = index
        self._capture = capture
        self._windows = windows
        self._sparse: dict[str, EmulatedLayer] = {}
        self._enabled = True

    def set(self, name: str, online: Online) -> None:
        """Make a layer sparse, or sparse in another way."""
        if name in self._sparse:
            self._sparse.pop(name).restore()
        self._sparse[name] = EmulatedLayer(self.layers[name], online, self.rows)

    def restore(self) -> None:
        """Make every layer dense again."""
        for layer in self._sparse.values():
            layer.restore()
        self._sparse.clear()

    @contextmanager
    def dense(self) -> Iterator[None]:
        """Let the block be dense for a while."""
        self._enabled = False
        try:
            yield
        finally:
            self._enabled = True

    def rows(self, name: str, count: int) -> torch.Tensor | None:
        """Return which rows of a layer's input are sparsified; None for all."""
        if not self._enabled:
            return torch.zeros(count, dtype=torch.bool)
        if not self.dense_first_token or count != self.tokens:
            return None
        chosen = torch.ones(count, dtype=torch.bool)
        chosen[0] = False
        return chosen

    def call(self, position: int) -> Call:
        """Return the block's other arguments for a window."""
        return self._capture.call(self._index, self._windows[position])

    def output(self, position: int, hidden: torch.Tensor) -> torch.Tensor:
        """Return the block's output for a window, ``[1, T, D]``."""
        return run_block(self.block, hidden, self.call(position))

    def order(self, hidden: torch.Tensor) -> list[str]:
        """Return the layers in the order of their calls, seen from window 0.

        Layers that this window does not reach (experts) come last.

        Args:
            hidden: ``[1, T, D]``, hidden states of window 0.
        """
        found: list[str] = []
        hooks = [
            _first(layer).register_forward_pre_hook(
                lambda module, args, name=name: found.append(name)
            )
            for name, layer in self.layers.items()
        ]
        try:
            self.output(0, hidden)
        finally:
            for hook in hooks:
                hook.remove()
        return list(dict.fromkeys([*found, *self.layers]))

    def inputs(
        self, name: str, hidden: Sequence[torch.Tensor]
    ) -> list[torch.Tensor | None]:
        """Return a layer's input in the first windows, ``[rows, K]`` each.

        The block is left as soon as the layer is reached.

        Args:
            name: of the layer.
            hidden: ``[1, T, D]`` of each window.

        Returns:
            None for a window that does not reach the layer.
        """
        found: list[torch.Tensor] = []

        def see(module: nn.Module, args: tuple[Any, ...]) -> None:
            found.append(args[0].reshape(-1, args[0].shape[-1]))
            raise _EnoughError

        result: list[torch.Tensor | None] = []
        hook = _first(self.layers[name]).register_forward_pre_hook(see)
        try:
            for position, states in enumerate(hidden):
                found.clear()
                with contextlib.suppress(_EnoughError):
                    self.output(position, states)
                result.append(found[0] if found else None)
        finally:
            hook.remove()
        return result


def block_linears(block: nn.Module, name: str) -> list[FusedLinear]:
    """Return the linears of a block under their full names.

    Args:
        block: one decoder block.
        name: its full name.
    """
    return [
        FusedLinear(
            f"{name}.{layer.name}",
            {f"{name}.{part}": module for part, module in layer.parts.items()},
        )
        for layer in fused_linears(block)
    ]


def _first(layer: FusedLinear) -> nn.Module:
    """Return the part that sees the shared input first in every known model."""
    return next(iter(layer.parts.values()))
