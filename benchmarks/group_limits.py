"""How much of an input N:M drops, by how the channels are put into groups.

    python benchmarks/group_limits.py --calibration web.jsonl --calibration-name web

What a fixed grouping can gain at all: consecutive channels, groups that are balanced by
energy (``--balanced``), groups that a search made drop as little as it could on the
calibration tokens, and a choice over whole rows, which no grouping can beat. Shares of
every token's energy (squared norm), on tokens that neither the balance nor the search
has seen.

The search swaps channels between random pairs of groups wherever both together then
drop less. It begins with the balanced groups and its own tokens choose its swaps, so it
never drops more than they do there.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import rows
import torch

from nmsparse.pattern import NMPattern
from offline_prune.embedded import default_folder
from offline_prune.evaluation.load import load_model
from offline_prune.evaluation.texts import read_evaluation_text
from offline_prune.evaluation.windows import windows_of
from offline_prune.online.balance import balanced_groups
from offline_prune.online.fused import fused_linears

STEPS = 400


def dropped(energy: torch.Tensor, order: torch.Tensor, pattern: NMPattern) -> float:
    """Return the mean share of a token's energy that N:M drops.

    Args:
        energy: ``[T, K]``, squared inputs, rows of sum 1.
        order: ``[K]``, channels; consecutive M of them are a group.
        pattern: N:M.
    """
    return float(_dropped(energy[:, order].view(len(energy), -1, pattern.m), pattern.n))


def _dropped(grouped: torch.Tensor, kept: int) -> torch.Tensor:
    lost = grouped.sum() - grouped.topk(kept, dim=-1).values.sum()
    return lost / len(grouped)


def searched_groups(
    energy: torch.Tensor, order: torch.Tensor, pattern: NMPattern, *, steps: int = STEPS
) -> torch.Tensor:
    """Return an order that drops less than ``order`` on these tokens, or as much.

    Args:
        energy: ``[T, K]``, squared inputs, rows of sum 1.
        order: ``[K]``, where to begin.
        pattern: N:M.
        steps: how often all groups are paired at random, and offered one swap each.
    """
    random = torch.Generator().manual_seed(0)
    kept, size = pattern.n, pattern.m
    groups = order.view(-1, size).clone()
    values = energy[:, order].view(len(energy), -1, size).clone()
    cost = _costs(values, kept)
    half = len(groups) // 2
    pair = torch.arange(half)
    for _ in range(steps):
        shuffled = torch.randperm(len(groups), generator=random)
        one, two = shuffled[:half], shuffled[half : 2 * half]
        here, there = torch.randint(size, (2, half), generator=random)
        first, second = values[:, one], values[:, two]
        moved = first[:, pair, here].clone()
        first[:, pair, here] = second[:, pair, there]
        second[:, pair, there] = moved
        costs = _costs(first, kept), _costs(second, kept)
        better = costs[0] + costs[1] < cost[one] + cost[two]
        a, b, i, j = one[better], two[better], here[better], there[better]
        values[:, a], values[:, b] = first[:, better], second[:, better]
        cost[a], cost[b] = costs[0][better], costs[1][better]
        channels = groups[a, i].clone()
        groups[a, i] = groups[b, j]
        groups[b, j] = channels
    return groups.reshape(-1)


def _costs(values: torch.Tensor, kept: int) -> torch.Tensor:
    """Return ``[G]``, what every group drops of all tokens."""
    return (values.sum(-1) - values.topk(kept, dim=-1).values.sum(-1)).sum(0)


def shares(energy: torch.Tensor, pattern: NMPattern) -> dict[str, float]:
    """Return the share that is dropped of the last third of tokens, by grouping."""
    fit = len(energy) * 2 // 3
    seen, unseen = energy[:fit], energy[fit:]
    channels = energy.shape[1]
    balanced = balanced_groups(seen.mean(0), pattern.m)
    orders = {
        "consecutive": torch.arange(channels),
        "balanced": balanced,
        "searched": searched_groups(seen, balanced, pattern),
    }
    found = {name: dropped(unseen, order, pattern) for name, order in orders.items()}
    row = NMPattern(channels * pattern.n // pattern.m, channels)
    return found | {"row": dropped(unseen, torch.arange(channels), row)}


def inputs(args: argparse.Namespace) -> dict[str, torch.Tensor]:
    """Return relative squared inputs ``[T, K]`` of the layers of some blocks."""
    loaded = load_model(args.model)
    text = read_evaluation_text(args.calibration)
    windows = list(windows_of(text, loaded.tokenizer, seq_len=args.length))
    found: dict[str, list[torch.Tensor]] = {}

    def see(name: str) -> Any:
        def hook(module: Any, given: tuple[torch.Tensor, ...]) -> None:
            # The first token's huge activations would be all that counts.
            x = given[0].detach().reshape(-1, given[0].shape[-1])[1:].double().square()
            found.setdefault(name, []).append((x / x.sum(1, keepdim=True)).float())

        return hook

    layers = fused_linears(loaded.model)
    blocks = sorted({_block(layer.name) for layer in layers})
    chosen = set(blocks[args.every // 2 :: args.every])
    for layer in layers:
        if _block(layer.name) in chosen:
            first = next(iter(layer.parts.values()))
            first.register_forward_pre_hook(see(layer.name))
    with torch.no_grad():
        for window in windows[: args.samples]:
            loaded.model(window[None])
    return {name: torch.cat(parts) for name, parts in found.items()}


def _block(name: str) -> int:
    return next(int(part) for part in name.split(".") if part.isdigit())


def main() -> None:
    """Measure and append a row for every layer and pattern."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(default_folder()))
    parser.add_argument("--name", default="gemma-3-270m", help="model name in the rows")
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--calibration-name", required=True)
    parser.add_argument("--patterns", nargs="+", default=["2:4", "8:16"])
    parser.add_argument("--samples", type=int, default=6, help="windows")
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--every", type=int, default=5, help="one of so many blocks")
    parser.add_argument("--results", type=Path, help="a folder")
    args = parser.parse_args()
    for name, energy in inputs(args).items():
        for text in args.patterns:
            found = shares(energy, NMPattern(*map(int, text.split(":"))))
            row = {
                "benchmark": "group_limits",
                "model": args.name,
                "layer": name,
                "pattern": text,
                "calibration": args.calibration_name,
                "tokens": len(energy),
                "steps": STEPS,
                **{f"dropped_{key}": round(x, 5) for key, x in found.items()},
            }
            rows.append("group_limits", [row], folder=args.results)
            listed = "  ".join(f"{key} {x:.4f}" for key, x in found.items())
            print(f"{name:45s} {text:6s} {listed}", flush=True)


if __name__ == "__main__":
    main()
