"""Where the tests of the GPU layer run: on a GPU if there is one, else interpreted."""

from __future__ import annotations

import importlib.util

import pytest
import torch

if importlib.util.find_spec("triton") is None:
    # They run kernels; what only chooses them needs no Triton.
    collect_ignore = ["test_ops.py", "test_method.py", "test_session.py"]


@pytest.fixture(scope="session")
def device() -> str:
    """Return where tensors of these tests lie."""
    return "cuda" if torch.cuda.is_available() else "cpu"
