"""Model folders for speed and memory: shapes of real models, random or pruned weights.

Speed and memory depend on shapes, not on what weights say; quality is measured on real
models alone. A folder is made once, whole or not at all, in the user's cache. Nothing
has a tokenizer: prompts are token ids.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from offline_prune.embedded import default_folder
from offline_prune.staging import staged_folder

EMBEDDED = "gemma"
# What transformers calls the architecture, and its configuration. Norms start as 1,
# biases as 0, all else as normal with standard deviation 0.02.
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    # Llama-3.2-1B
    "llama-1b": (
        "llama",
        {
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 16,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "vocab_size": 128256,
            "max_position_embeddings": 131072,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 32.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
            "bos_token_id": 128000,
            "eos_token_id": 128001,
            "tie_word_embeddings": True,
        },
    ),
    # Qwen2.5-0.5B; q, k and v have a bias
    "qwen-0.5b": (
        "qwen2",
        {
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "vocab_size": 151936,
            "max_position_embeddings": 32768,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
            "bos_token_id": 151643,
            "eos_token_id": 151643,
            "tie_word_embeddings": True,
        },
    ),
}
_SEED = 0
_CONFIG = "config.json"


class Model(NamedTuple):
    """A model folder, and what rows call it."""

    name: str
    folder: Path


def cache() -> Path:
    """Return where model folders are kept: the user's cache, XDG rules."""
    return default_folder().parent


def find(model: str) -> Model:
    """Return the embedded model, one of ``SHAPES`` (made if need be), or a folder.

    Raises:
        SystemExit: if there is no such model.
    """
    if model in SHAPES:
        folder = random_folder(cache() / f"{model}-random", *SHAPES[model])
        return Model(folder.name, folder)
    folder = default_folder() if model == EMBEDDED else Path(model).resolve()
    if not (folder / _CONFIG).is_file():
        known = ", ".join([EMBEDDED, *SHAPES])
        made = " Make it with: make model" if model == EMBEDDED else ""
        raise SystemExit(
            f"Model {model!r}: {folder / _CONFIG} does not exist. Expected a model "
            f"folder or one of {known}.{made}"
        )
    return Model(folder.name, folder)


def random_folder(folder: Path, kind: str, shape: dict[str, Any]) -> Path:
    """Write a bfloat16 model of random weights, if ``folder`` is not there yet.

    Args:
        folder: where.
        kind: what transformers calls the architecture, ``llama`` for example.
        shape: fields of its configuration.
    """
    if (folder / _CONFIG).is_file():
        return folder
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    print(f"making {folder}", flush=True)
    torch.manual_seed(_SEED)
    config = AutoConfig.for_model(kind, **shape, initializer_range=0.02)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    with staged_folder(folder) as staging:
        model.save_pretrained(staging)
        _share(staging)
    return folder


def pruned_folder(source: Path, percent: int, *, root: Path | None = None) -> Path:
    """Copy a folder, its decoder linears pruned by magnitude: zeros in safetensors.

    Args:
        source: the dense folder.
        percent: share of zeros in every output row, with no structure.
        root: where the copy lies; the cache by default.

    Raises:
        SystemExit: if no weight looks like a decoder linear's.
    """
    name = f"{source.name}-pruned-{percent}-{_identity(source)}"
    folder = (root or cache()) / name
    if (folder / _CONFIG).is_file():
        return folder
    print(f"making {folder}", flush=True)
    found = 0
    with staged_folder(folder) as staging:
        for path in source.iterdir():
            if path.suffix == ".safetensors":
                found += _prune(path, staging / path.name, percent)
            elif path.is_file():
                shutil.copyfile(path, staging / path.name)
        if not found:
            raise SystemExit(
                f"{source} has no weight to prune. Expected *_proj.weight of decoder "
                "layers in *.safetensors."
            )
        _share(staging)
    return folder


def _prune(source: Path, target: Path, percent: int) -> int:
    """Write one file with pruned linears; return how many there were."""
    from safetensors.torch import load_file, save_file

    from nmsparse import parse_pattern, sparsify

    pattern = parse_pattern(f"{percent}%")
    tensors = load_file(source)
    names = [x for x in tensors if ".layers." in x and x.endswith("_proj.weight")]
    for name in names:
        tensors[name] = sparsify(tensors[name], pattern)
    save_file(tensors, target, metadata={"format": "pt"})
    return len(names)


def _identity(folder: Path) -> str:
    """Return a short name of a folder's place, files, sizes and times."""
    text = str(folder.resolve())
    for path in sorted(folder.iterdir()):
        info = path.stat()
        text += f"\n{path.name} {info.st_size} {info.st_mtime_ns}"
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _share(staging: Path) -> None:
    """Let others read the files: safetensors makes private ones."""
    for path in staging.iterdir():
        path.chmod(0o644)
