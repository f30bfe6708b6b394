"""Gradient steps on all learned parameters of one block.

arXiv 2509.22166 and its code: AdamW, betas (0.9, 0.95), no weight decay, gradients
clipped to norm 1, 3 % warm-up, then linear decay, one window a step, the block against
the dense block on the same input. Our formulation: the error is the robust one of
``offline_prune.online.fit``, the start is the closed forms, and the learning rate is in
natural units of each parameter: 1 for an output scale, the typical size of an input or
output of the layer for shifts, the size of its entries for a low-rank matrix. A low
rank that the gate had refused is zero on both sides, and stays so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from nmsparse.ops.online import Online
from offline_prune.online.fit.differentiable import DifferentiableLayer
from offline_prune.online.fit.options import FitOptions
from offline_prune.online.fit.parts import learned_tensors, with_tensors
from offline_prune.online.fit.resident import Resident
from offline_prune.online.fit.tokens import robust_error, token_weights

_BETAS = (0.9, 0.95)
_CLIP = 1.0
_WARM_UP = 0.03


@dataclass(slots=True)
class _Trained:
    """One tensor: ``start + unit * step``, and AdamW moves the step."""

    start: torch.Tensor
    step: torch.Tensor
    unit: float = 1.0

    @property
    def value(self) -> torch.Tensor:
        """The tensor in float32, with a gradient."""
        return self.start + self.unit * self.step


def descend(
    resident: Resident,
    rules: Mapping[str, Online],
    *,
    hidden: Sequence[torch.Tensor],
    wanted: Sequence[torch.Tensor],
    options: FitOptions,
) -> dict[str, Online]:
    """Return the rules after the steps; the block is left as it was.

    Args:
        resident: the block.
        rules: names of its sparse layers to how they are sparsified.
        hidden: ``[1, T, D]``, input of the block for each window to fit on.
        wanted: ``[1, T, D]``, what the block should give for them.
        options: ``steps`` and ``learning_rate``.
    """
    trained = {name: _trained(online) for name, online in rules.items()}
    steps = [item.step for layer in trained.values() for item in layer.values()]
    if not steps or not hidden or not options.steps:
        return dict(rules)

    def current(name: str) -> Online:
        values = {key: item.value for key, item in trained[name].items()}
        return with_tensors(rules[name], values)

    layers: dict[str, DifferentiableLayer] = {}
    try:
        for name in rules:
            layers[name] = DifferentiableLayer(
                resident.layers[name], partial(current, name), resident.rows
            )
        with torch.no_grad():
            _forward(resident, 0, hidden[0])
        for name, layer in layers.items():
            for key, item in trained[name].items():
                item.unit = _unit(key, item.start, layer)
        with torch.enable_grad():
            _train(resident, steps, hidden=hidden, wanted=wanted, options=options)
    finally:
        for layer in layers.values():
            layer.restore()
    found = {}
    for name, online in rules.items():
        old = learned_tensors(online)
        new = {k: x.value.detach().to(old[k].dtype) for k, x in trained[name].items()}
        found[name] = with_tensors(online, new)
    return found


def _train(
    resident: Resident,
    parameters: list[torch.Tensor],
    *,
    hidden: Sequence[torch.Tensor],
    wanted: Sequence[torch.Tensor],
    options: FitOptions,
) -> None:
    optimizer = torch.optim.AdamW(
        parameters, lr=options.learning_rate, betas=_BETAS, weight_decay=0.0
    )
    for step in range(options.steps):
        for group in optimizer.param_groups:
            group["lr"] = options.learning_rate * schedule(step, options.steps)
        position = step % len(hidden)
        target = wanted[position][0]
        weights = token_weights(target, clip=options.weight_clip, first=True)
        out = _forward(resident, position, hidden[position])[0]
        loss = robust_error(out, target, weights) / max(1, len(target) - 1)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, _CLIP)
        optimizer.step()


def schedule(step: int, steps: int) -> float:
    """Return the factor of the learning rate: 3 % warm-up, then linear decay.

    Args:
        step: from 0.
        steps: of the whole run.
    """
    warm = math.ceil(_WARM_UP * steps) if steps > 1 else 0
    if step < warm:
        return (step + 1) / (warm + 1)
    return (steps - step) / (steps - warm)


def _trained(online: Online) -> dict[str, _Trained]:
    return {
        name: _Trained(
            tensor.float(),
            torch.zeros_like(tensor, dtype=torch.float32, requires_grad=True),
        )
        for name, tensor in learned_tensors(online).items()
    }


def _unit(name: str, start: torch.Tensor, layer: DifferentiableLayer) -> float:
    """Return the natural unit of a parameter."""
    if name == "channel_shift":
        return layer.input_size
    if name == "output_shift":
        return layer.output_size
    if name == "output_scale":
        return 1.0
    return float(start.square().mean().sqrt())


def _forward(resident: Resident, position: int, hidden: torch.Tensor) -> torch.Tensor:
    """Return the block's output, ``[1, T, D]``; not as ``run_block`` in no_grad."""
    call = resident.call(position)
    out = resident.block(hidden, *call.args, **call.kwargs)
    result: torch.Tensor = out[0] if isinstance(out, tuple | list) else out
    return result
