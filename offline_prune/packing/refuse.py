"""Model folders that cannot be packed, refused with the reason and the remedy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from nmsparse.packed_manifest import ARCHITECTURES, QUANT_METHOD
from offline_prune.errors import InputError
from offline_prune.packing.config_text import KEY
from offline_prune.packing.folder import CONFIG_NAME, INDEX_NAME, ModelFolder

# Where other tools say that a folder is quantized.
_KEYS = (KEY, "compression_config")
_FILES = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")


def check_dense(folder: ModelFolder) -> None:
    """Refuse a folder that is packed or quantized already.

    Raises:
        InputError: naming what says so.
    """
    config = folder.config.get(KEY)
    if isinstance(config, dict) and config.get("quant_method") == QUANT_METHOD:
        raise InputError(
            f"Model folder {folder.path} is packed already. Expected dense weights: "
            "serve it as it is, or unpack it first (offline-prune unpack)."
        )
    marks = [f"{key} in {CONFIG_NAME}" for key in _KEYS if key in folder.config]
    marks += [name for name in _FILES if (folder.path / name).exists()]
    if marks:
        raise InputError(
            f"Model folder {folder.path} is quantized ({marks[0]}). Expected weights "
            "in float16, bfloat16 or float32: zeros in quantized weights cannot be "
            "packed."
        )


def check_architecture(folder: ModelFolder) -> None:
    """Refuse an architecture whose packed form was not seen to load.

    Raises:
        InputError: naming it.
    """
    found = folder.config.get("architectures") or ["none"]
    if not set(found) <= ARCHITECTURES:
        raise InputError(
            f"Model folder {folder.path}: packed weights of {', '.join(found)} were "
            f"not seen to load. Expected one of {', '.join(sorted(ARCHITECTURES))}: "
            "serve the dense folder."
        )


def check_output(source: Path, target: Path) -> None:
    """Refuse an output that would overwrite something or lie in the source.

    Raises:
        InputError: naming the folder.
    """
    if target.resolve().is_relative_to(source.resolve()):
        raise InputError(
            f"Output folder {target} is the model folder {source} or lies in it. "
            "Expected a folder elsewhere."
        )
    if target.is_dir() and not any(target.iterdir()):
        return
    if target.exists() or target.is_symlink():
        raise InputError(
            f"Output folder {target} exists and is not empty. Expected a new folder: "
            "choose another, or remove it."
        )


def check_index(folder: ModelFolder) -> None:
    """Refuse weight files that are damaged, or lack a tensor that the index names.

    Raises:
        InputError: naming the file or tensor.
    """
    found = folder.headers()
    missing = sorted(set(folder.weight_map) - set(found))
    if missing:
        raise InputError(
            f"Model folder {folder.path} lacks the tensor {missing[0]}, which "
            f"{INDEX_NAME} names. Expected complete weight files: copy them again."
        )


def nothing_to_pack(
    path: Path, sparsity: Mapping[str, float], min_sparsity: float
) -> InputError:
    """Return the error for a folder in which no weight is sparse enough.

    Args:
        path: the folder.
        sparsity: share of zeros of every linear that was looked at.
        min_sparsity: the share that was asked for.
    """
    if not sparsity:
        return InputError(
            f"Model folder {path}: none of its weights is a linear of a decoder block "
            "by transformers' names. Expected tensors such as "
            "model.layers.0.mlp.up_proj.weight: save the model with transformers "
            "first."
        )
    name = max(sparsity, key=lambda module: sparsity[module])
    return InputError(
        f"Model folder {path}: none of its {len(sparsity)} linear weights has "
        f"{min_sparsity:.0%} zeros (most has {name}: {sparsity[name]:.1%}). Expected a "
        "pruned model; lower --min-sparsity if this is one."
    )
