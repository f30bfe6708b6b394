"""The decode and memory benchmarks: end to end on a tiny model, and their parts."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from support import tiny

TINY = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 160,
    "tie_word_embeddings": True,
}
ROW = {
    "benchmark": "decode",
    "model": "tiny",
    "dtype": "bfloat16",
    "tokens": 4,
    "rounds": 1,
    "threads": 1,
}
FIELDS = {
    "timed",
    "backend",
    "speed_vs_stock_p20",
    "speed_vs_stock_p50",
    "speed_vs_stock_p80",
    "tokens_per_second_p50",
    "stock_tokens_per_second_p50",
    "distinct_tokens",
    "date",
    "commit",
    "hardware",
    "versions",
}


@pytest.fixture
def script(repo_root, monkeypatch):
    """Import a script of benchmarks/, where scripts import each other by name."""
    monkeypatch.syspath_prepend(str(repo_root / "benchmarks"))
    return importlib.import_module


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.build("llama", tmp_path_factory.mktemp("models") / "tiny")


def run(repo_root, name, *arguments, **environment):
    command = [sys.executable, str(repo_root / "benchmarks" / name), *arguments]
    done = subprocess.run(
        command,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def read(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.mark.engine
def test_decode_measures_pairs(repo_root, model, tmp_path):
    options = ["--tokens", "4", "--rounds", "1", "--threads", "1"]
    code, out, err = run(
        *(repo_root, "decode.py", "--model", str(model), "--results", str(tmp_path)),
        *("--modes", "stock again", "8:16", "--batches", "1", "3", *options),
    )
    assert code == 0, err[-6000:]
    found = read(tmp_path / "decode.jsonl")
    assert [(x["mode"], x["batch"]) for x in found] == [
        *(("stock", 1), ("stock again", 1), ("stock", 3), ("stock again", 3)),
        *(("8:16", 1), ("8:16", 3)),
    ]
    for row in found:
        assert row.items() >= ROW.items()
        assert row.keys() >= FIELDS
        assert row["tokens_per_second_p50"] > 0
        assert 1 / 3 <= row["distinct_tokens"] <= 1
        sparse = row["mode"] == "8:16"
        assert row["phase"] == ("decode" if sparse else None)
        assert row["ways"].keys() <= {"qkv", "o", "gate_up", "down"}
        if not sparse:
            assert (row["backend"], row["extra_mib"], row["ways"]) == ("dense", 0, {})
        if row["mode"] == "stock":
            assert row["speed_vs_stock_p50"] == 1
    assert out.count("x stock") == len(found)


@pytest.mark.engine
def test_memory_of_one_engine(repo_root, model, tmp_path):
    code, _, err = run(
        *(repo_root, "memory.py", "--model", str(model), "--results", str(tmp_path)),
        *("--modes", "8:16 drop", "--threads", "1"),
    )
    assert code == 0, err[-6000:]
    (row,) = read(tmp_path / "memory.jsonl")
    assert (row["benchmark"], row["mode"], row["model"]) == (
        *("memory", "8:16 drop", "tiny"),
    )
    assert 0 < row["rss_anonymous_trimmed_mib"] < row["rss_mib"]
    assert row["rss_anonymous_mib"] < row["rss_mib"]
    assert row["rss_mib"] <= row["peak_rss_load_mib"] <= row["peak_rss_mib"]


def test_an_unknown_model_is_refused(repo_root, tmp_path):
    code, _, err = run(repo_root, "decode.py", "--model", str(tmp_path / "none"))
    assert code == 1
    assert "Expected a model folder or one of gemma, llama-1b, qwen-0.5b" in err


def test_a_child_that_fails_ends_the_run(script, tmp_path, capfd):
    child = tmp_path / "child.py"
    child.write_text("print('{\"n\": 1}', flush=True)\nraise ValueError('broken')\n")
    found = []
    with pytest.raises(SystemExit, match=r"child\.py failed with status 1"):
        script("decode_modes").run_child(child, {}, threads=1, received=found.append)
    assert found == [{"n": 1}]
    assert "ValueError: broken" in capfd.readouterr().err


def test_a_child_does_not_outlive_the_run(script, tmp_path):
    child = tmp_path / "child.py"
    child.write_text(
        "import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(600)\n"
    )
    found = []

    def received(pid):
        found.append(pid)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        script("decode_modes").run_child(child, {}, threads=1, received=received)
    with pytest.raises(ProcessLookupError):
        os.kill(found[0], 0)


def test_a_child_has_as_many_threads_as_the_row_says(script, monkeypatch):
    modes = script("decode_modes")
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "7")
    monkeypatch.setattr(modes, "cores", lambda: [2, 5, 6])
    found = modes.environment(2)
    assert found["OMP_NUM_THREADS"] == "2"
    assert found["GOMP_CPU_AFFINITY"] == "2 5"
    assert "VLLM_CPU_KVCACHE_SPACE" not in found
    assert modes.default_threads() == 2
    for threads in (0, 4):
        with pytest.raises(SystemExit, match="Expected 1 to 3"):
            modes.environment(threads)


def test_ways_are_those_of_the_next_measured_number_of_tokens(script):
    ways = script("decode_pair").ways
    reports = [
        {"kind": "qkv", "ways": {"1": "gather 1.80x", "4": "masked+stock"}},
        {"kind": "qkv", "ways": {"1": "gather 1.70x", "4": "per_token 1.10x"}},
        {"kind": "router", "ways": {}},
    ]
    assert ways(reports, 1) == {"qkv": "gather"}
    assert ways(reports, 3) == {"qkv": "masked+stock or per_token"}
    assert ways(reports, 5) == {}


def test_distinct_is_the_share_of_different_tokens(script):
    assert script("decode_pair").distinct([[1, 2], [1, 3]]) == 0.75


def test_random_folder_is_an_ordinary_model_and_made_once(script, tmp_path):
    models = script("models")
    shape = TINY | {"rms_norm_eps": 1e-6}
    folder = models.random_folder(tmp_path / "made", "qwen2", shape)
    tensors = load_file(folder / "model.safetensors")
    assert "lm_head.weight" not in tensors  # tied
    for name, tensor in tensors.items():
        assert tensor.dtype is torch.bfloat16
        if "norm" in name:
            assert tensor.eq(1).all()
        elif name.endswith("bias"):
            assert tensor.eq(0).all()
        else:
            assert tensor.float().std() == pytest.approx(0.02, rel=0.1)
    assert any(name.endswith("q_proj.bias") for name in tensors)
    assert [path.name for path in tmp_path.iterdir()] == ["made"]

    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert models.random_folder(folder, "qwen2", shape) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    again = models.random_folder(tmp_path / "again", "qwen2", shape)
    for name, tensor in load_file(again / "model.safetensors").items():
        assert tensor.equal(tensors[name])


@pytest.mark.parametrize("step", ["random", "pruned"])
def test_a_folder_that_fails_leaves_nothing(script, tmp_path, monkeypatch, step):
    models = script("models")
    source = models.random_folder(tmp_path / "source", "llama", TINY)
    root = tmp_path / "root"

    def broken(staging):
        assert any(staging.iterdir())
        raise OSError("disk full")

    monkeypatch.setattr(models, "_share", broken)
    make = {
        "random": lambda: models.random_folder(root / "made", "llama", TINY),
        "pruned": lambda: models.pruned_folder(source, 50, root=root),
    }[step]
    with pytest.raises(OSError, match="disk full"):
        make()
    assert list(root.iterdir()) == []


def test_pruned_folder_has_zeros_in_every_row(script, tmp_path):
    models = script("models")
    source = models.random_folder(tmp_path / "source", "llama", TINY)
    folder = models.pruned_folder(source, 70, root=tmp_path / "root")
    assert folder.parent == tmp_path / "root"
    assert (folder / "config.json").read_text() == (source / "config.json").read_text()
    dense = load_file(source / "model.safetensors")
    pruned = load_file(folder / "model.safetensors")
    assert pruned.keys() == dense.keys()
    for name, tensor in pruned.items():
        if not name.endswith("_proj.weight"):
            assert tensor.equal(dense[name])
            continue
        kept = round(tensor.shape[1] * 0.3)
        assert (tensor.count_nonzero(dim=1) <= kept).all()
        assert tensor.ne(0).float().mean() > 0.28
        smallest = torch.where(tensor == 0, torch.inf, tensor.abs()).amin(dim=1)
        dropped = torch.where(tensor == 0, dense[name].abs(), 0).amax(dim=1)
        assert (dropped <= smallest).all()


def test_pruned_folder_belongs_to_its_source(script, tmp_path):
    models = script("models")
    source = models.random_folder(tmp_path / "source", "llama", TINY)
    first = models.pruned_folder(source, 50, root=tmp_path / "root")
    assert models.pruned_folder(source, 50, root=tmp_path / "root") == first
    os.utime(source / "model.safetensors")
    assert models.pruned_folder(source, 50, root=tmp_path / "root") != first
    (source / "model.safetensors").unlink()
    with pytest.raises(SystemExit, match="no weight to prune"):
        models.pruned_folder(source, 50, root=tmp_path / "root")


@pytest.mark.parametrize(
    ("name", "parameters"), [("llama-1b", 1_235_814_400), ("qwen-0.5b", 494_032_768)]
)
def test_shapes_are_those_of_the_real_models(script, name, parameters):
    from transformers import AutoConfig, AutoModelForCausalLM

    kind, shape = script("models").SHAPES[name]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **shape))
    # parameters() lists tied weights once.
    assert sum(p.numel() for p in model.parameters()) == parameters
