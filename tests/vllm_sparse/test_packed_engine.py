"""Packed folders in real engines: the tokens of the dense folder, or a clear error."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from support import tiny
from support.pruned import prune
from support.runs import prompts, run_engine_expecting_failure, run_engines, sparse

from nmsparse import SparsityConfig, write_sidecar
from offline_prune import pack

pytestmark = pytest.mark.engine

PROMPTS = prompts(8, seed=1)
NO_KERNELS = {"additional_config": {"vllm_sparse": {"enabled": False}}}
UP = "model.layers.1.mlp.up_proj"
MIXED = "model.layers.0.self_attn.k_proj.weight"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Return dense and packed folders; in Qwen's a part of a fused layer is dense."""
    root = tmp_path_factory.mktemp("models")
    made = {}
    for kind, pattern in (("llama", "50%"), ("qwen2", "2:4")):
        dense = tiny.build(kind, root / f"{kind}-dense")
        made[kind] = prune(dense, root / kind, pattern)
    change(made["qwen2"], lambda tensors: tensors[MIXED].add_(1.0))
    for kind in ("llama", "qwen2"):
        made[f"packed {kind}"] = pack(made[kind], output=root / f"{kind}-packed").folder
    made["sidecar"] = shutil.copytree(made["packed llama"], root / "sidecar")
    write_sidecar(made["sidecar"], SparsityConfig.uniform("8:16", phase="both"))
    return {name: str(folder) for name, folder in made.items()}


def change(folder, edit):
    tensors = load_file(Path(folder) / "model.safetensors")
    edit(tensors)
    save_file(tensors, Path(folder) / "model.safetensors", {"format": "pt"})


@pytest.fixture(scope="module")
def runs(folders):
    plain = {
        name: {"model": folders[name], "prompts": PROMPTS}
        for name in ("llama", "qwen2", "packed llama", "packed qwen2", "sidecar")
    }
    jobs = dict(plain)
    # Without sparsity a packed folder would get our kernels, which round differently.
    for name in ("packed llama", "packed qwen2"):
        jobs[name] = {**plain[name], "options": NO_KERNELS}
    for name in ("llama", "packed llama"):
        jobs[f"{name} 8:16"] = {**plain[name], "options": sparse("8:16", "both")}
        jobs[f"{name} fp32"] = {**plain[name], "options": {"dtype": "float32"}}
    packed = plain["packed llama"]
    jobs["lora"] = {**packed, "options": {**NO_KERNELS, "enable_lora": True}}
    jobs["dummy"] = {**packed, "options": {**NO_KERNELS, "load_format": "dummy"}}
    return run_engines(jobs)


@pytest.mark.parametrize("name", ["llama", "qwen2", "llama 8:16", "llama fp32"])
def test_tokens_are_those_of_the_dense_folder(runs, name):
    tokens = runs[name]["tokens"]
    assert len({tuple(answer) for answer in tokens}) > 1
    assert runs[f"packed {name}"]["tokens"] == tokens


def test_activation_sparsity_composes(runs):
    assert runs["llama 8:16"]["tokens"] != runs["llama"]["tokens"]
    assert runs["sidecar"]["tokens"] == runs["llama 8:16"]["tokens"]
    layers = runs["packed llama 8:16"]["stats"][0]["layers"]
    assert len(layers) == 8
    assert {layer["pattern"] for layer in layers} == {"8:16"}
    assert all(layer["elements"] > 0 for layer in layers)


def test_off_means_off(runs):
    """The method is registered, and an ordinary folder does not notice."""
    assert runs["llama"]["stats"] == [None]


def test_lora_and_dummy_weights(runs):
    assert runs["lora"]["tokens"] == runs["packed llama"]["tokens"]
    assert len(runs["dummy"]["tokens"]) == len(PROMPTS)


TP2 = {
    "tensor_parallel_size": 2,
    "distributed_executor_backend": "mp",
    "dtype": "float32",
}


def test_tensor_parallel(folders, runs):
    job = {"model": folders["packed llama"], "prompts": PROMPTS, "options": TP2}
    found = run_engines({"tp2": job}, VLLM_CPU_OMP_THREADS_BIND="0|1")["tp2"]
    assert found["tokens"] == runs["llama fp32"]["tokens"]


def _truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def _flip_a_bit(folder):
    def flip(tensors):
        tensors[f"{UP}.weight_bitmask"][3, 5] ^= 16

    change(folder, flip)


def _reshape(folder):
    name = f"{UP}.weight_bitmask"
    change(folder, lambda tensors: tensors.update({name: tensors[name].view(128, 32)}))


def _drop_a_half(folder):
    change(folder, lambda tensors: tensors.pop(f"{UP}.weight_values"))


@pytest.mark.parametrize(
    ("damage", "options", "message"),
    [
        (_truncate, {}, r"model\.safetensors cannot be read .*Expected a whole"),
        (_flip_a_bit, {}, r"up_proj\.weight_values holds \d+ values, but .* bits set"),
        (_flip_a_bit, TP2, r"up_proj\.weight_values holds \d+ values, but .* bits set"),
        (
            _reshape,
            {},
            r"up_proj\.weight_bitmask is U8 \[128, 32\]\. Expected U8 \[256",
        ),
        (_drop_a_half, {}, r"up_proj\.weight_values is missing"),
    ],
    ids=["truncated", "bit flip", "bit flip, two ranks", "wrong shape", "half"],
)
def test_damaged_folders_stop_the_engine(
    folders, tmp_path, monkeypatch, damage, options, message
):
    if options:
        monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    folder = shutil.copytree(folders["packed llama"], tmp_path / "damaged")
    damage(folder)
    job = {"model": str(folder), "prompts": PROMPTS[:1], "options": options}
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(run_engine_expecting_failure(job))


def test_stock_vllm_says_what_is_missing(folders, monkeypatch):
    """VLLM_PLUGINS is set and empty: vLLM loads no plugin."""
    monkeypatch.setenv("VLLM_PLUGINS", "")
    job = {"model": folders["packed llama"], "prompts": PROMPTS[:1]}
    with pytest.raises(
        AssertionError, match="Unknown quantization method: vllm_sparse"
    ):
        raise AssertionError(run_engine_expecting_failure(job))
