"""``Canary``: compare sampled decode steps with the dense result, in production.

In a sampled step every tapped layer copies one generated token: its input, and what
the layer returned for it. Before the next step the dense product of that input is
computed, and two numbers are added up for the kind of layer: relative error and cosine
distance. Nothing of a token leaves the device but these sums.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

import torch
from vllm.logger import init_logger

from vllm_sparse.canary.ops import NO_ROW
from vllm_sparse.canary.taps import Tap, choose_layers
from vllm_sparse.custom_ops import ELEMENTS
from vllm_sparse.phases import DECODE

if TYPE_CHECKING:
    from vllm.model_executor.layers.linear import LinearBase

    from vllm_sparse.phases import TokenPhases
    from vllm_sparse.state import LayerState

logger = init_logger("vllm." + __name__)

_DEVICES = ("cpu", "cuda")
_TOKENS, _ERROR, _DISTANCE = range(3)


class KindTotals(TypedDict):
    """Sums over the comparisons of one kind of layer.

    A comparison is one token in one tapped layer on one rank. ``relative_error`` and
    ``cosine_distance`` are sums over ``tokens`` of them.
    """

    tokens: int
    relative_error: float
    cosine_distance: float


class CanaryStats(TypedDict):
    """What a worker says about its canary: share of steps, tapped layers, sums."""

    share: float
    layers: list[str]
    kinds: dict[str, KindTotals]


class Canary:
    """The shadow check of one engine on this rank.

    Args:
        share: of the decode steps that are sampled, above 0 and at most 1.
        phases: of the step's tokens.
    """

    def __init__(self, share: float, phases: TokenPhases) -> None:
        self.share = share
        self._phases = phases
        self._every = max(1, round(1 / share))
        device = phases.codes.device
        self._row = torch.full((1,), NO_ROW, dtype=torch.int64, device=device)
        self._candidates: list[tuple[LinearBase, LayerState]] = []
        self._taps: list[Tap] = []
        self._kinds: list[str] = []
        self._sums = torch.zeros(0, 3, dtype=torch.float64, device=device)
        self._steps = 0
        # Of the step that was sampled: counters before it, and whether a token was
        # found; None if there is nothing to compare.
        self._sampled: tuple[torch.Tensor, torch.Tensor] | None = None

    # -- layers ---------------------------------------------------------------------

    def add(self, layer: LinearBase, state: LayerState) -> None:
        """Consider a sparse layer that was just built."""
        self._candidates.append((layer, state))

    def attach(self) -> list[str]:
        """Tap layers, once all are built and before any code is compiled.

        Returns:
            Names of the tapped layers.
        """
        candidates, self._candidates = self._candidates, []
        for place in choose_layers([state.kind for _, state in candidates]):
            self._taps.append(Tap(*candidates[place], self._row, self.drop))
        self._kinds = list(dict.fromkeys(tap.kind for tap in self._taps))
        self._sums = self._sums.new_zeros(len(self._kinds), 3)
        if self._taps:
            self._phases.listener = self
            logger.info(
                "vllm-sparse: canary: one token of every %d. decode step is compared "
                "with the dense result in %d layers",
                self._every,
                len(self._taps),
            )
        else:
            logger.warning(
                "vllm-sparse: canary: no layer of this rank has sparse activations, so "
                "there is nothing to compare"
            )
        return [tap.name for tap in self._taps]

    # -- steps ----------------------------------------------------------------------

    @torch.no_grad()
    def start(self, decodes: bool | None) -> None:
        """Choose the token of a step that is about to run, if the step is sampled.

        Args:
            decodes: whether tokens of the step are generated ones; None where only the
                device knows, so that every step counts.
        """
        if decodes is False:
            return
        self._steps += 1
        if self._steps % self._every:
            return
        turn = self._steps // self._every
        row, found = choose_token(self._phases.codes, turn)
        self._row.copy_(row.view(1))
        self._sampled = self._counters(), found

    @torch.no_grad()
    def end(self) -> None:
        """Compare what the last step left, if it was sampled."""
        if self._sampled is None:
            return
        (before, found), self._sampled = self._sampled, None
        self._row.fill_(NO_ROW)
        # Layers whose step ran dense counted nothing.
        valid = found & (self._counters() > before)
        known = valid.tolist() if valid.is_cpu else [True] * len(self._taps)
        for tap, one, compared in zip(self._taps, valid, known, strict=True):
            values = tap.compare() if compared else None
            if values is not None:
                row = torch.cat((values.new_ones(1), values))
                row = torch.where(one, row, torch.zeros_like(row))
                self._sums[self._kinds.index(tap.kind)] += row

    def drop(self) -> None:
        """Forget a step that was not compared: a weight is no longer what it was."""
        self._sampled = None
        self._row.fill_(NO_ROW)

    def reset(self) -> None:
        """Count from zero again."""
        self.drop()
        self._steps = 0
        self._sums.zero_()

    def _counters(self) -> torch.Tensor:
        return torch.stack([tap.counters[ELEMENTS] for tap in self._taps])

    # -- results --------------------------------------------------------------------

    def read(self) -> CanaryStats:
        """Return the sums since the start; a step that was just sampled is in it."""
        if self._row.is_cpu:
            # On a GPU weights may be asleep now; there the next step compares.
            self.end()
        rows = self._sums.tolist()
        return CanaryStats(
            share=self.share,
            layers=[tap.name for tap in self._taps],
            kinds={
                kind: KindTotals(
                    tokens=int(row[_TOKENS]),
                    relative_error=row[_ERROR],
                    cosine_distance=row[_DISTANCE],
                )
                for kind, row in zip(self._kinds, rows, strict=True)
            },
        )


def choose_token(codes: torch.Tensor, turn: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return which generated token of a step is compared, and whether there is one.

    Another one at every turn, so that no request is watched alone. Nothing waits for
    the device.

    Args:
        codes: ``[max_tokens]`` uint8, phases of the tokens.
        turn: number of the sample.

    Returns:
        The token's row, int64, and a bool; both without dimensions.
    """
    decode = codes == DECODE
    order = decode.cumsum(0)
    wanted = torch.remainder(turn, order[-1].clamp(min=1)) + 1
    chosen = decode & (order == wanted)
    return chosen.to(torch.uint8).argmax(), order[-1] > 0


def make_canary(share: float, phases: TokenPhases, *, offloads: bool) -> Canary | None:
    """Return an engine's canary; None, with the reason in the log, if it has none.

    Args:
        share: of the decode steps that are sampled; 0 for no canary.
        phases: of the step's tokens.
        offloads: whether the engine keeps weights in the host's memory, from where
            they are brought for their layer's turn alone.
    """
    if not share:
        return None
    device = phases.codes.device.type
    if device in _DEVICES and not offloads:
        return Canary(share, phases)
    logger.warning(
        "vllm-sparse: canary: off, because %s",
        "weights are offloaded" if offloads else f"it was not made for {device}",
    )
    return None
