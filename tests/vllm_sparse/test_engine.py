"""Real vLLM engines on tiny random models: what must hold, token by token."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from support import nested, tiny
from support.hf import prompt_logprobs
from support.quantized import quantize
from support.runs import prompts, run_engine_expecting_failure, run_engines, sparse

from nmsparse import SparsityConfig, write_sidecar

pytestmark = pytest.mark.engine

MODELS = ("llama", "qwen2")
PROMPTS = prompts(8, seed=1)
MANY = prompts(32, seed=2)
# Longer than one KV-cache block (128 tokens on the CPU), so that prefixes are reused.
PREFIX = prompts(1, seed=3, longest=2)[0] + [7 + i % 200 for i in range(150)]
SHARED_PREFIX = [PREFIX + p for p in PROMPTS] * 2


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    made = {kind: tiny.build(kind, root / kind) for kind in MODELS}
    for scheme in ("w8a8", "w4a16"):
        made[scheme] = quantize(made["llama"], root / scheme, scheme)
    # Weights of the usual size: bfloat16 rounding then flips few selections.
    for kind in MODELS:
        made[f"calm {kind}"] = tiny.build(
            kind, root / f"calm-{kind}", initializer_range=0.02
        )
    made["nested"] = nested.nest(made["llama"], root / "nested")
    made["sidecar"] = tiny.build("llama", root / "sidecar")
    write_sidecar(made["sidecar"], SparsityConfig.uniform("4:16", phase="both"))
    return {name: str(folder) for name, folder in made.items()}


@pytest.fixture(scope="module")
def stock(folders):
    """VLLM_PLUGINS is set and empty: vLLM loads no plugin."""
    jobs = {
        model: {"model": folders[model], "prompts": MANY}
        for model in (*MODELS, "sidecar", "w8a8", "w4a16")
    }
    return run_engines(jobs, VLLM_PLUGINS="")


def _jobs(folders):
    jobs = {}
    for kind in MODELS:
        base = {"model": folders[kind], "prompts": PROMPTS}
        chunks = {"max_num_batched_tokens": 16, "max_num_seqs": 8}
        variants = {
            "decode": base,
            "alone": {**base, "one_by_one": True},
            "chunked": {**base, "chunks": chunks},
            "lora": {**base, "chunks": {"enable_lora": True}},
        }
        for name, job in variants.items():
            options = sparse("8:16", **job.get("chunks", {}))
            jobs[kind, name] = {**base, **job, "options": options}
        jobs[kind, "inactive"] = {**base, "prompts": MANY}
        jobs[kind, "16:16"] = {
            **base,
            "prompts": MANY,
            "options": sparse("16:16", "both"),
        }
        for pattern in ("2:4", "4:8", "8:16", "16:32", "3:8"):
            jobs[kind, pattern] = {
                **base,
                "options": sparse(pattern, "both"),
                "max_tokens": 4,
                "verify": pattern,
            }
        for dtype in ("float32", "bfloat16"):
            options = sparse("8:16", "both", dtype=dtype, max_logprobs=-1)
            jobs[kind, dtype] = {
                **base,
                "model": folders[f"calm {kind}"],
                "options": options,
                "prompt_logprobs": -1,
                "max_tokens": 1,
            }
    llama = {"model": folders["llama"], "prompts": PROMPTS}
    jobs["llama", "dense"] = llama
    jobs["llama", "prefill"] = {**llama, "options": sparse("8:16", "prefill")}
    for cached in (True, False):
        options = sparse("8:16", enable_prefix_caching=cached)
        jobs["llama", f"cached {cached}"] = {
            **llama,
            "prompts": SHARED_PREFIX,
            "options": options,
        }
    # Inductor rounds bfloat16 elsewhere than eager kernels do, stock vLLM's as well;
    # float32 shows whether the op itself computes the same.
    for name, eager in (("eager float32", True), ("compiled", False)):
        options = sparse("8:16", dtype="float32", enforce_eager=eager)
        jobs["llama", name] = {**llama, "options": options}
    for scheme in ("w8a8", "w4a16"):
        base = {"model": folders[scheme], "prompts": MANY}
        jobs[scheme, "16:16"] = {**base, "options": sparse("16:16", "both")}
        jobs[scheme, "8:16"] = {**base, "options": sparse("8:16", "both")}
    outer = {"model": folders["nested"], "prompts": PROMPTS, "nested": True}
    jobs["nested", "decode"] = {**outer, "options": sparse("8:16")}
    jobs["sidecar", "on"] = {"model": folders["sidecar"], "prompts": MANY}
    off = {"additional_config": {"vllm_sparse": {"enabled": False}}}
    jobs["sidecar", "off"] = {**jobs["sidecar", "on"], "options": off}
    return jobs


@pytest.fixture(scope="module")
def runs(folders):
    return run_engines(_jobs(folders))


def _layers(run):
    return run["stats"][0]["layers"]


@pytest.mark.parametrize("model", MODELS)
def test_off_means_off(stock, runs, model):
    """Installed but not activated: the same tokens as vLLM without the plugin."""
    assert runs[model, "inactive"]["tokens"] == stock[model]["tokens"]
    assert runs[model, "inactive"]["stats"] == [None]


@pytest.mark.parametrize("model", MODELS)
def test_n_equal_m_is_dense(stock, runs, model):
    assert runs[model, "16:16"]["tokens"] == stock[model]["tokens"]
    assert all(layer["pattern"] == "16:16" for layer in _layers(runs[model, "16:16"]))


@pytest.mark.parametrize("model", MODELS)
def test_sparsity_changes_tokens(stock, runs, model):
    """Guards the tests here: tokens of these models do react to sparsity."""
    assert runs[model, "decode"]["tokens"] != runs[model, "8:16"]["tokens"]
    assert runs[model, "8:16"]["tokens"] != runs[model, "2:4"]["tokens"]


@pytest.mark.parametrize("pattern", ["2:4", "4:8", "8:16", "16:32", "3:8"])
@pytest.mark.parametrize("model", MODELS)
def test_every_input_follows_the_pattern(runs, model, pattern):
    n, m = map(int, pattern.split(":"))
    assert runs[model, pattern]["violations"] == []
    for layer in _layers(runs[model, pattern]):
        assert layer["pattern"] == pattern
        assert layer["elements"] > 0
        # Natural zeros (a padding embedding) can only lower the density.
        assert n / m - 0.02 <= layer["density"] <= n / m, layer


@pytest.mark.parametrize(
    "variant", ["alone", "chunked", "lora"], ids=["alone", "chunked", "lora"]
)
@pytest.mark.parametrize("model", MODELS)
def test_scheduling_does_not_change_tokens(runs, model, variant):
    assert runs[model, variant]["tokens"] == runs[model, "decode"]["tokens"]
    tokens = [runs[model, name]["stats"][0]["tokens"] for name in ("decode", variant)]
    assert tokens[0] == tokens[1]


def test_prefix_caching_does_not_change_tokens(runs):
    cached, plain = runs["llama", "cached True"], runs["llama", "cached False"]
    assert cached["tokens"] == plain["tokens"]
    prefilled = [run["stats"][0]["tokens"]["prefill"] for run in (cached, plain)]
    assert prefilled[0] < prefilled[1], "the cache was never hit"


def test_compiled_equals_eager(runs):
    compiled, eager = runs["llama", "compiled"], runs["llama", "eager float32"]
    assert compiled["tokens"] == eager["tokens"]
    # Counters are updated inside the compiled graph as well.
    assert _layers(compiled) == _layers(eager)


def _first_tokens(run):
    return [tokens[0] for tokens in run["tokens"]]


def test_phases(runs):
    """Decode keeps the prefill exact: the first token is the dense model's."""
    dense = _first_tokens(runs["llama", "dense"])
    assert _first_tokens(runs["llama", "decode"]) == dense
    assert _first_tokens(runs["llama", "prefill"]) != dense
    expected = {
        "prefill": sum(map(len, PROMPTS)),
        "decode": len(PROMPTS) * 15,  # the last of 16 tokens is never an input
    }
    for name in ("decode", "prefill", "8:16"):
        tokens = runs["llama", name]["stats"][0]["tokens"]
        decoded = expected["decode"] if name != "8:16" else len(PROMPTS) * 3
        assert tokens == {**expected, "decode": decoded}
    for name in ("decode", "prefill"):
        for layer in _layers(runs["llama", name]):
            assert layer["elements"] == expected[name] * layer["in_features"]


def _relative_errors(run, oracle):
    """Return |difference| / |oracle| of the log-probabilities at every position."""
    errors = []
    for engine, expected in zip(run["prompt_logprobs"], oracle, strict=True):
        for entry, want in zip(engine[1:], expected, strict=False):
            got = torch.tensor([entry[str(token)] for token in range(len(want))])
            errors.append(((got - want).norm() / want.norm()).item())
    return torch.tensor(errors)


# bfloat16: the two implementations round differently, so near-ties are now and then
# selected differently; transformers alone, bfloat16 against float32, differs by 0.01.
@pytest.mark.parametrize(
    ("dtype", "worst", "typical"),
    [("float32", 1e-4, 1e-5), ("bfloat16", 0.03, 0.006)],
    ids=["fp32", "bf16"],
)
@pytest.mark.parametrize("model", MODELS)
def test_logits_match_transformers(folders, runs, model, dtype, worst, typical):
    """The oracle is a transformers model hooked with the reference op."""
    folder = Path(folders[f"calm {model}"])
    arguments = (folder, PROMPTS)
    oracle = prompt_logprobs(*arguments, "8:16", getattr(torch, dtype))
    errors = _relative_errors(runs[model, dtype], oracle)
    sys.stdout.write(
        f"relative error: max {errors.max():.2g}, median {errors.median():.2g}"
    )
    assert errors.max() < worst
    assert errors.median() < typical
    dense = prompt_logprobs(*arguments, "16:16", getattr(torch, dtype))
    assert _relative_errors(runs[model, dtype], dense).median() > 2 * typical


@pytest.mark.parametrize("scheme", ["w8a8", "w4a16"])
def test_composes_with_compressed_tensors(stock, runs, scheme):
    assert runs[scheme, "16:16"]["tokens"] == stock[scheme]["tokens"]
    assert runs[scheme, "8:16"]["tokens"] != stock[scheme]["tokens"]
    for layer in _layers(runs[scheme, "8:16"]):
        assert 0.48 <= layer["density"] <= 0.5
        assert "CompressedTensorsLinearMethod" in layer["reason"]


def test_sidecar_folder(stock, runs):
    """It activates by itself with the plugin, and is an ordinary folder without."""
    assert stock["sidecar"]["tokens"] == stock["llama"]["tokens"]
    assert runs["sidecar", "off"]["tokens"] == stock["llama"]["tokens"]
    stats = runs["sidecar", "on"]["stats"][0]
    assert stats["phase"] == "both"
    assert {layer["pattern"] for layer in stats["layers"]} == {"4:16"}
    assert "sidecar" in stats["source"]


def test_sidecar_folder_in_stock_transformers(folders):
    plain, marked = (
        prompt_logprobs(Path(folders[name]), PROMPTS, "1:1", torch.float32)
        for name in ("llama", "sidecar")
    )
    assert all(torch.equal(a, b) for a, b in zip(plain, marked, strict=True))


def test_nested_text_models_are_sparse_too(runs):
    """As in multimodal models: built under a copy of vLLM's configuration."""
    nested_run, flat = runs["nested", "decode"], runs["llama", "decode"]
    assert nested_run["tokens"] == flat["tokens"]
    counts = [[x["elements"] for x in _layers(run)] for run in (nested_run, flat)]
    assert counts[0] == counts[1]
    assert all(x["name"].startswith("language_model.") for x in _layers(nested_run))


def test_tensor_parallel(folders, runs):
    job = {"model": folders["llama"], "prompts": PROMPTS}
    options = sparse(
        "8:16",
        tensor_parallel_size=2,
        distributed_executor_backend="mp",
        dtype="float32",
    )
    single = runs["llama", "eager float32"]
    double = run_engines(
        {"tp2": {**job, "options": options}}, VLLM_CPU_OMP_THREADS_BIND="0|1"
    )["tp2"]
    assert double["tokens"] == single["tokens"]
    shards = {
        layer["k_sharded"] for rank in double["stats"] for layer in rank["layers"]
    }
    assert len(double["stats"]) == 2
    assert shards == {True, False}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation_sparsity": "8:17"}, r"in_features 128 is not a multiple of m=17"),
        ({"activation_sparsty": "8:16"}, r"Did you mean: activation_sparsity\?"),
        (
            {
                "config": {
                    "groups": {
                        "a": {
                            "targets": ["model.layers.9.mlp.down_proj"],
                            "activation": {"pattern": "8:16"},
                        }
                    }
                }
            },
            r"unknown target 'model.layers.9.mlp.down_proj'",
        ),
    ],
    ids=["divisibility", "unknown key", "unknown target"],
)
def test_engine_refuses_bad_options(folders, options, message):
    """Also without the command line: ``LLM(additional_config=...)`` fails clearly."""
    job = {
        "model": folders["llama"],
        "prompts": PROMPTS[:1],
        "options": {"additional_config": {"vllm_sparse": options}},
    }
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(run_engine_expecting_failure(job))
