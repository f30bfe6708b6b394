"""Absorption: a correction that takes more from blocks that absorb perturbations.

Jing et al. 2026, "Beyond Layer Importance in Layer-wise Sparsity: An Inter-Layer
Perturbation-Absorption Perspective", arXiv 2606.15161. A perturbation of the hidden
states after block ``l`` arrives at the last block with a relative drift
``r_l = E[R_L / R_l]``: above 1 it was amplified, below 1 absorbed. With
``u_l = clip(ln r_l, -ln 3, ln 3)`` and ``Delta_l = -(u_l - mean u)`` pruning moves from
blocks whose errors are amplified to blocks whose errors are absorbed.

The paper's text was not available: the ratio and Delta are second hand, and the rest is
our formulation: noise on a sphere of radius ``eta * ||h_t||`` around each token's
state, the median over tokens (massive activations of single tokens dominate a mean),
shares ``s_l + strength * Delta_l / max |Delta|``, and the bounds. A residual stream
that merely grows gives ``r_l < 1`` without any computation: :func:`growth_corrected`
shows what remains, and belongs beside ``r`` in a report.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field

from offline_prune.allocators.spread import complete
from offline_prune.budget import UPPER, project
from offline_prune.options import Options

# A corrected share stays this near the target, unless the base was further away.
REACH = 0.25
_NOISE = 1e-9


class Absorption(Options):
    """Move pruning from blocks that amplify perturbations to those that absorb them."""

    name: ClassVar[str] = "absorption"
    title: ClassVar[str] = "Absorption-aware correction"
    paper: ClassVar[str] = "Jing et al. 2026, arXiv 2606.15161; our formulation"

    strength: float = Field(
        default=0.03,
        ge=0.0,
        le=0.5,
        description="largest change of a block's share; 0 leaves the allocation alone",
    )
    eta: float | None = Field(
        default=None,
        gt=0.0,
        description="size of the noise relative to the hidden state; measured if not "
        "given, as the drift that pruning the block alone causes",
    )
    draws: int = Field(default=1, ge=1, description="noise draws per block")
    limit: float = Field(
        default=math.log(3.0), gt=0.0, description="bound of |ln r|, ln 3 in the paper"
    )
    seed: int = Field(default=0, ge=0, description="seed of the noise")

    def generator(self, block: int, sequence: int, *, draw: int = 0) -> torch.Generator:
        """Return the CPU generator of one noise draw, the same whoever asks when."""
        text = f"absorption {self.seed} {block} {sequence} {draw}"
        digest = hashlib.sha256(text.encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)

    def deltas(self, amplification: Sequence[float]) -> list[float]:
        """Return ``Delta`` of each block: positive where more can be removed.

        Args:
            amplification: ``r`` of each block, above 0; NaN counts as neutral.
        """
        logs = [math.log(r) if r > 0 else math.nan for r in amplification]
        known = complete(logs, blocks=len(logs))
        bounded = [min(self.limit, max(-self.limit, u)) for u in known]
        mean = math.fsum(bounded) / len(bounded)
        return [mean - u for u in bounded]

    def correct(
        self,
        raw: Sequence[float],
        amplification: Sequence[float],
        *,
        sizes: Sequence[int],
        sparsity: float,
        lower: float = 0.0,
        upper: float = UPPER,
    ) -> list[float]:
        """Correct an allocation and restore the budget.

        Args:
            raw: shares of any allocator, projected onto the budget or not.
            amplification: ``r`` of each block; equal values change nothing.
            sizes: number of weights of each block.
            sparsity: share of all weights to remove.
            lower: least share of a block.
            upper: greatest share of a block.

        Returns:
            Shares on the budget, at most ``REACH`` from ``sparsity`` unless ``raw``
            was, and within the bounds.

        Raises:
            InputError: if the bounds exclude the budget.
            ValueError: if there is not one ``r`` for each block.
        """
        if len(amplification) != len(sizes):
            raise ValueError(
                f"Absorption: {len(amplification)} amplifications for {len(sizes)} "
                "blocks. Expected one for each block, in their order."
            )
        base = project(raw, sizes, sparsity=sparsity, lower=lower, upper=upper)
        deltas = self.deltas(amplification)
        largest = max(abs(delta) for delta in deltas)
        if self.strength == 0.0 or largest <= _NOISE:
            return base
        moved = [
            share + self.strength * delta / largest
            for share, delta in zip(base, deltas, strict=True)
        ]
        return project(
            moved,
            sizes,
            sparsity=sparsity,
            lower=max(lower, min(sparsity - REACH, *base)),
            upper=min(upper, max(sparsity + REACH, *base)),
        )


def perturb(
    hidden: torch.Tensor, eta: float, generator: torch.Generator
) -> torch.Tensor:
    """Move each token's state by ``eta`` times its norm in a random direction.

    Args:
        hidden: ``[T, D]`` (or ``[..., D]``), any floating dtype and device.
        eta: relative size.
        generator: of the CPU, so that the noise does not depend on the device.

    Returns:
        As ``hidden``. In 16 bits it is rounded: use the measured :func:`drift`, not
        ``eta``, as the size of the perturbation.
    """
    noise = torch.randn(hidden.shape, generator=generator).to(hidden.device)
    state = hidden.float()
    norm = torch.linalg.vector_norm(noise, dim=-1, keepdim=True).clamp(min=1e-30)
    size = torch.linalg.vector_norm(state, dim=-1, keepdim=True)
    moved: torch.Tensor = state + eta * size * noise / norm
    return moved.to(hidden.dtype)


def drift(hidden: torch.Tensor, perturbed: torch.Tensor) -> torch.Tensor:
    """Return ``||h' - h|| / ||h||`` of every token, float32 ``[T]``; NaN at ``h = 0``.

    Args:
        hidden: ``[T, D]``.
        perturbed: ``[T, D]``.
    """
    state = hidden.float()
    change = torch.linalg.vector_norm(perturbed.float() - state, dim=-1)
    size = torch.linalg.vector_norm(state, dim=-1)
    return torch.where(size > 0, change / size, math.nan)


def amplification(injected: torch.Tensor, final: torch.Tensor) -> float:
    """Return ``r`` of one draw: the median over tokens of final by injected drift.

    Args:
        injected: drift after the perturbed block, ``[T]``.
        final: drift after the last block, ``[T]``.

    Returns:
        The ratio; NaN if no token was perturbed.
    """
    known = (injected > 0) & final.isfinite()
    return float((final[known].double() / injected[known].double()).nanmedian())


def growth_corrected(
    amplification: Sequence[float], norms: Sequence[float]
) -> list[float]:
    """Return ``r_l * ||h_L|| / ||h_l||``: 1 where only the stream's growth absorbs.

    Args:
        amplification: ``r`` of each block.
        norms: typical norm of the hidden state after each block.
    """
    return [
        r * norms[-1] / norm if norm > 0 else math.nan
        for r, norm in zip(amplification, norms, strict=True)
    ]
