"""Two processes that share a calibration prune as one does."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import pytest
from safetensors.torch import load_file
from support import zoo

from offline_prune import prune

# More than the correction looks at.
ROWS = zoo.windows(count=20)
OPTIONS = {
    "scorer": "wanda",
    "allocator": "owl",
    "correction": "absorption",
    "sparsity": 0.6,
    "num_samples": len(ROWS),
    "seq_len": 32,
    "report": False,
}
SCRIPT = """
import json, sys
from offline_prune import prune
rows, options, source, output = json.loads(sys.argv[1])
prune(source, output=output, calibration=rows, **options)
"""


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def test_two_processes_are_one(tmp_path):
    # float32: of 16-bit activations single roundings would be all the difference.
    source = zoo.build("llama", tmp_path / "dense", dtype="float32")
    one = prune(source, output=tmp_path / "one", calibration=ROWS, **OPTIONS)
    output = tmp_path / "two"
    arguments = json.dumps([ROWS, OPTIONS, str(source), str(output)])
    port = str(free_port())
    children = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, arguments],
            env={
                **os.environ,
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
                "OMP_NUM_THREADS": "1",
            },
        )
        for rank in range(2)
    ]
    assert [child.wait(timeout=300) for child in children] == [0, 0]
    mine = load_file(one.folder / "model.safetensors")
    theirs = load_file(output / "model.safetensors")
    differ = sum(int(((mine[name] == 0) != (theirs[name] == 0)).sum()) for name in mine)
    assert differ == 0
    read = json.loads((output / "results.json").read_text())
    assert read["budget"]["removed"] == one.results.budget.removed
    assert read["profiles"].keys() == one.results.profiles.keys()
    for name, values in one.results.profiles.items():
        assert read["profiles"][name] == pytest.approx(values, rel=1e-3)
    for name, curve in one.results.allocations.items():
        for a, b in zip(curve, read["allocations"][name], strict=True):
            assert abs(a - b) < 1e-5
