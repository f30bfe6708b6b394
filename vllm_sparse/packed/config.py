"""``PackedConfig``: what vLLM makes of a packed folder's ``quantization_config``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
from vllm.model_executor.layers.quantization.base_config import (
    QuantizationConfig,
    QuantizeMethodBase,
)

from nmsparse.packed_manifest import (
    ARCHITECTURES,
    QUANT_METHOD,
    PackedFormatError,
    PackedManifest,
    is_packable,
)

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_SOURCE = "config.json: quantization_config"


class PackedConfig(QuantizationConfig):
    """Which layers of an engine may have packed weights.

    Args:
        manifest: what the folder says. None if vLLM was told to use this method on a
            folder that says nothing.

    Raises:
        PackedFormatError: without a manifest.
    """

    def __init__(self, manifest: PackedManifest | None = None) -> None:
        super().__init__()
        if manifest is None:
            raise PackedFormatError(
                f"--quantization {QUANT_METHOD}: the model folder is not packed. "
                "Expected what offline-prune pack makes, which needs no such flag: "
                "leave it out."
            )
        self.manifest = manifest

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> PackedConfig:
        """Read the ``quantization_config`` of ``config.json``.

        Raises:
            PackedFormatError: if it is no manifest this version can read.
        """
        return cls(PackedManifest.parse(config, source=_SOURCE))

    def get_name(self) -> str:
        """Return the name vLLM knows the method by."""
        return QUANT_METHOD

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        """Return every dtype an unquantized layer has."""
        return [torch.bfloat16, torch.float16, torch.float32]

    @classmethod
    def get_min_capability(cls) -> int:
        """Return the oldest GPU: any that vLLM runs on."""
        return 0

    @staticmethod
    def get_config_filenames() -> list[str]:
        """Return no files: everything is in ``config.json``."""
        return []

    def maybe_update_config(
        self,
        model_name: str,
        hf_config: PretrainedConfig | None = None,
        revision: str | None = None,
    ) -> None:
        """Check the folder before workers start: called once, in the first process.

        Raises:
            PackedFormatError: naming the architecture or tensor that does not fit.
        """
        found = set(getattr(hf_config, "architectures", None) or ())
        if not found <= ARCHITECTURES:
            raise PackedFormatError(
                f"{model_name}: packed weights of {', '.join(sorted(found))} were not "
                f"seen to load. Expected one of {', '.join(sorted(ARCHITECTURES))}: "
                "unpack the folder (offline-prune unpack)."
            )
        folder = Path(model_name)
        if folder.is_dir():  # of a hub model, vLLM downloads the weights later
            from vllm_sparse.packed.headers import read_headers

            self.manifest.check_headers(read_headers(folder), source=str(folder))

    def get_quant_method(
        self, layer: torch.nn.Module, prefix: str
    ) -> QuantizeMethodBase | None:
        """Return the method of a linear layer; None for embeddings and attention.

        Raises:
            PackedFormatError: if vLLM is to quantize the weights as well.
        """
        if not isinstance(layer, LinearBase):
            return None
        # vLLM before 0.32 does not have the attribute.
        if getattr(self, "online_quantization_config", None) is not None:
            raise PackedFormatError(
                "Packed weights cannot be quantized while they are loaded. Expected "
                "no quantization flags: leave them out, or unpack the folder first "
                "(offline-prune unpack)."
            )
        if not is_packable(prefix):
            return UnquantizedLinearMethod()
        from vllm_sparse.packed.method import PackedLinearMethod

        return PackedLinearMethod(self.packed_modules_mapping)
