"""Checks of the parameters file before the engine starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from nmsparse.config import ConfigError, SparsityConfig
from nmsparse.criteria import criteria
from nmsparse.parameters import fuse

if TYPE_CHECKING:
    from nmsparse.config import ActivationSparsity
    from vllm_sparse.options import Found
    from vllm_sparse.treatment.source import Part

_INDEX = "model.safetensors.index.json"


def read_parameters_of(found: Found) -> Mapping[str, Part]:
    """Read and verify the file a configuration names; nothing if it names none.

    Returns:
        Tensors by name, by module name as in the file.

    Raises:
        ConfigError: if the file is missing, damaged, or not the one it names.
    """
    if found.config.parameters is None or found.folder is None:
        return {}
    from nmsparse.parameters import read_parameters

    return read_parameters(found.folder, found.config.parameters)


def refuse_as_weights(folder: Path, config: SparsityConfig) -> None:
    """Refuse a model folder from which vLLM would load the parameters as weights.

    vLLM takes every safetensors file, unless an index names those of the model.

    Raises:
        ConfigError: naming the folder, if it has no index.
    """
    file = config.parameters.file if config.parameters else ""
    if file.endswith(".safetensors") and not (folder / _INDEX).is_file():
        raise ConfigError(
            f"Model folder {folder} holds {file} but no {_INDEX}. vLLM would load the "
            "parameters as weights. Expected a file with another ending, or an index "
            "that names the files of the model: calibrate the model again."
        )


def check_parameters(
    name: str,
    activation: ActivationSparsity,
    parts: Mapping[str, Part],
    *,
    in_features: int,
    outputs: Sequence[int],
) -> int:
    """Check that one layer has the parameters it needs, and that they fit.

    Args:
        name: the layer.
        activation: what the configuration says about it.
        parts: tensors by name, of the layer or of each of its parts.
        in_features: K.
        outputs: O of every part.

    Returns:
        Elements that are read beside the weight: low-rank matrices.

    Raises:
        ConfigError: naming the layer.
    """
    if activation.pattern.is_dense and not parts:
        return 0
    # Here: they load torch, and this module is imported before options are read.
    import torch

    from nmsparse.ops.online import Online

    try:
        found = fuse(list(parts.values()), names=list(parts))
        given = found
        made = criteria.get(activation.criterion).needs == "weight"
        if made and found.factor is None:  # when the weight is loaded
            given = replace(found, factor=torch.zeros(in_features))
        online = Online(
            activation.pattern, activation.criterion, activation.mitigation, given
        )
        online.check(in_features, sum(outputs))
    except ValueError as error:
        raise ConfigError(f"{name}: {error}") from None
    low = (found.low_rank_in, found.low_rank_out)
    return sum(tensor.numel() for tensor in low if tensor is not None)
