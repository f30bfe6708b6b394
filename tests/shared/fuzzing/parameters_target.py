"""Parameters files: their bytes, with a sidecar that names their true hash."""

from __future__ import annotations

import hashlib
import json
import random

import torch
from fuzzing.case import Finding
from fuzzing.files import Folder
from fuzzing.mutate import mutate_bytes, mutate_json
from fuzzing.oracle import parse_safetensors
from safetensors.torch import save

from nmsparse.config import ConfigError, ParametersFile
from nmsparse.parameters import PARAMETERS, PARAMETERS_NAME, read_parameters

_SEED = save(
    {
        "model.layers.0.mlp.up_proj.factor": torch.rand(8),
        "model.layers.0.mlp.up_proj.channel_shift": torch.randn(8),
        "model.layers.0.mlp.up_proj.channel_groups": torch.randperm(8),
        "model.layers.0.mlp.up_proj.low_rank_in": torch.randn(2, 8).bfloat16(),
        "model.layers.0.mlp.up_proj.low_rank_out": torch.randn(4, 2).half(),
        "model.layers.1.mlp.up_proj.output_scale": torch.randn(4),
    }
)
_SIZE = int.from_bytes(_SEED[:8], "little")
_TYPES = [
    "BOOL",
    "U8",
    "I8",
    "F8_E4M3",
    "F8_E8M0",
    "F4",
    "I64",
    "U64",
    "F64",
    "C64",
    "F32",
]


class ParametersTarget:
    """``read_parameters``."""

    name = "parameters"
    errors = (ConfigError,)

    def __init__(self) -> None:
        self._folder = Folder()

    def make(self, rng: random.Random) -> dict[str, bytes]:
        """Return a parameters file."""
        if rng.random() < 0.5:
            return {PARAMETERS_NAME: mutate_bytes(rng, _SEED)}
        header = json.loads(_SEED[8 : 8 + _SIZE])
        if rng.random() < 0.5:
            header[rng.choice(list(header))]["dtype"] = rng.choice(_TYPES)
        text = mutate_json(rng, header) if rng.random() < 0.7 else json.dumps(header)
        changed = text.encode("utf-8", "surrogatepass")
        content = len(changed).to_bytes(8, "little") + changed + _SEED[8 + _SIZE :]
        return {PARAMETERS_NAME: content}

    def read(self, files: dict[str, bytes]) -> None:
        """Read the file and check every tensor that was accepted."""
        content = files[PARAMETERS_NAME]
        folder = self._folder.fill(files)
        digest = hashlib.sha256(content).hexdigest()
        file = ParametersFile(file=PARAMETERS_NAME, sha256=digest)
        found = read_parameters(folder, file)
        own = parse_safetensors(content)
        if {f"{m}.{n}" for m, part in found.items() for n in part} != set(own):
            raise Finding("other tensors than those in the file")
        for module, part in found.items():
            for name, tensor in part.items():
                _, shape, data = own[f"{module}.{name}"]
                if list(tensor.shape) != shape or len(shape) != len(
                    PARAMETERS[name].shape
                ):
                    raise Finding(f"{name} has shape {list(tensor.shape)}")
                if (
                    tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
                    != data
                ):
                    raise Finding(f"{name} has other bytes")
                if name == "channel_groups":
                    if sorted(tensor.tolist()) != list(range(len(tensor))):
                        raise Finding("no permutation")
                elif not tensor.isfinite().all():
                    raise Finding(f"{name} is not finite")
