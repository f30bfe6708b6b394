"""A run that is killed goes on, and writes the bytes of one that was not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import zoo

from offline_prune import prune
from offline_prune.errors import InputError
from offline_prune.pipeline.store import Store

ROWS = zoo.windows(count=8)
OPTIONS = {
    "scorer": "sparsegpt",
    "allocator": "owl",
    "sparsity": 0.55,
    "num_samples": len(ROWS),
    "seq_len": 32,
    "report": False,
}
SCRIPT = """
import json, sys
from offline_prune import prune
from offline_prune.pipeline import store
real = store.Store.save
def slow(self, index, tensors, record):
    real(self, index, tensors, record)
    import time
    time.sleep(0.5)
store.Store.save = slow
rows, options, source, output = json.loads(sys.argv[1])
prune(source, output=output, calibration=rows, **options)
"""


def contents(folder):
    # run.json says when and how long: it alone differs between two runs.
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "run.json"
    }


def killed_after(blocks, arguments, work):
    """Start a run and kill it when so many blocks are on disk."""
    child = subprocess.Popen([sys.executable, "-c", SCRIPT, arguments])
    deadline = time.monotonic() + 120
    while len(list(work.glob("block-*.bin"))) < blocks:
        assert child.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL


def test_kill_three_times_then_resume(tmp_path):
    source = zoo.build("llama", tmp_path / "dense", num_hidden_layers=4, shard="60KB")
    whole = prune(source, output=tmp_path / "whole", calibration=ROWS, **OPTIONS)
    output = tmp_path / "resumed"
    work = tmp_path / ".resumed.work"
    arguments = json.dumps([ROWS, OPTIONS, str(source), str(output)])
    for blocks in (1, 2, 3):
        killed_after(blocks, arguments, work)
        assert not output.exists()
    done = prune(source, output=output, calibration=ROWS, **OPTIONS)
    assert contents(done.folder) == contents(whole.folder)
    assert not work.exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dense", "resumed", "whole"]


def test_other_settings_do_not_mix_with_a_stopped_run(tmp_path, monkeypatch):
    source = zoo.build("llama", tmp_path / "dense")
    options = {**OPTIONS, "calibration": ROWS, "allocator": "uniform"}
    from offline_prune.pipeline import run

    def fail(*args):
        raise RuntimeError("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(run, "_build", fail)
        with pytest.raises(RuntimeError, match="stopped"):
            prune(source, output=tmp_path / "out", **options)
    with pytest.raises(InputError, match=r"config.sparsity: 0.55 before, 0.5 now"):
        prune(source, output=tmp_path / "out", **{**options, "sparsity": 0.5})
    prune(source, output=tmp_path / "out", restart=True, **{**options, "sparsity": 0.5})
    assert not Path(tmp_path / ".out.work").exists()


def test_same_run_twice_gives_the_same_bytes(tmp_path):
    source = zoo.build("gemma3", tmp_path / "dense")
    one = prune(source, output=tmp_path / "one", calibration=ROWS, **OPTIONS)
    two = prune(source, output=tmp_path / "two", calibration=ROWS, **OPTIONS)
    assert contents(one.folder) == contents(two.folder)


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {"allocator": "atp", "allocator_options": {"trials": 2}}),
        ("llama", {"allocator": "owl", "correction": "absorption", "profile": True}),
        (
            "llama",
            {
                "allocator": "uniform",
                "compensation": ["least_squares", "mean_shift"],
                "targets": [r"re:.*(q_proj|down_proj)$"],
            },
        ),
        (
            "llama",
            {
                "allocator": "uniform",
                "sparsity": None,
                "pattern": "2:4",
                "permutation": True,
                "format": "bitmask",
            },
        ),
        ("gpt2", {"scorer": "cvr", "compensation": ["mean_shift"]}),
        ("qwen3_moe", {"scorer": "wanda", "channels": "ogas"}),
    ],
)
def test_every_method_goes_on_with_the_same_bytes(
    family, options, tmp_path, monkeypatch
):
    source = zoo.build(family, tmp_path / "dense")
    options = {**OPTIONS, "calibration": ROWS, **options}
    options = {k: v for k, v in options.items() if v is not None}
    whole = prune(source, output=tmp_path / "whole", **options)
    real = Store.save

    def stop(self, index, tensors, record):
        if index == 2:
            raise KeyboardInterrupt
        real(self, index, tensors, record)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            prune(source, output=tmp_path / "resumed", **options)
    done = prune(source, output=tmp_path / "resumed", **options)
    assert contents(done.folder) == contents(whole.folder)
