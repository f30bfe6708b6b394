"""The decode benchmark of GPUs, on a tiny model without a GPU, and its parts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import metadata

import pytest
import torch

from vllm_sparse.execution import Execution
from vllm_sparse.options import resolve_options


@pytest.fixture
def scripts(repo_root, monkeypatch):
    folder = repo_root / "benchmarks"
    monkeypatch.syspath_prepend(str(folder))
    return folder


def run(command, **environment):
    done = subprocess.run(
        [str(part) for part in command],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def job(**changes):
    return {
        **{"model": "folder", "engine": "compile", "attention": None},
        **{"batches": [64, 1], "tokens": 96, "memory_share": 0.35},
        **{"kv_cache_gib": 0.5},
    } | changes


def test_engines_are_built_as_asked(scripts):
    from gpu_decode_pair import arguments

    stock = arguments(job(), None)
    assert stock["load_format"] == "dummy"
    assert stock["additional_config"] == {}
    assert stock["kv_cache_memory_bytes"] == 1 << 29
    assert stock["max_num_seqs"] == 64
    assert stock["max_num_batched_tokens"] >= 64 * 32
    assert stock["max_model_len"] >= 32 + 96
    assert stock["compilation_config"] == {"cudagraph_capture_sizes": [1, 64]}
    assert "attention_backend" not in stock
    graph = arguments(job(engine="graph", attention="TRITON_ATTN"), {"a": 1})
    assert graph["additional_config"] == {"vllm_sparse": {"a": 1}}
    assert graph["attention_backend"] == "TRITON_ATTN"
    assert graph["compilation_config"] == {
        **{"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"},
        **{"cudagraph_capture_sizes": [1, 64]},
    }
    eager = arguments(job(engine="eager"), None)
    assert eager["enforce_eager"]
    assert "compilation_config" not in eager


def test_options_of_all_modes_are_known_to_the_plugin(scripts):
    from gpu_decode import DEFAULT_MODES, MODES

    assert set(DEFAULT_MODES) <= set(MODES)
    for name, mode in MODES.items():
        options = mode.options or {}
        Execution.parse(options, name)
        found = resolve_options(options, None)
        assert (found is not None) == bool(options), name


def test_config_folders_are_models(scripts, tmp_path):
    from gpu_models import SHAPES, config_folder
    from transformers import AutoConfig

    for name, (kind, shape) in SHAPES.items():
        folder = config_folder(name, tmp_path)
        assert [path.name for path in folder.iterdir()] == ["config.json"]
        config = AutoConfig.from_pretrained(folder)
        assert config.model_type == kind
        assert config.hidden_size == shape["hidden_size"]
        assert config.dtype is torch.bfloat16


def test_control_gives_the_rows_of_stock_too(scripts):
    from gpu_decode import make_rows

    def found():
        return {"batch": 2, "seconds": {"stock": [2.0, 4.0], "mode": [1.0, 2.0]}}

    about = {"tokens": 11}
    stock, again = make_rows("stock again", found(), about)
    assert (stock["mode"], stock["speed_vs_stock_p50"]) == ("stock", 1)
    assert (again["mode"], again["speed_vs_stock_p50"]) == ("stock again", 2)
    (sparse,) = make_rows("8:16", found(), about)
    assert sparse["phase"] == "decode"
    assert sparse["tokens_per_second_p50"] == pytest.approx(20 / 1.5, abs=0.01)


@pytest.mark.engine
def test_engines_without_a_gpu(scripts, tmp_path):
    pytest.importorskip("vllm")
    code, _, err = run(
        [
            *(sys.executable, scripts / "gpu_decode.py", "--model", "tiny"),
            *("--modes", "8:16", "pruned 50%", "--batches", "1", "3"),
            *("--tokens", "4", "--rounds", "1", "--engine", "eager"),
            *("--kv-cache-gib", "0.05", "--memory-share", "0.1"),
            *("--results", tmp_path, "--commit", "abc"),
        ]
    )
    assert code == 0, err[-6000:]
    text = (tmp_path / "gpu_decode.jsonl").read_text("utf-8")
    found = [json.loads(line) for line in text.splitlines()]
    assert [(row["mode"], row["batch"]) for row in found] == [
        *(("8:16", 1), ("8:16", 3), ("pruned 50%", 1), ("pruned 50%", 3)),
    ]
    for row in found:
        assert row["benchmark"] == "gpu_decode"
        assert (row["engine"], row["weights"]) == ("eager", "random")
        assert row["commit"] == "abc"
        assert row["tokens_per_second_p50"] > 0
    # The zeros are there when the plugin looks at the weights.
    assert found[2]["extra_mib"] > 0


def test_rows_need_no_installed_project(scripts, monkeypatch):

    import rows

    found = metadata.version

    def version(name):
        if name == "vllm-sparse":
            raise metadata.PackageNotFoundError(name)
        return found(name)

    monkeypatch.setattr(metadata, "version", version)
    assert rows.environment()["versions"]["vllm-sparse"] == "not installed"
    assert rows.environment()["versions"]["torch"] == torch.__version__
