"""Tiny compressed-tensors checkpoints, written by hand from a dense tiny model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

GROUP = 128
_WEIGHTS_INT8 = {
    "num_bits": 8,
    "type": "int",
    "symmetric": True,
    "strategy": "channel",
    "dynamic": False,
}
_INPUTS_INT8 = {
    "num_bits": 8,
    "type": "int",
    "symmetric": True,
    "strategy": "token",
    "dynamic": True,
}
_WEIGHTS_INT4 = {
    "num_bits": 4,
    "type": "int",
    "symmetric": True,
    "strategy": "group",
    "group_size": GROUP,
    "dynamic": False,
}


def quantize(dense: Path, folder: Path, scheme: str) -> Path:
    """Write ``dense`` as a ``w8a8`` or ``w4a16`` checkpoint to ``folder``."""
    shutil.copytree(dense, folder)
    tensors = load_file(dense / "model.safetensors")
    out: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if name.endswith("_proj.weight"):
            make = _int8 if scheme == "w8a8" else _int4
            out |= make(name.removesuffix("weight"), tensor.float())
        else:
            out[name] = tensor
    save_file(out, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = _config(scheme)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def _int8(prefix: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    scale = weight.abs().amax(dim=1, keepdim=True) / 127
    quantized = (weight / scale).round().clamp(-127, 127).to(torch.int8)
    return {
        f"{prefix}weight": quantized,
        f"{prefix}weight_scale": scale.to(torch.bfloat16),
    }


def _int4(prefix: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    rows, columns = weight.shape
    groups = weight.view(rows, columns // GROUP, GROUP)
    scale = groups.abs().amax(dim=2, keepdim=True) / 7
    codes = (groups / scale).round().clamp(-8, 7).view(rows, columns).to(
        torch.int32
    ) + 8
    shifts = torch.arange(0, 32, 4, dtype=torch.int32)
    packed = (codes.view(rows, columns // 8, 8) << shifts).sum(-1, dtype=torch.int32)
    return {
        f"{prefix}weight_packed": packed,
        f"{prefix}weight_scale": scale.squeeze(2).to(torch.bfloat16),
        f"{prefix}weight_shape": torch.tensor([rows, columns], dtype=torch.int64),
    }


def _config(scheme: str) -> dict[str, Any]:
    int8 = scheme == "w8a8"
    group = {
        "targets": ["Linear"],
        "weights": _WEIGHTS_INT8 if int8 else _WEIGHTS_INT4,
        "input_activations": _INPUTS_INT8 if int8 else None,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "int-quantized" if int8 else "pack-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": group},
    }
