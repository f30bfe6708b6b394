from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

# Kernels are interpreted where no GPU is; Triton reads it when first imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
# No test reaches a network: Hugging Face libraries read this when first imported.
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """Return the converted embedded model, or skip where it has not been made."""
    from offline_prune.embedded import default_folder

    folder = Path(os.environ.get("VLLM_SPARSE_DEMO_MODEL") or default_folder())
    if not (folder / "config.json").is_file():
        pytest.skip(f"no embedded model in {folder}; make it with: make model")
    return folder


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """Return the root of the checkout."""
    return Path(__file__).resolve().parent.parent
