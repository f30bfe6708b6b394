"""Gradients of the loss at every linear's input, one block resident at a time.

Forward through the blocks, keeping the hidden states between them; the loss' gradient
at the last of them; then backward, block by block, each run again with its gradient.
The labels are drawn from the model's own predictions, so the squared gradients are the
diagonal of the Fisher information, not of the error on the text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import nn

from offline_prune.online.fused import FusedLinear
from offline_prune.pipeline.capture import Capture
from offline_prune.pipeline.skeleton import Skeleton

_HEAD_TOKENS = 64


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """What one window tells about one fused layer.

    Attributes:
        layer: the layer.
        inputs: ``[T, K]``, dtype of the model.
        gradient: ``[T, K]`` float32, of the window's summed loss at the layer's input,
            through this layer alone.
        output_energy: ``[O]`` float32, squared gradient at the outputs, summed over
            tokens but the first.
    """

    layer: FusedLinear
    inputs: torch.Tensor
    gradient: torch.Tensor
    output_energy: torch.Tensor


def walk_back(
    skeleton: Skeleton,
    capture: Capture,
    windows: Sequence[torch.Tensor],
    *,
    layers: Sequence[Sequence[FusedLinear]],
    visit: Callable[[Seen], None],
    seed: int = 0,
    tick: Callable[[], object] = lambda: None,
) -> None:
    """Visit every layer with every window, the last block first.

    Memory: the hidden states between all blocks, windows x T x D x (blocks + 1).

    Args:
        skeleton: the model.
        capture: runs it around its blocks.
        windows: int64 ``[T]`` each.
        layers: fused layers of every block.
        visit: called once a layer and window.
        seed: of the drawn labels.
        tick: called after every window that passed a block, forward or backward.
    """
    hidden = [[capture.begin(window)] for window in windows]
    for index in range(len(skeleton.blocks)):
        block = skeleton.load(index)
        for window, states in zip(windows, hidden, strict=True):
            call = capture.call(index, window)
            with torch.no_grad():
                states.append(_first(block(states[-1], *call.args, **call.kwargs)))
            tick()
        skeleton.unload(index)
    generator = torch.Generator().manual_seed(seed)
    gradients = [
        _loss_gradient(capture, window, states[-1], generator)
        for window, states in zip(windows, hidden, strict=True)
    ]
    for index in reversed(range(len(skeleton.blocks))):
        block = skeleton.load(index)
        for position, window in enumerate(windows):
            call = capture.call(index, window)
            entry = hidden[position][index].detach().requires_grad_(True)
            with ExitStack() as stack, torch.enable_grad():
                watched = [stack.enter_context(_Watch(x)) for x in layers[index]]
                out = _first(block(entry, *call.args, **call.kwargs))
                out.backward(gradients[position].to(out.dtype))
            assert entry.grad is not None
            gradients[position] = entry.grad
            for watch in watched:
                visit(watch.seen())
            # The block's output was needed by this one alone.
            hidden[position].pop()
            tick()
        skeleton.unload(index)


class _Watch:
    """Hooks on the parts of one layer for one forward and backward pass."""

    def __init__(self, layer: FusedLinear) -> None:
        self._layer = layer
        self._inputs: list[torch.Tensor] = []
        self._outputs: list[torch.Tensor] = []
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> _Watch:
        for module in self._layer.parts.values():
            self._handles.append(module.register_forward_pre_hook(self._before))
            self._handles.append(module.register_forward_hook(self._after))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _before(
        self, module: nn.Module, args: tuple[torch.Tensor, ...]
    ) -> tuple[torch.Tensor, ...]:
        # An alias of its own: other readers of the same tensor do not count.
        alias = args[0].view_as(args[0])
        if not alias.requires_grad:
            alias = alias.detach().requires_grad_(True)
        alias.retain_grad()
        self._inputs.append(alias)
        return (alias, *args[1:])

    def _after(self, module: nn.Module, args: object, output: torch.Tensor) -> None:
        output.retain_grad()
        self._outputs.append(output)

    def seen(self) -> Seen:
        """Return what was seen, once the gradient has passed."""
        width = self._inputs[0].shape[-1]
        gradient = sum(
            x.grad.reshape(-1, width).float()
            for x in self._inputs
            if x.grad is not None
        )
        assert isinstance(gradient, torch.Tensor)
        energies = [
            y.grad.reshape(-1, y.shape[-1])[1:].float().square().sum(0)
            for y in self._outputs
            if y.grad is not None
        ]
        inputs = self._inputs[0].detach().reshape(-1, width)
        return Seen(self._layer, inputs, gradient, torch.cat(energies))


def _loss_gradient(
    capture: Capture,
    window: torch.Tensor,
    hidden: torch.Tensor,
    generator: torch.Generator,
) -> torch.Tensor:
    """Return the gradient of the summed loss at the last hidden states."""
    found = torch.empty_like(hidden)
    # The head sees every token alone, so a few at a time: their logits are what is
    # largest of all.
    for start in range(0, len(window), _HEAD_TOKENS):
        part = slice(start, start + _HEAD_TOKENS)
        entry = hidden[:, part].detach().requires_grad_(True)
        with torch.enable_grad():
            logits = capture.logits_of(window[part], entry)
        chances = logits.detach().float().softmax(dim=-1)
        labels = _draw(chances, generator)
        # The gradient of the cross entropy, without a second softmax.
        chances[torch.arange(len(labels)), labels] -= 1.0
        logits.backward(chances.to(logits.dtype))
        assert entry.grad is not None
        found[:, part] = entry.grad
    return found


def _draw(chances: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return one class for each row of ``chances`` (``[T, V]``), by inverse sampling.

    ``torch.multinomial`` would draw a number for every class.
    """
    levels = torch.rand(len(chances), 1, generator=generator).to(chances.device)
    totals = chances.cumsum(dim=-1)
    # Scaled: a sum of rounded chances is not quite 1.
    found = torch.searchsorted(totals, levels * totals[:, -1:], right=True)
    return found[:, 0].clamp(max=chances.shape[1] - 1)


def _first(out: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
    return out[0] if isinstance(out, tuple | list) else out
