"""Where the bytes of a decode step go: weights by kind, head, KV cache."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import style
from matplotlib import pyplot

CONTEXT = 2048
SIZE = 2  # bytes of a bfloat16
DENSITY = 0.5


@dataclass(frozen=True)
class Model:
    """Shapes of a decoder, as its ``config.json`` gives them."""

    name: str
    blocks: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head: int
    vocabulary: int
    windowed: int = 0  # blocks whose attention sees ``window`` tokens
    window: int = 0

    def parts(self) -> dict[str, float]:
        """Return bytes that one token of one request reads, dense, by part."""
        queries, keys = self.heads * self.head, self.kv_heads * self.head
        tokens = (self.blocks - self.windowed) * CONTEXT
        tokens += self.windowed * min(CONTEXT, self.window or CONTEXT)
        numbers = {
            "qkv": self.blocks * self.hidden * (queries + 2 * keys),
            "o": self.blocks * queries * self.hidden,
            "gate_up": self.blocks * self.hidden * 2 * self.intermediate,
            "down": self.blocks * self.intermediate * self.hidden,
            "output head": self.vocabulary * self.hidden,
            f"KV cache, {CONTEXT:,} tokens": tokens * 2 * keys,
        }
        return {name: float(count * SIZE) for name, count in numbers.items()}


MODELS = (
    Model("Llama-3.1-8B", 32, 4096, 14336, 32, 8, 128, 128256),
    Model("Gemma 3 270M", 18, 640, 2048, 4, 1, 256, 262144, windowed=15, window=512),
)
SPARSE = ("qkv", "o", "gate_up", "down")
_COLORS = ("#1f2a6b", "#3f51b5", "#6f7ed1", "#a7b1e6", style.ACCENT, style.GREEN)


def draw(folder: Path) -> Path:
    """Draw ``bytes.svg``."""
    figure, axes = pyplot.subplots(figsize=(9.4, 4.1))
    figure.subplots_adjust(left=0.17, right=0.9, top=0.8, bottom=0.2)
    places, labels = [3.2, 2.4, 1.1, 0.3], []
    place = iter(places)
    for model in MODELS:
        dense = model.parts()
        whole = sum(dense.values())
        for sparse in (False, True):
            at, left = next(place), 0.0
            labels.append(f"{model.name}\n{'8:16' if sparse else 'dense'}")
            for (name, size), color in zip(dense.items(), _COLORS, strict=True):
                part = size * (DENSITY if sparse and name in SPARSE else 1)
                width = 100 * part / whole
                axes.barh(at, width, 0.62, left, color=color, edgecolor="white")
                if width >= 7:
                    axes.text(
                        left + width / 2,
                        at,
                        f"{width:.0f}%",
                        ha="center",
                        va="center",
                        color=style.INK if color == _COLORS[3] else "white",
                        fontsize=9,
                    )
                left += width
            total = whole * left / 100
            size = f"{total / 1e9:.2f} GB" if total >= 1e9 else f"{total / 1e6:.0f} MB"
            axes.text(left + 1, at, size, va="center", fontsize=9.5, weight="bold")
    axes.set_yticks(places, labels)
    axes.tick_params(left=False)
    axes.set_xlim(0, 100)
    axes.set_xlabel("bytes read for one token of one request, % of dense")
    handles = [pyplot.Rectangle((0, 0), 1, 1, color=color) for color in _COLORS]
    figure.legend(
        handles,
        list(MODELS[0].parts()),
        loc="upper center",
        ncols=6,
        fontsize=9,
        frameon=False,
        handlelength=1,
        columnspacing=1.4,
    )
    return style.save(figure, "bytes", folder)
