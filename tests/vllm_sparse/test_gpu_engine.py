"""Layers of ``vllm_sparse.gpu`` in real engines, on CPU tensors: see ``as_gpu``.

In float32 gathered and masked products differ by the order of additions only, so greedy
tokens of a tiny model are the same.
"""

from __future__ import annotations

import importlib.util

import pytest
from support import tiny
from support.runs import prompts, run_engines, sparse

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)

pytestmark = pytest.mark.engine

PROMPTS = prompts(2, seed=3, longest=24)
ALL = {"sparse_steps": "all"}


def options(phase, engine, **execution):
    made = sparse("8:16", phase, "auto", **engine)
    made["additional_config"]["vllm_sparse"] |= execution
    return made


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = str(tiny.build("qwen2", tmp_path_factory.mktemp("model")))
    base = {"model": folder, "prompts": PROMPTS, "max_tokens": 4}
    # Few tokens a step: vLLM's own warm-up is interpreted too.
    engine = {"dtype": "float32", "max_num_batched_tokens": 128, "max_num_seqs": 4}
    stock = {
        phase: {**base, "options": options(phase, engine, kernels="off")}
        for phase in ("decode", "both")
    }
    dense = {**base, "options": options("decode", engine, enabled=False)}
    gpu = {**base, "as_gpu": True}
    jobs = {
        "decode": {**gpu, "options": options("decode", engine, **ALL)},
        "both": {**gpu, "options": options("both", engine, **ALL)},
        "fast": {**gpu, "options": options("decode", engine, canary=1)},
        "prompts": {**gpu, "options": options("prefill", engine), "max_tokens": 1},
        "lora": {
            **gpu,
            "options": options("decode", engine | {"enable_lora": True}, **ALL),
        },
        "compiled": {
            **gpu,
            "options": options(
                "decode", engine | {"enforce_eager": False}, canary=1, **ALL
            ),
        },
    }
    stock = {f"stock {phase}": job for phase, job in stock.items()}
    found = run_engines(stock | {"dense": dense})
    # In a process of their own: it takes its device for a GPU from then on.
    return found | run_engines(jobs, TRITON_INTERPRET="1")


def layers(run):
    return [x for x in run["stats"][0]["layers"] if x["pattern"]]


def test_the_runs_can_tell(runs):
    tokens = [runs[name]["tokens"] for name in ("dense", "stock decode", "stock both")]
    assert tokens[0] != tokens[1]
    assert tokens[1] != tokens[2]
    assert {x["backend"] for x in layers(runs["decode"])} == {"triton"}
    assert all("our K-major rows" in x["reason"] for x in layers(runs["both"]))


@pytest.mark.parametrize("phase", ["decode", "both"])
def test_tokens_and_counts_are_those_of_vllms_products(runs, phase):
    ours, stock = runs[phase], runs[f"stock {phase}"]
    assert ours["tokens"] == stock["tokens"]
    for a, b in zip(layers(ours), layers(stock), strict=True):
        assert (a["elements"], a["nonzeros"]) == (b["elements"], b["nonzeros"]), a
    assert all(x["ways"]["1"] == "gather 2.00x" for x in layers(ours))
    # One step for the prompts, which have more tokens than gathering is for.
    calls = [x["calls"] for x in layers(ours)]
    assert all(x["gather"] == 3 and sum(x.values()) == 4 for x in calls), calls


@pytest.mark.parametrize("name", ["fast", "lora", "compiled"])
def test_tokens_do_not_depend_on_how_the_engine_runs(runs, name):
    """With ``fast``, prompts are dense in the phase decode anyway."""
    assert runs[name]["tokens"] == runs["stock decode"]["tokens"]


@pytest.mark.parametrize("name", ["fast", "compiled"])
def test_the_canary_sees_the_result_of_the_kernels(runs, name):
    """Three decode steps in each of two layers, against vLLM's product."""
    canary = runs[name]["stats"][0]["canary"]
    assert {x["tokens"] for x in canary["kinds"].values()} == {6}
    error = [x["relative_error"] / 6 for x in canary["kinds"].values()]
    other = runs["compiled" if name == "fast" else "fast"]["stats"][0]["canary"]
    assert error == pytest.approx(
        [x["relative_error"] / 6 for x in other["kinds"].values()], rel=1e-3
    )
    assert all(0.03 < x < 1.5 for x in error)


def test_fast_leaves_long_prompts_dense(runs):
    """So the first token of the answer is the dense one, and nothing is counted."""
    first = [tokens[:1] for tokens in runs["dense"]["tokens"]]
    assert runs["prompts"]["tokens"] == first
    assert {x["elements"] for x in layers(runs["prompts"])} == {0}
