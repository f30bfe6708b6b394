"""Split a byte budget over layers: who keeps how much of its input.

Every layer has a cost at each level of density, and a level's weights to read. Starting
from the least level, the step with the greatest fall of cost for each byte is taken, as
long as the budget lasts; a step may jump over levels, so a bump in a cost curve is no
obstacle. Greedy as TEAL's allocation (arXiv 2408.14690), over all layers at once and in
bytes. The same numbers give the same result on every machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from offline_prune.errors import InputError
from offline_prune.online.levels import Levels


@dataclass(frozen=True, slots=True)
class LayerBytes:
    """What a layer reads for one token.

    Attributes:
        in_features: K.
        out_features: O, of all parts.
        item: bytes of a weight.
        extra: bytes of learned tensors that are read for every token.
    """

    in_features: int
    out_features: int
    item: int
    extra: int = 0

    @property
    def dense(self) -> int:
        """Bytes of the whole weight."""
        return self.in_features * self.out_features * self.item

    def at(self, level: int, levels: Levels) -> int:
        """Return the bytes read at a level, learned tensors included."""
        if level == levels.count:  # a dense layer needs no learned tensors
            return self.dense
        return levels.kept(level, self.in_features) * self.out_features * self.item + (
            self.extra
        )


def budget_bytes(layers: Mapping[str, LayerBytes], budget: float) -> int:
    """Return the most bytes that may be read: the share, rounded down."""
    return int(budget * sum(layer.dense for layer in layers.values()) + 1e-6)


def allocate(
    costs: Mapping[str, Sequence[float]],
    layers: Mapping[str, LayerBytes],
    *,
    levels: Levels,
    budget: float,
    lower: int = 1,
) -> dict[str, int]:
    """Return the level of every layer.

    Args:
        costs: layer to its cost at levels 1 to ``levels.count``.
        layers: layer to its bytes.
        levels: the densities.
        budget: share of all dense bytes that may be read.
        lower: least level.

    Returns:
        Levels whose bytes are at most the budget's; no further step fits that lowers
        the cost.

    Raises:
        InputError: if not even the least level of every layer fits.
    """
    room = budget_bytes(layers, budget)
    chosen = dict.fromkeys(layers, lower)
    used = sum(layers[name].at(lower, levels) for name in layers)
    if used > room:
        total = sum(layer.dense for layer in layers.values())
        raise InputError(
            f"Budget {budget}: reading level {lower} of {levels.count} of every layer "
            f"takes {used / total:.4f} of the bytes, learned tensors included. "
            "Expected a greater budget, a lower `lower`, or a smaller rank."
        )
    while True:
        best: tuple[float, str, int, int] | None = None
        for name, now in chosen.items():
            bytes_now = layers[name].at(now, levels)
            for level in range(now + 1, levels.count + 1):
                step = layers[name].at(level, levels) - bytes_now
                # No break: the dense level reads no learned tensors, and may fit.
                if used + step > room:
                    continue
                gain = costs[name][now - 1] - costs[name][level - 1]
                rate = gain / step if step > 0 else float("inf")
                if gain > 0 and (best is None or rate > best[0]):
                    best = (rate, name, level, step)
        if best is None:
            return chosen
        _, name, level, step = best
        chosen[name] = level
        used += step
