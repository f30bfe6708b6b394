"""Layers that own their weight, in real engines: the tokens of vLLM's products.

In float32 our kernels and vLLM's differ by the order of additions only, so greedy
tokens of a tiny model are the same; bfloat16 products round apart, so there
log-probabilities are compared.
"""

from __future__ import annotations

import pytest
from support import tiny
from support.pruned import prune
from support.runs import prompts, run_engines, sparse

pytestmark = pytest.mark.engine

PROMPTS = prompts(8, seed=3)
ON = {"kernels": "on", "dtype": "float32"}
OFF = {"kernels": "off", "dtype": "float32"}
WEIGHTS = {"sparse_weights": "auto", "kernels": "on"}


def with_options(vllm_sparse, **engine):
    return {**engine, "additional_config": {"vllm_sparse": vllm_sparse}}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    made = {kind: tiny.build(kind, root / kind) for kind in ("llama", "qwen2")}
    made["pruned"] = prune(made["qwen2"], root / "pruned", "60%")
    return {name: str(folder) for name, folder in made.items()}


def _jobs(folders):
    jobs = {}
    for kind in ("llama", "qwen2"):
        base = {"model": folders[kind], "prompts": PROMPTS}
        for phase in ("decode", "both", "prefill"):
            jobs[kind, phase, "off"] = {
                **base,
                "options": sparse("8:16", phase, **OFF),
            }
            jobs[kind, phase, "on"] = {**base, "options": sparse("8:16", phase, **ON)}
        drop = sparse("8:16", **ON)
        drop["additional_config"]["vllm_sparse"]["dense_fallback"] = "drop"
        jobs[kind, "drop"] = {**base, "options": drop}
    llama = {"model": folders["llama"], "prompts": PROMPTS}
    jobs["auto"] = {**llama, "options": sparse("8:16", kernels="auto", dtype="float32")}
    jobs["alone"] = {**llama, "one_by_one": True, "options": sparse("8:16", **ON)}
    chunks = {"enable_chunked_prefill": True, "max_num_batched_tokens": 16}
    chunks |= {"max_num_seqs": 8}
    jobs["chunked"] = {**llama, "options": sparse("8:16", **ON, **chunks)}
    dense = {"dense_weights": "auto", "kernels": "on"}
    jobs["dense", "stock"] = {**llama, "options": {"dtype": "float32"}}
    jobs["dense", "ours"] = {**llama, "options": with_options(dense, dtype="float32")}
    jobs["lora"] = {**llama, "options": sparse("8:16", **ON, enable_lora=True)}
    jobs["compiled"] = {**llama, "options": sparse("8:16", **ON, enforce_eager=False)}
    for name in ("bf16 off", "bf16 on"):
        options = sparse("8:16", "both", name[5:], max_logprobs=-1)
        jobs[name] = {**llama, "options": options, "prompt_logprobs": -1}
    pruned = {"model": folders["pruned"], "prompts": PROMPTS}
    jobs["pruned", "stock"] = {**pruned, "options": {"dtype": "float32"}}
    for fallback in ("keep", "drop"):
        options = with_options({**WEIGHTS, "dense_fallback": fallback}, dtype="float32")
        jobs["pruned", fallback] = {**pruned, "options": options}
    jobs["pruned", "8:16 off"] = {**pruned, "options": sparse("8:16", **OFF)}
    jobs["pruned", "8:16 on"] = {**pruned, "options": sparse("8:16", **ON)}
    jobs["pruned", "2:16 on"] = {**pruned, "options": sparse("2:16", **ON)}
    return jobs


@pytest.fixture(scope="module")
def runs(folders, tmp_path_factory):
    cache = str(tmp_path_factory.mktemp("cache"))
    jobs = _jobs(folders)
    # Kernels compiled before stay in use; measured tables are this test's own.
    return run_engines(jobs, NMSPARSE_CACHE=cache)


def layers(run):
    return run["stats"][0]["layers"]


def calls(run):
    return {way for layer in layers(run) for way in layer["calls"]}


@pytest.mark.parametrize("phase", ["decode", "both", "prefill"])
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_tokens_and_counts_are_those_of_vllms_products(runs, kind, phase):
    ours, stock = runs[kind, phase, "on"], runs[kind, phase, "off"]
    assert ours["tokens"] == stock["tokens"]
    # The prompts of a step are mostly more tokens than our kernels take.
    assert ("gather" if phase != "prefill" else "masked+stock") in calls(ours)
    assert not calls(stock)
    for a, b in zip(layers(ours), layers(stock), strict=True):
        assert (a["elements"], a["nonzeros"]) == (b["elements"], b["nonzeros"]), a
    sparse_layers = [x for x in layers(ours) if x["pattern"]]
    # A little less than half: some of the kept values are zeros.
    assert all(0.49 < x["density"] <= 0.5 for x in sparse_layers)


@pytest.mark.parametrize(
    "name", ["auto", "alone", "chunked", "lora", "compiled", ("llama", "drop")]
)
def test_tokens_do_not_depend_on_how_the_engine_runs(runs, name):
    assert runs[name]["tokens"] == runs["llama", "decode", "off"]["tokens"]


def test_dropping_vllms_copy_leaves_products_of_ours(runs):
    run = runs["qwen2", "drop"]
    assert run["tokens"] == runs["qwen2", "decode", "off"]["tokens"]
    assert not {way for way in calls(run) if "stock" in way}
    assert "matmul" in calls(run)


def test_auto_has_measured_every_layer(runs):
    for layer in layers(runs["auto"]):
        assert set(layer["ways"]) == {"1", "2", "4", "8", "16"}
        assert all(way.endswith("x") for way in layer["ways"].values()), layer["ways"]


def test_bfloat16_differs_by_rounding_only(runs):
    """The selection can flip at a near-tie, so the median says what rounding does."""
    worst = []
    for a, b in zip(
        runs["bf16 on"]["prompt_logprobs"],
        runs["bf16 off"]["prompt_logprobs"],
        strict=True,
    ):
        for x, y in zip(a[1:], b[1:], strict=True):
            worst.extend(abs(x[token] - y[token]) for token in x.keys() & y.keys())
    worst.sort()
    assert len(worst) > 1000
    assert worst[len(worst) // 2] < 0.05


@pytest.mark.parametrize("fallback", ["keep", "drop"])
def test_pruned_weights_are_packed_and_give_the_same_tokens(runs, fallback):
    run = runs["pruned", fallback]
    assert run["tokens"] == runs["pruned", "stock"]["tokens"]
    assert "packed" in calls(run)
    for layer in layers(run):
        dense = layer["in_features"] * layer["out_features"] * 4
        assert layer["weight_sparsity"] == pytest.approx(0.6, abs=0.02)
        assert 0 < layer["extra_bytes"] < 0.6 * dense


def test_dense_layers_can_have_our_layout_too(runs):
    assert runs["dense", "ours"]["tokens"] == runs["dense", "stock"]["tokens"]
    assert "stream" in calls(runs["dense", "ours"])


def test_sparse_activations_on_pruned_weights(runs):
    """8:16 reads no fewer bytes than the packed weight, 2:16 does."""
    run = runs["pruned", "8:16 on"]
    assert run["tokens"] == runs["pruned", "8:16 off"]["tokens"]
    assert "masked+packed" in calls(run)
    assert "gather" in calls(runs["pruned", "2:16 on"])


def test_two_ranks_give_the_tokens_of_one(runs, folders):
    options = sparse("8:16", **ON, tensor_parallel_size=2)
    options["distributed_executor_backend"] = "mp"
    job = {"model": folders["llama"], "prompts": PROMPTS, "options": options}
    found = run_engines({"tp2": job}, VLLM_CPU_OMP_THREADS_BIND="0|1")["tp2"]
    assert found["tokens"] == runs["llama", "decode", "off"]["tokens"]
    assert all("gather" in x["calls"] for s in found["stats"] for x in s["layers"])


def test_without_kernels_the_reference_runs_and_says_why(runs, folders):
    options = sparse("8:16", **(ON | {"kernels": "auto"}))
    job = {"model": folders["llama"], "prompts": PROMPTS, "options": options}
    found = run_engines({"none": job}, NMSPARSE_NATIVE="0")["none"]
    assert found["tokens"] == runs["llama", "decode", "off"]["tokens"]
    assert {x["backend"] for x in layers(found) if x["pattern"]} == {"reference"}
