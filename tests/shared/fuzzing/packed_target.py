"""Packed folders: manifest, index, headers, and every pair of tensors."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import torch
from fuzzing.case import Finding
from fuzzing.files import Folder
from fuzzing.mutate import mutate_bytes, mutate_json
from fuzzing.oracle import dense_bits, parse_safetensors
from safetensors import safe_open
from safetensors.torch import save

from nmsparse.packed import PackedWeight
from nmsparse.packed_format import decode, encode
from nmsparse.packed_manifest import BITMASK, VALUES, PackedFormatError, PackedManifest
from vllm_sparse.packed.headers import read_headers

_INDEX = "model.safetensors.index.json"
_MANIFEST = "manifest.json"
_SIZES = [(1, 1), (2, 7), (3, 8), (2, 9), (1, 63), (2, 64), (2, 65), (3, 130)]
_DTYPES = [torch.bfloat16, torch.float16, torch.float32]


class PackedTarget:
    """``PackedManifest``, ``read_headers``, ``check_headers`` and ``decode``."""

    name = "packed"
    errors = (PackedFormatError,)

    def __init__(self) -> None:
        self._folder = Folder()
        self._seeds = [_seed(number) for number in range(24)]

    def make(self, rng: random.Random) -> dict[str, bytes]:
        """Return the files of a packed model with one of them changed."""
        files = dict(rng.choice(self._seeds))
        name = rng.choice([n for n in files if n != _INDEX or rng.random() < 0.5])
        content = files[name]
        if name.endswith(".json") and rng.random() < 0.8:
            text = mutate_json(rng, json.loads(content))
            files[name] = text.encode("utf-8", "surrogatepass")
        elif name.endswith(".json") or rng.random() < 0.4:
            files[name] = mutate_bytes(rng, content)
        else:
            files[name] = _mutate_safetensors(rng, content)
        return files

    def read(self, files: dict[str, bytes]) -> None:
        """Read the folder as an engine does; check every weight that is accepted."""
        folder = self._folder.fill(files)
        try:
            data = json.loads(files[_MANIFEST])
        except (ValueError, RecursionError) as error:  # transformers reads config.json
            raise PackedFormatError("config.json cannot be read") from error
        manifest = PackedManifest.parse(data, source="config.json")
        manifest.check_headers(read_headers(folder), source="folder")
        names = _weight_files(folder)
        for module, shape in manifest.modules.items():
            pair, raw = {}, {}
            for name in names:
                own = parse_safetensors(files[name])
                with safe_open(folder / name, framework="pt") as file:
                    for suffix in (BITMASK, VALUES):
                        if module + suffix in own:
                            pair[suffix] = file.get_tensor(module + suffix)
                            raw[suffix] = own[module + suffix]
            weight = decode(module, pair[BITMASK], pair[VALUES], shape=shape)
            weight.check()
            expected = dense_bits(*raw[BITMASK], *raw[VALUES], shape)
            found = weight.unpack()
            kind = torch.int32 if found.element_size() == 4 else torch.int16
            if tuple(found.shape) != tuple(shape):
                raise Finding(f"{module} has shape {tuple(found.shape)}, not {shape}")
            if not np.array_equal(found.view(kind).numpy(), expected):
                raise Finding(f"{module} is unpacked to other values")


def _weight_files(folder: Any) -> list[str]:
    index = folder / _INDEX
    if index.is_file():
        return sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
    return sorted(path.name for path in folder.glob("*.safetensors"))


def _mutate_safetensors(rng: random.Random, content: bytes) -> bytes:
    """Change the header, or lie about its length, and leave the rest as it is."""
    size = int.from_bytes(content[:8], "little")
    header, data = content[8 : 8 + size], content[8 + size :]
    if rng.random() < 0.4:
        data = mutate_bytes(rng, data)
    else:
        text = mutate_json(rng, json.loads(header))
        header = text.encode("utf-8", "surrogatepass")
    length = len(header)
    if rng.random() < 0.05:
        length = rng.choice((0, 1, length - 1, length + 1, 2**32, 2**63, 2**64 - 1))
    return length.to_bytes(8, "little") + header + data


def _seed(number: int) -> dict[str, bytes]:
    """Return a small valid folder."""
    generator = torch.Generator().manual_seed(number)
    tensors, modules = {}, {}
    for layer, size in enumerate((_SIZES[number % 8], _SIZES[(number * 3 + 1) % 8])):
        weight = torch.randn(size, generator=generator)
        weight *= torch.rand(size, generator=generator) < 0.5
        bits, values = encode(PackedWeight.pack(weight.to(_DTYPES[number % 3])))
        module = f"model.layers.{layer}.mlp.up_proj"
        tensors[module + BITMASK], tensors[module + VALUES] = bits, values
        modules[module] = size
    manifest = PackedManifest.of(modules).model_dump(mode="json")
    files = {_MANIFEST: json.dumps(manifest).encode()}
    if number % 2:
        return files | {"model.safetensors": save(tensors)}
    half = len(tensors) // 2
    parts = [dict(list(tensors.items())[:half]), dict(list(tensors.items())[half:])]
    names = [f"model-{part}-of-2.safetensors" for part in (1, 2)]
    where = {key: name for name, part in zip(names, parts, strict=True) for key in part}
    index = {"metadata": {"total_size": 1}, "weight_map": where}
    return files | {
        _INDEX: json.dumps(index).encode(),
        **{name: save(part) for name, part in zip(names, parts, strict=True)},
    }
