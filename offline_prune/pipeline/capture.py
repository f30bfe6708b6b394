"""What the model hands to its blocks, taken from the model's own forward.

Masks, position embeddings and whatever a new architecture adds are never rebuilt here:
the model runs with every block replaced by one that returns its input and writes down
its arguments.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from offline_prune.pipeline.skeleton import Skeleton


@dataclass(frozen=True, slots=True)
class Call:
    """Arguments of one call of a block, without the hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class _EnoughError(Exception):
    """One block's output was seen."""


class Capture:
    """Runs the model around its blocks.

    Args:
        skeleton: the model; its blocks need no weights.
    """

    def __init__(self, skeleton: Skeleton) -> None:
        self._skeleton = skeleton
        # By length of a window: arguments that were the same so far, None once they
        # were not.
        self._constant: dict[int, list[Call] | None] = {}
        self._compared: set[int] = set()
        self._outputs: int | None = None

    def begin(self, window: torch.Tensor) -> torch.Tensor:
        """Return the hidden states before the first block, ``[1, T, D]``.

        Args:
            window: int64 ``[T]`` token ids.
        """
        hidden, calls = self._hollow(window)
        length = len(window)
        if length not in self._constant:
            self._constant[length] = calls
        elif length not in self._compared:
            self._compared.add(length)
            if not _same(self._constant[length], calls):
                self._constant[length] = None
        return hidden

    def call(self, index: int, window: torch.Tensor) -> Call:
        """Return the arguments of block ``index`` for a window.

        They are the same for all windows of one length in most models. Where they
        depend on the tokens, they are computed again for each.
        """
        constant = self._constant.get(len(window))
        if constant is not None:
            return constant[index]
        return self._hollow(window)[1][index]

    @torch.no_grad()
    def logits(self, window: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """Return ``[T, V]``: the final norm and head on a window's last hidden states.

        Args:
            window: the token ids.
            hidden: ``[1, T, D]``, output of the last block.
        """
        return self.logits_of(window, hidden)

    def logits_of(self, window: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """Return the same with whatever gradient ``hidden`` asks for."""

        def last(*args: Any, **kwargs: Any) -> Any:
            return self._as_block(hidden, window)

        with _replaced(self._skeleton.blocks, [last] * len(self._skeleton.blocks)):
            ids = window[None].to(self._skeleton.device)
            out = self._skeleton.model(input_ids=ids, use_cache=False)
        logits: torch.Tensor = out.logits[0]
        return logits

    @torch.no_grad()
    def _hollow(self, window: torch.Tensor) -> tuple[torch.Tensor, list[Call]]:
        calls: list[Call] = []
        first: list[torch.Tensor] = []

        def record(*args: Any, **kwargs: Any) -> Any:
            rest = dict(kwargs)
            if args:
                hidden, *positional = args
            else:
                hidden, positional = rest.pop("hidden_states"), []
            first.append(hidden)
            calls.append(Call(tuple(positional), rest))
            return self._as_block(hidden, window)

        self._learn(window)

        blocks = self._skeleton.blocks
        with _replaced(blocks, [record] * len(blocks)):
            # Without the head, whose logits nobody reads here.
            base = self._skeleton.model.base_model
            base(input_ids=window[None].to(self._skeleton.device), use_cache=False)
        return first[0], calls

    def _as_block(self, hidden: torch.Tensor, window: torch.Tensor) -> Any:
        """Return hidden states in the form in which the model's blocks return them."""
        outputs = self._learn(window)
        return (hidden, *[None] * (outputs - 1)) if outputs else hidden

    def _learn(self, window: torch.Tensor) -> int:
        """Return how many outputs a block has; 0 if it returns a tensor.

        Seen from the first block, which is run once on two tokens.
        """
        if self._outputs is not None:
            return self._outputs
        block = self._skeleton.load(0)
        forward, found = block.forward, list[Any]()

        def first(*args: Any, **kwargs: Any) -> Any:
            found.append(forward(*args, **kwargs))
            raise _EnoughError

        device = self._skeleton.device
        with _replaced([block], [first]), contextlib.suppress(_EnoughError):
            self._skeleton.model.base_model(
                input_ids=window[None, :2].to(device), use_cache=False
            )
        self._skeleton.unload(0)
        out = found[0]
        self._outputs = len(out) if isinstance(out, tuple | list) else 0
        return self._outputs


def run_block(block: nn.Module, hidden: torch.Tensor, call: Call) -> torch.Tensor:
    """Return a block's output, ``[1, T, D]``."""
    with torch.no_grad():
        out = block(hidden, *call.args, **call.kwargs)
    result: torch.Tensor = out[0] if isinstance(out, tuple | list) else out
    return result


@contextmanager
def _replaced(blocks: list[nn.Module], forwards: list[Any]) -> Iterator[None]:
    """Give every block another ``forward`` for a while."""
    try:
        for block, forward in zip(blocks, forwards, strict=True):
            block.__dict__["forward"] = forward
        yield
    finally:
        for block in blocks:
            block.__dict__.pop("forward", None)


def _same(left: Any, right: Any) -> bool:
    """Compare two nested structures of arguments."""
    if isinstance(left, Call) and isinstance(right, Call):
        return _same(left.args, right.args) and _same(left.kwargs, right.kwargs)
    if isinstance(left, torch.Tensor):
        return isinstance(right, torch.Tensor) and (
            left is right or torch.equal(left, right)
        )
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(_same, left, right))
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(
            _same(left[key], right[key]) for key in left
        )
    return bool(left is right or left == right)
