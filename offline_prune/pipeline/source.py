"""The model to prune: found, checked and hashed before any long work."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm

from nmsparse.packed_manifest import Headers
from offline_prune.errors import InputError
from offline_prune.packing.folder import ModelFolder, open_weights
from offline_prune.packing.refuse import check_dense, check_index

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "tekken.json",
)
_TYPES = {"F16", "BF16", "F32"}


@dataclass(frozen=True, slots=True)
class Source:
    """A model folder whose weights can be pruned.

    Attributes:
        folder: the folder.
        headers: type and shape of every tensor.
        hashes: SHA-256 of every weight file.
    """

    folder: ModelFolder
    headers: Headers
    hashes: dict[str, str]

    @property
    def path(self) -> Path:
        """The folder's path."""
        return self.folder.path

    @property
    def architecture(self) -> str:
        """Name of the model class, from ``config.json``."""
        names = self.folder.config.get("architectures") or ["unknown"]
        return str(names[0])


def locate(model: str | Path) -> Path:
    """Return the local folder of a model, downloading it if it is an id of the Hub.

    Raises:
        InputError: if it is neither a folder nor an id that can be had.
    """
    path = Path(model)
    if path.is_dir():
        return path
    name = str(model)
    if path.is_absolute() or name.startswith(".") or name.count("/") != 1:
        raise InputError(
            f"Model {name!r} does not exist. Expected a local Hugging Face folder, or "
            "an id of the Hub such as org/name."
        )
    from huggingface_hub import snapshot_download

    try:
        # Not *.bin and *.pt: pickles are never opened.
        patterns = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.md"]
        return Path(snapshot_download(name, allow_patterns=patterns))
    except Exception as error:
        # Whatever the Hub's client raises is the finding.
        text = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"Model {name!r} is no local folder and cannot be had from the Hub "
            f"({text}). Expected a folder or an id that can be downloaded."
        ) from None


def open_source(path: Path, *, tokenizer: bool) -> Source:
    """Open a folder and look at every weight once.

    Args:
        path: a local model folder.
        tokenizer: whether the calibration needs the model's tokenizer.

    Raises:
        InputError: if it is packed or quantized, damaged, holds NaN or infinite
            weights, or has no tokenizer though one is needed.
    """
    folder = ModelFolder.open(path)
    check_dense(folder)
    check_index(folder)
    headers = folder.headers()
    kinds = {kind for kind, shape in headers.values() if len(shape) >= 2} - _TYPES
    if kinds:
        raise InputError(
            f"Model folder {path} has weights of type {sorted(kinds)[0]}. Expected "
            "float16, bfloat16 or float32: prune the original model, quantize after."
        )
    if tokenizer and not any((path / name).is_file() for name in TOKENIZER_FILES):
        raise InputError(
            f"Model folder {path} has no tokenizer ({', '.join(TOKENIZER_FILES[:3])}). "
            "Expected one, to calibrate on text: complete the folder, or calibrate on "
            "token ids or with source 'synthetic'."
        )
    return Source(folder, headers, _hashes(folder))


def _hashes(folder: ModelFolder) -> dict[str, str]:
    """Return the SHA-256 of every weight file, refusing what is not finite."""
    hashes = {}
    total = folder.weight_bytes
    # disable=None: no bar where nobody watches (not a terminal).
    with tqdm(
        total=total, desc="Checking weights", unit="B", unit_scale=True, disable=None
    ) as progress:
        for name in folder.shards:
            path = folder.path / name
            _check_finite(path)
            with path.open("rb") as file:
                hashes[name] = _sha256(file)
            progress.update(path.stat().st_size)
    return hashes


def _check_finite(path: Path) -> None:
    import torch

    with open_weights(path) as file:
        for name in file.keys():  # noqa: SIM118 (it is no dict)
            tensor = file.get_tensor(name)
            if not tensor.is_floating_point():
                continue
            # A sum is finite only if all of it is, and needs no copy.
            if not tensor.sum(dtype=torch.float64).isfinite():
                bad = int((~tensor.isfinite()).sum())
                if bad:
                    raise InputError(
                        f"{path}: {name} holds {bad} NaN or infinite weights. Expected "
                        "finite ones: the file is damaged, download it again."
                    )


def _sha256(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while chunk := file.read(1 << 22):
        digest.update(chunk)
    return digest.hexdigest()
