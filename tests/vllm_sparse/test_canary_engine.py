"""The canary in real engines: it sees what layers do, and changes no token."""

from __future__ import annotations

import pytest
from support import tiny
from support.quantized import quantize
from support.runs import prompts, run_engines, sparse

pytestmark = pytest.mark.engine

PROMPTS = prompts(4, seed=5)
# The first token of a request comes from its prompt, and all prompts fit into a step.
DECODE_STEPS = 15
KINDS = {"qkv", "o", "gate_up", "down"}
FLOAT = {"dtype": "float32"}


def with_canary(pattern, share, phase="decode", kernels="on", engine=FLOAT, **more):
    options = sparse(pattern, phase, kernels, **engine)
    options["additional_config"]["vllm_sparse"] |= more
    if share:
        options["additional_config"]["vllm_sparse"]["canary"] = share
    return options


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    qwen = tiny.build("qwen2", root / "qwen2")
    w8a8 = quantize(tiny.build("llama", root / "llama"), root / "w8a8", "w8a8")
    treated = {"criterion": "wina", "mitigation": ["d_pts", "var"]}
    chosen = {
        "off": with_canary("8:16", 0),
        "ours": with_canary("8:16", 1),
        "quarter": with_canary("8:16", 0.25),
        "drop": with_canary("8:16", 1, dense_fallback="drop"),
        "stock": with_canary("8:16", 1, kernels="off"),
        "treated": with_canary("8:16", 1, **treated),
        "treated stock": with_canary("8:16", 1, kernels="off", **treated),
        "2:16": with_canary("2:16", 1),
        "16:16": with_canary("16:16", 1, "both", kernels="off"),
        "compiled": with_canary("8:16", 1, engine={**FLOAT, "enforce_eager": False}),
    }
    jobs = {
        name: {"model": str(qwen), "prompts": PROMPTS, "options": options}
        for name, options in chosen.items()
    }
    for share in (0, 1):
        options = with_canary("8:16", share, kernels="off", engine={})
        jobs["w8a8", share] = {
            "model": str(w8a8),
            "prompts": PROMPTS,
            "options": options,
        }
    return run_engines(jobs, NMSPARSE_CACHE=str(tmp_path_factory.mktemp("cache")))


def kinds(run):
    return run["stats"][0]["canary"]["kinds"]


def means(run):
    """Return the mean error and distance of all comparisons."""
    found = kinds(run).values()
    tokens = sum(x["tokens"] for x in found)
    return [
        sum(x[name] for x in found) / tokens
        for name in ("relative_error", "cosine_distance")
    ]


@pytest.mark.parametrize("name", ["ours", "quarter", "compiled"])
def test_no_token_changes(runs, name):
    assert runs[name]["tokens"] == runs["off"]["tokens"]
    assert runs["off"]["stats"][0]["canary"] is None


def test_no_token_of_a_quantized_model_changes(runs):
    assert runs["w8a8", 1]["tokens"] == runs["w8a8", 0]["tokens"]


@pytest.mark.parametrize(
    "name",
    ["ours", "drop", "stock", "treated", "treated stock", "2:16", "compiled"],
)
def test_every_decode_step_is_compared_in_both_layers(runs, name):
    found = kinds(runs[name])
    assert {kind: x["tokens"] for kind, x in found.items()} == dict.fromkeys(
        KINDS, 2 * DECODE_STEPS
    )
    assert all(0.03 < x["relative_error"] / x["tokens"] < 1.5 for x in found.values())


def test_a_share_of_the_steps(runs):
    found = runs["quarter"]["stats"][0]["canary"]
    assert {x["tokens"] for x in found["kinds"].values()} == {2 * (DECODE_STEPS // 4)}
    assert found["share"] == 0.25
    assert len(found["layers"]) == 8


def test_the_error_is_that_of_the_sparsity(runs):
    """Not of a kernel: 8:16 has the same by whatever multiplies; 2:16 has more."""
    error, distance = means(runs["stock"])
    for name in ("ours", "drop", "compiled"):
        assert means(runs[name]) == pytest.approx([error, distance], rel=1e-3)
    assert means(runs["treated"]) == pytest.approx(means(runs["treated stock"]), 1e-3)
    assert means(runs["2:16"])[0] > 1.5 * error
    assert max(means(runs["16:16"])) < 1e-5
    assert 0 < distance < error


def test_quantized_layers_are_compared_with_their_own_dense_product(runs):
    found = kinds(runs["w8a8", 1])
    assert {x["tokens"] for x in found.values()} == {2 * DECODE_STEPS}
    assert 0.03 < means(runs["w8a8", 1])[0] < 1
