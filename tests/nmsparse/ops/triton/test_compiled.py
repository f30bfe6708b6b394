"""The selection kernels compile for a GPU, wherever these tests run."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import torch
from support.compile_only import compiling
from nmsparse.ops.sparsify.lists_triton import list_tokens, mask_tokens

dtype, group, channels = torch.{dtype}, {group}, {channels}
x = torch.zeros(3, channels, dtype=dtype)
flags = torch.ones(3, dtype=torch.bool)
everything = dict(
    factor=torch.zeros(channels),
    channel_shift=torch.zeros(channels),
    statistic=True,
    variance=True,
    channel_groups=torch.arange(channels),
    sparse=flags,
    counted=flags,
    counters=torch.zeros(2, dtype=torch.int64),
)
cut = dict(kept=group // 2, group=group)
with compiling() as made:
    list_tokens(x, **cut)
    list_tokens(x, **cut, token_shift=torch.zeros(3))
    list_tokens(x, **cut, **everything)
    mask_tokens(x, **cut, **everything)
    list_tokens(x, **cut, shared=True)
    list_tokens(x, **cut, **everything, shared=True)
assert len(made) == 8, made
for kernel in made:
    assert kernel.metadata.shared <= 48 * 1024
    code = kernel.asm["ptx"]
    assert "red.global.add.f" not in code and "atom.global.add.f" not in code
    # Sums are handed over: an ordered ticket, and loads that pass by the L1 cache.
    assert ("acq_rel" in code) == ("ld.global.cg" in code)
assert "acq_rel" in made[2].asm["ptx"]
assert "acq_rel" not in made[0].asm["ptx"]
"""


@pytest.mark.parametrize(
    ("dtype", "group", "channels"),
    [("bfloat16", 16, 4096), ("float16", 6, 96), ("float32", 14336, 14336)],
)
def test_compiles_for_hopper(dtype, group, channels, tmp_path):
    environment = {name: os.environ[name] for name in os.environ}
    environment["TRITON_INTERPRET"] = "0"
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    program = PROGRAM.format(dtype=dtype, group=group, channels=channels)
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
