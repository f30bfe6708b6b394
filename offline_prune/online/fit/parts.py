"""Which parts of a layer are learned, in which order, and what they are if not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch

from nmsparse.mitigation import check_mitigations
from nmsparse.ops.online import Online
from nmsparse.parameters import PARAMETERS
from offline_prune.errors import InputError
from offline_prune.online.fit import l_pts, low_rank, output_scale, output_shift, s_pts
from offline_prune.online.fit.evidence import Evidence
from offline_prune.online.fit.options import FitOptions
from offline_prune.online.fused import FusedLinear

Tensors = dict[str, torch.Tensor]
Fit = Callable[..., Tensors]

# The order matters: each works on what those before it left.
FITS: Mapping[str, Fit] = {
    "s_pts": s_pts.fit,
    "l_pts": l_pts.fit,
    "ls": output_scale.fit,
    "r_sparse": low_rank.fit,
    "output_shift": output_shift.fit,
}


def learned_parts(online: Online) -> list[str]:
    """Return the names of mitigations to fit, in the order of the fit."""
    return [name for name in FITS if name in online.mitigation]


def learned_tensors(online: Online) -> Tensors:
    """Return the tensors of the mitigations that are fitted."""
    chosen = check_mitigations(learned_parts(online))
    names = {name for mitigation in chosen for name in mitigation.parameters}
    return {k: v for k, v in online.parameters.items() if k in names}


def fit_part(
    name: str, evidence: Evidence, *, online: Online, options: FitOptions
) -> Tensors:
    """Return the tensors of one mitigation."""
    return FITS[name](evidence, online, options=options)


def with_tensors(online: Online, tensors: Mapping[str, torch.Tensor]) -> Online:
    """Return ``online`` with other tensors in its parameters."""
    return replace(online, parameters=replace(online.parameters, **tensors))


def neutral(online: Online, weight: torch.Tensor, *, rank: int) -> Online:
    """Return ``online`` with zeros for all that is learned: as if it were not there.

    Args:
        online: its learned parts are absent.
        weight: ``[O, K]``, whose device they are on.
        rank: of the low-rank matrices, in the dtype of the weight.
    """
    sizes = {"O": weight.shape[0], "K": weight.shape[1]}
    sizes["r"] = min(rank, *sizes.values())
    tensors = {}
    for mitigation in check_mitigations(learned_parts(online)):
        for name in mitigation.parameters:
            kind = PARAMETERS[name]
            dtype = torch.float32 if "r" not in kind.shape else weight.dtype
            shape = [sizes[letter] for letter in kind.shape]
            tensors[name] = torch.zeros(shape, dtype=dtype, device=weight.device)
    return with_tensors(online, tensors)


def check_rule(name: str, online: Online, *, in_features: int) -> None:
    """Refuse a rule that cannot be fitted, before any long work.

    Raises:
        InputError: naming the layer.
    """
    try:
        chosen = check_mitigations(online.mitigation)
        online.pattern.group(in_features)
    except ValueError as error:
        raise InputError(f"{name}: {error}") from None
    given = {key for key, _ in online.parameters.items()}
    for mitigation in chosen:
        if mitigation.parameters and mitigation.name not in FITS:
            raise InputError(
                f"{name}: mitigation {mitigation.name} has learned parameters, and no "
                f"fit. Expected one of {', '.join(FITS)}: add a file to online/fit."
            )
        for part in mitigation.parameters:
            if part in given:
                raise InputError(
                    f"{name}: {part} is given already. Expected it absent, to be "
                    f"fitted for {mitigation.name}: leave it out of the rule."
                )


def split(
    layer: FusedLinear, tensors: Mapping[str, torch.Tensor]
) -> dict[str, Tensors]:
    """Return the tensors of every part of a fused layer, by its module's name.

    Copies: parts share no memory, whatever they share in content.

    Args:
        layer: the fused layer.
        tensors: of all of it.
    """
    found: dict[str, Tensors] = {name: {} for name in layer.parts}
    for key, tensor in tensors.items():
        pieces = [tensor] * len(layer.parts)
        if not PARAMETERS[key].input_side:
            pieces = list(tensor.split(layer.out_features))
        for name, piece in zip(layer.parts, pieces, strict=True):
            found[name][key] = piece.detach().cpu().clone().contiguous()
    return found
