"""The public names of nmsparse, and that asking for them is cheap."""

from __future__ import annotations

import subprocess
import sys

import pytest

import nmsparse


@pytest.mark.parametrize("name", nmsparse.__all__)
def test_public_names_load(name):
    value = getattr(nmsparse, name)
    assert getattr(value, "__name__", name) == name
    assert name in dir(nmsparse)


def test_unknown_name():
    with pytest.raises(AttributeError, match="'nmsparse' has no attribute 'sparsfy'"):
        nmsparse.sparsfy  # noqa: B018


def test_the_vocabulary_imports_neither_torch_nor_vllm():
    code = (
        "import sys, nmsparse;"
        "nmsparse.SparsityConfig.uniform('8:16', mitigation=('l_pts',));"
        "nmsparse.read_sidecar; nmsparse.read_parameters; "
        "print(sorted({'torch', 'vllm', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
