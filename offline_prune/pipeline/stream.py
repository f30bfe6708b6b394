"""Hidden states of all windows between two blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from offline_prune.pipeline.capture import Capture, run_block

Tick = Callable[[], None]


class Stream:
    """Windows on their way through the model, one block at a time.

    Memory is windows x T x D in the model's dtype, whatever the number of blocks.

    Args:
        capture: runs the model around its blocks.
        windows: int64 ``[T]`` each, all of one length.
        tick: called after every window that passed a block.
    """

    def __init__(
        self,
        capture: Capture,
        windows: Sequence[torch.Tensor],
        *,
        tick: Tick = lambda: None,
    ) -> None:
        self._capture = capture
        self._windows = list(windows)
        self.tick = tick
        self.hidden = [capture.begin(window) for window in self._windows]

    def __len__(self) -> int:
        return len(self._windows)

    def output(self, index: int, block: nn.Module, position: int) -> torch.Tensor:
        """Return the block's output for one window; nothing is kept.

        Args:
            index: number of the block.
            block: the block, loaded.
            position: number of the window.
        """
        call = self._capture.call(index, self._windows[position])
        return run_block(block, self.hidden[position], call)

    def advance(self, index: int, block: nn.Module) -> None:
        """Replace every window's hidden states by the block's output."""
        for position in range(len(self)):
            self.hidden[position] = self.output(index, block, position)
            self.tick()

    def loss(self) -> tuple[float, int]:
        """Return the summed negative log-likelihood and the number of targets.

        The hidden states must have passed the last block.
        """
        total, count = 0.0, 0
        for window, hidden in zip(self._windows, self.hidden, strict=True):
            logits = self._capture.logits(window, hidden)[:-1].float()
            targets = window[1:].to(logits.device)
            loss = nn.functional.cross_entropy(logits, targets, reduction="sum")
            total, count = total + float(loss), count + len(targets)
        return total, count
