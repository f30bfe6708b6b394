"""What the pruner writes, in vLLM: stock and with the plugin, one process and two."""

from __future__ import annotations

import pytest
import torch
from support import tiny, zoo
from support.runs import prompts, run_engines
from transformers import AutoModelForCausalLM

from offline_prune import prune

pytestmark = pytest.mark.engine

PROMPTS = prompts(6, seed=4)
ROWS = zoo.windows()
TEXT = {"calibration": ROWS, "num_samples": len(ROWS), "seq_len": 32, "report": False}
FP32 = {"dtype": "float32"}
OFF = {"additional_config": {"vllm_sparse": {"enabled": False}}}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Return pruned folders: plain, with new biases, permuted, packed."""
    root = tmp_path_factory.mktemp("models")
    dense = tiny.build("llama", root / "dense")
    made = {}
    for name, options in {
        "plain": {"sparsity": 0.5},
        "biases": {
            "sparsity": 0.6,
            "scorer": "cvr",
            "compensation": ["least_squares", "mean_shift"],
        },
        "permuted": {"pattern": "2:4", "scorer": "sparsegpt", "permutation": True},
        "packed": {"sparsity": 0.5, "format": "bitmask"},
    }.items():
        made[name] = prune(dense, output=root / name, **options, **TEXT).folder
    return {name: str(folder) for name, folder in made.items()}


@pytest.fixture(scope="module")
def runs(folders):
    return run_engines(
        {
            name: {
                "model": folder,
                "prompts": PROMPTS,
                "options": {**FP32, **(OFF if name == "packed" else {})},
                "max_tokens": 12,
            }
            for name, folder in folders.items()
        },
        # Stock vLLM but for the packed folder, which needs the plugin.
        VLLM_PLUGINS="vllm_sparse",
    )


@pytest.mark.parametrize("name", ["plain", "biases", "permuted"])
def test_tokens_are_those_of_transformers(runs, folders, name):
    model = AutoModelForCausalLM.from_pretrained(folders[name], dtype=torch.float32)
    for ids, tokens in zip(PROMPTS, runs[name]["tokens"], strict=True):
        out = model.generate(
            torch.tensor([ids]), max_new_tokens=12, do_sample=False, eos_token_id=None
        )
        assert out[0, len(ids) :].tolist() == tokens


def test_packed_is_dense_with_zeros(runs):
    assert runs["packed"]["tokens"] == runs["plain"]["tokens"]


def test_stock_vllm_loads_the_same(folders, runs):
    stock = run_engines(
        {
            "plain": {
                "model": folders["biases"],
                "prompts": PROMPTS,
                "options": FP32,
                "max_tokens": 12,
            }
        },
        VLLM_PLUGINS="",
    )
    assert stock["plain"]["tokens"] == runs["biases"]["tokens"]
