"""A model without its weights: names, types and shapes of tensors, and ``config.json``.

Shapes come from the headers of safetensors files, here or on the Hub: they are those of
what is loaded, quantized or not. Without such files transformers builds the model on
the meta device, with no weights. Code of the model's own is never run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nmsparse.config import ConfigError
from nmsparse.json_text import parse_json

Tensors = Mapping[str, tuple[str, tuple[int, ...]]]
_CONFIG = "config.json"
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
# What ``safetensors`` calls the type of a built model's tensors: served as 16 bits.
_BUILT = "BF16"


@dataclass(frozen=True, slots=True)
class Stored:
    """What is known about a model.

    Attributes:
        name: as the user gave it.
        config: of ``config.json``.
        tensors: type and shape of every tensor, by name.
        source: where the shapes come from.
        folder: where its files lie; None if only the Hub has them.
    """

    name: str
    config: Mapping[str, Any]
    tensors: Tensors
    source: str
    folder: Path | None = None

    @property
    def text(self) -> Mapping[str, Any]:
        """The part of the configuration that is about the language model."""
        nested = self.config.get("text_config")
        return nested if isinstance(nested, dict) else self.config

    @property
    def quantized(self) -> str | None:
        """How the weights are quantized or packed; None if they are not."""
        found = self.config.get("quantization_config")
        if not found:
            return None
        return str(found.get("quant_method")) if isinstance(found, dict) else str(found)


def read_model(name: str) -> Stored:
    """Return a model's shapes.

    Args:
        name: a folder with ``config.json``, or a Hugging Face id.

    Raises:
        ConfigError: if there is no such model, or transformers cannot build it.
        PackedFormatError: naming a weight file that is damaged.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _local(name, folder)
    if folder.exists() or name.startswith(("/", "./", "../", "~")):
        raise ConfigError(
            f"Model {name!r} is no folder. Expected a folder with {_CONFIG}, or a "
            "Hugging Face id (org/name)."
        )
    return _from_hub(name)


def _local(name: str, folder: Path) -> Stored:
    config = _config(folder / _CONFIG)
    if any(folder.glob("*.safetensors")):
        from vllm_sparse.packed.headers import read_headers

        headers = read_headers(folder)
        return Stored(name, config, headers, "headers of its weight files", folder)
    return _built(name, config, folder)


def _config(path: Path) -> dict[str, Any]:
    try:
        data = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path} cannot be read ({error}). Expected the configuration of a Hugging "
            "Face model folder."
        ) from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path} holds no object. Expected a model's configuration.")
    return data


def _from_hub(name: str) -> Stored:
    from huggingface_hub import get_safetensors_metadata, hf_hub_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        NotASafetensorsRepoError,
    )

    problems = (OSError, HfHubHTTPError, HFValidationError)
    try:
        path = Path(hf_hub_download(name, _CONFIG))
    except problems as error:
        raise ConfigError(
            f"Model {name!r} cannot be found: {_first_line(error)} Expected a folder, "
            "or a Hugging Face id (org/name) that the Hub or the local cache has."
        ) from None
    folder, config = path.parent, _config(path)
    if any((folder / file).exists() for file in _WEIGHTS):
        return _local(name, folder)
    try:
        found = get_safetensors_metadata(name).files_metadata.values()
    except NotASafetensorsRepoError:
        return _built(name, config, folder)
    except problems:  # no network: the configuration alone
        return _built(name, config, folder)
    tensors = {
        tensor: (about.dtype, tuple(about.shape))
        for file in found
        for tensor, about in file.tensors.items()
    }
    return Stored(name, config, tensors, "headers of its weight files on the Hub")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0]


def _built(name: str, config: Mapping[str, Any], folder: Path) -> Stored:
    """Build the model on the meta device, from its configuration alone."""
    if config.get("quantization_config"):
        raise ConfigError(
            f"Model {name!r} is quantized, and its weight files are not here. Expected "
            "them: how many bytes a weight has is in their headers alone."
        )
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        known = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(known, trust_remote_code=False)
    except Exception as error:
        # Whatever transformers says about a configuration is the finding.
        raise ConfigError(
            f"Model {name!r}: transformers cannot build it from {_CONFIG} "
            f"({_first_line(error)}). Expected an architecture that transformers has, "
            "or a folder with safetensors files."
        ) from None
    tensors = {
        # Conv1D of GPT-2 stores [K, O], as the files do.
        parameter: (_BUILT, tuple(tensor.shape))
        for parameter, tensor in model.named_parameters()
    }
    text = known.get_text_config().to_dict()
    return Stored(name, {**config, "text_config": text}, tensors, _CONFIG, folder)
