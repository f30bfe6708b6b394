"""Criteria, mitigations and parameters in real engines: what the reference computes."""

from __future__ import annotations

import copy
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from support import tiny
from support.quantized import quantize
from support.runs import prompts, run_engine_expecting_failure, run_engines, sparse
from support.treated import treat, treated_logprobs

from nmsparse.parameters import PARAMETERS_NAME, read_parameters
from nmsparse.sidecar import read_sidecar

pytestmark = pytest.mark.engine

PROMPTS = prompts(8, seed=1)
SHORT = prompts(6, seed=4, longest=14)
LEARNED = ("l_pts", "var", "ls", "output_shift", "r_sparse")
EXACT = ("l_pts", "ls", "output_shift", "r_sparse")
# What is compared with the reference, all of it with biases, keys of grouped queries,
# and the parameters each needs.
TREATMENTS = {
    "wina": {"criterion": "wina"},
    "amber": {"criterion": "amber_pruner"},
    "clact": {"criterion": "clact"},
    "learned": {"criterion": "second_order", "mitigation": LEARNED},
    "mean": {"criterion": "wina", "mitigation": ("d_pts", "var", "r_sparse")},
    "groups": {"mitigation": ("d_pts_median", "ls"), "groups": True},
}
# Of these, what our kernels do as well (CLACT looks at all tokens).
KERNELS = ("learned", "mean", "groups")
LOGPROBS = {"prompt_logprobs": -1, "max_tokens": 1}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    # Weights of the usual size: rounding then flips few selections.
    calm = tiny.build("qwen2", root / "calm", initializer_range=0.02)
    made = {
        name: treat(calm, root / name, "8:16", phase="both", **options)
        for name, options in TREATMENTS.items()
    }
    made["first"] = treat(
        calm,
        root / "first",
        "2:4",
        phase="both",
        mitigation=("d_pts", "var"),
        dense_first_token=True,
    )
    exact = {"criterion": "wina", "mitigation": EXACT, "groups": True}
    made["exact"] = treat(calm, root / "exact", "8:16", phase="both", **exact)
    made["llama"] = tiny.build("llama", root / "llama")
    lively = {"criterion": "second_order", "mitigation": LEARNED}
    made["lively"] = treat(made["llama"], root / "lively", "8:16", **lively)
    for scheme in ("w8a8", "w4a16"):
        dense = quantize(made["llama"], root / f"dense-{scheme}", scheme)
        made[f"dense-{scheme}"] = dense
        made[scheme] = _like(dense, made["lively"], root / scheme)
    return made


def _like(dense, treated, folder):
    """Give the weights of ``dense`` the sidecar and parameters of another folder."""
    shutil.copytree(dense, folder)
    for name in (PARAMETERS_NAME, "vllm_sparse_config.json"):
        shutil.copy(treated / name, folder / name)
    return folder


def with_options(vllm_sparse, **engine):
    return {**engine, "additional_config": {"vllm_sparse": vllm_sparse}}


def _jobs(folders):
    jobs = {}
    exact = {"dtype": "float32", "max_logprobs": -1}
    for name in (*TREATMENTS, "first", "exact"):
        jobs[name, "off"] = {
            "model": str(folders[name]),
            "prompts": PROMPTS,
            "one_by_one": name == "clact",
            "options": with_options({"kernels": "off"}, **exact),
            **LOGPROBS,
        }
    for name in (*KERNELS, "first"):
        jobs[name, "on"] = {
            "model": str(folders[name]),
            "prompts": SHORT,
            "one_by_one": True,
            "options": with_options({"kernels": "on"}, **exact),
            **LOGPROBS,
        }
    lively = {"model": str(folders["lively"]), "prompts": PROMPTS}
    llama = {"model": str(folders["llama"]), "prompts": PROMPTS}
    plain = {"dtype": "float32"}
    jobs["dense"] = {**llama, "options": plain}
    variants = {
        "off": with_options({"kernels": "off"}, **plain),
        "on": with_options({"kernels": "on"}, **plain),
        "drop": with_options({"kernels": "on", "dense_fallback": "drop"}, **plain),
        "prefill": with_options({"phase": "prefill", "kernels": "off"}, **plain),
        "prefill on": with_options({"phase": "prefill", "kernels": "on"}, **plain),
        "both": with_options({"phase": "both", "kernels": "off"}, **plain),
        "chunked": with_options(
            {"kernels": "on"}, **plain, max_num_batched_tokens=16, max_num_seqs=8
        ),
        "lora": with_options({"kernels": "off"}, **plain, enable_lora=True),
        "compiled off": with_options({"kernels": "off"}, **plain, enforce_eager=False),
        "compiled on": with_options({"kernels": "on"}, **plain, enforce_eager=False),
    }
    for name, options in variants.items():
        jobs["lively", name] = {**lively, "options": options}
    jobs["lively", "alone"] = {
        **lively,
        "one_by_one": True,
        "options": with_options({"kernels": "on"}, **plain),
    }
    flags = {"activation_sparsity": "8:16", "criterion": "wina", "phase": "both"}
    for kernels in ("off", "on"):
        options = {**flags, "mitigation": "d_pts,var", "kernels": kernels}
        jobs["flags", kernels] = {**llama, "options": with_options(options, **plain)}
    dense = {**flags, "activation_sparsity": "16:16", "mitigation": "d_pts,var"}
    jobs["16:16"] = {**llama, "options": with_options(dense, **plain)}
    for scheme in ("w8a8", "w4a16"):
        for name in (scheme, f"dense-{scheme}"):
            jobs[name] = {"model": str(folders[name]), "prompts": PROMPTS}
    jobs["w8a8", "16:16"] = {**jobs["dense-w8a8"], "options": with_options(dense)}
    for kernels in ("off", "on"):
        options = {**flags, "mitigation": "d_pts,var", "kernels": kernels}
        jobs["bf16", kernels] = {**llama, "options": with_options(options)}
    return jobs


@pytest.fixture(scope="module")
def runs(folders, tmp_path_factory):
    cache = str(tmp_path_factory.mktemp("cache"))
    return run_engines(_jobs(folders), NMSPARSE_CACHE=cache)


def layers(run):
    return run["stats"][0]["layers"]


def oracle(folder, ids, **options):
    config = read_sidecar(folder)
    parameters = {}
    if config.parameters is not None:
        parameters = read_parameters(folder, config.parameters)
    return treated_logprobs(folder, ids, parameters, config, **options)


def errors(run, expected):
    """Return |difference| / |oracle| of the log-probabilities at every position."""
    found = []
    for engine, wanted in zip(run["prompt_logprobs"], expected, strict=True):
        for entry, want in zip(engine[1:], wanted, strict=False):
            got = torch.tensor([entry[str(token)] for token in range(len(want))])
            found.append(((got - want).norm() / want.norm()).item())
    return torch.tensor(found)


def check(run, expected):
    """Nearly all positions agree to rounding; a near-tie may be chosen otherwise."""
    found = errors(run, expected)
    sys.stdout.write(f"max {found.max():.2g}, median {found.median():.2g}\n")
    assert found.median() < 1e-5
    assert found.quantile(0.9) < 1e-4


@pytest.mark.parametrize("name", [*TREATMENTS, "first", "exact"])
def test_vllms_products_give_the_reference(folders, runs, name):
    run = runs[name, "off"]
    expected = oracle(folders[name], PROMPTS)
    check(run, expected)
    # ... which is not that of the magnitude alone.
    plain = read_sidecar(folders[name])
    bare = copy.deepcopy(plain.model_dump(mode="json"))
    bare["groups"]["default"]["activation"].update(criterion="magnitude", mitigation=[])
    bare["dense_first_token"] = False
    bare = type(plain).parse(bare, source="test")
    other = treated_logprobs(folders[name], PROMPTS, {}, bare)
    assert errors(run, other).median() > 1e-4


@pytest.mark.parametrize("name", [*KERNELS, "first"])
def test_our_kernels_give_the_reference(folders, runs, name):
    run = runs[name, "on"]
    check(run, oracle(folders[name], SHORT))
    ways = {way for x in layers(run) for way in x["calls"]}
    # A prompt with a dense first token is never all sparse.
    assert ways == {"masked+stream"} if name == "first" else ways >= {"gather"}


@pytest.mark.parametrize("name", [*TREATMENTS, "exact"])
def test_the_report_says_what_is_done_and_with_what(runs, name):
    options = TREATMENTS.get(name, {"criterion": "wina", "mitigation": EXACT})
    for layer in layers(runs[name, "off"]):
        assert layer["criterion"] == options.get("criterion", "magnitude")
        assert layer["mitigation"] == list(options.get("mitigation", ()))
        assert 0.45 < layer["density"] <= 0.5
        origin = layer["parameters"]
        assert set(origin.values()) <= {PARAMETERS_NAME, "weight"}
        made = options.get("criterion") in ("wina", "amber_pruner")
        assert (origin.get("factor") == "weight") == made
        assert ("low_rank_in" in origin) == ("r_sparse" in layer["mitigation"])
        assert json.loads(json.dumps(layer)) == layer


@pytest.mark.parametrize(
    "variant", ["on", "drop", "alone", "chunked", "lora", "compiled off", "compiled on"]
)
def test_tokens_do_not_depend_on_how_the_engine_runs(runs, variant):
    assert runs["lively", variant]["tokens"] == runs["lively", "off"]["tokens"]


def test_phases(runs):
    """Decode keeps the prompt exact: the first token is the dense model's."""

    def first(run):
        return [tokens[0] for tokens in run["tokens"]]

    dense, decode = runs["dense"], runs["lively", "off"]
    assert decode["tokens"] != dense["tokens"]
    assert first(decode) == first(dense)
    assert first(runs["lively", "prefill"]) != first(dense)
    assert first(runs["lively", "prefill"]) == first(runs["lively", "both"])
    assert runs["lively", "prefill"]["tokens"] != runs["lively", "both"]["tokens"]
    assert runs["lively", "prefill on"]["tokens"] == runs["lively", "prefill"]["tokens"]


@pytest.mark.parametrize("kernels", ["off", "on"])
def test_a_dense_first_token(runs, kernels):
    """It counts as a token of the prompt, and is not sparsified."""
    run = runs["first", kernels]
    ids = SHORT if kernels == "on" else PROMPTS
    (stats,) = run["stats"]
    total = sum(map(len, ids))
    assert stats["tokens"] == {"prefill": total, "decode": 0}
    assert stats["dense_first"] == len(ids)
    for layer in stats["layers"]:
        assert layer["elements"] == (total - len(ids)) * layer["in_features"]


def test_flags_need_no_folder(runs):
    assert runs["flags", "off"]["tokens"] == runs["flags", "on"]["tokens"]
    assert runs["flags", "off"]["tokens"] != runs["dense"]["tokens"]


def test_keeping_everything_is_dense(runs):
    assert runs["16:16"]["tokens"] == runs["dense"]["tokens"]
    # Also where the criterion could not have had its factor.
    assert runs["w8a8", "16:16"]["tokens"] == runs["dense-w8a8"]["tokens"]


def test_bfloat16(runs):
    """Rounding tells tokens apart soon; most first ones are the same."""
    ours, stock = (runs["bf16", kernels] for kernels in ("on", "off"))
    same = [a[0] == b[0] for a, b in zip(ours["tokens"], stock["tokens"], strict=True)]
    assert sum(same) >= len(same) - 2
    for a, b in zip(layers(ours), layers(stock), strict=True):
        assert a["density"] == pytest.approx(b["density"], abs=0.01)
        assert a["parameters"] == b["parameters"] == {"factor": "weight"}


@pytest.mark.parametrize("scheme", ["w8a8", "w4a16"])
def test_quantized_products(runs, scheme):
    """Tokens of the prompt are vLLM's own to the bit; generated ones are treated."""
    treated, dense = runs[scheme], runs[f"dense-{scheme}"]
    assert [t[0] for t in treated["tokens"]] == [t[0] for t in dense["tokens"]]
    assert treated["tokens"] != dense["tokens"]
    for layer in layers(treated):
        assert "CompressedTensorsLinearMethod" in layer["reason"]
        assert layer["parameters"]["factor"] == PARAMETERS_NAME


def test_two_ranks(folders, runs):
    """Statistics of tokens are those of a shard of K; what looks at no whole row, or is
    reduced over ranks, gives what one rank gives."""
    both = {"tensor_parallel_size": 2, "distributed_executor_backend": "mp"}
    both |= {"dtype": "float32", "max_logprobs": -1}
    jobs = {
        name: {
            "model": str(folders[name]),
            "prompts": PROMPTS,
            "options": with_options({"kernels": kernels}, **both),
            **LOGPROBS,
        }
        for name, kernels in (("exact", "off"), ("mean", "on"))
    }
    found = run_engines(jobs, VLLM_CPU_OMP_THREADS_BIND="0|1")
    for name, run in found.items():
        check(run, oracle(folders[name], PROMPTS, ranks=2))
    check(found["exact"], oracle(folders["exact"], PROMPTS))
    one = errors(found["mean"], oracle(folders["mean"], PROMPTS))
    assert one.median() > 1e-4, "statistics of shards must have made a difference"


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("amber on two ranks", r"amber_pruner looks at the whole weight.*calibrate"),
        ("wina without the weight", r"wina needs the weight, which .* does not give"),
        ("another file", r"has sha256 .*Expected"),
        ("unknown module", r"parameters for 'model\.nowhere' match none"),
    ],
)
def test_engine_refuses(folders, tmp_path, monkeypatch, case, message):
    options, folder = {}, folders["amber"]
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1" if "two" in case else "0")
    if case.startswith("amber"):
        options = {"tensor_parallel_size": 2, "distributed_executor_backend": "mp"}
    elif case.startswith("wina"):
        options = sparse("8:16")
        options["additional_config"]["vllm_sparse"]["criterion"] = "wina"
        folder = folders["dense-w8a8"]
    else:
        folder = treat(folders["llama"], tmp_path / "x", "8:16", mitigation=("ls",))
        path = folder / PARAMETERS_NAME
        if case == "another file":
            path.write_bytes(path.read_bytes() + b" ")
        else:
            _add_module(folder)
    job = {"model": str(folder), "prompts": PROMPTS[:1], "options": options}
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(run_engine_expecting_failure(job))


def _add_module(folder: Path) -> None:
    from nmsparse.parameters import write_parameters
    from nmsparse.sidecar import write_sidecar

    config = read_sidecar(folder)
    found = read_parameters(folder, config.parameters)
    found["model.nowhere"] = {"output_scale": torch.zeros(4)}
    file = write_parameters(folder, found)
    write_sidecar(folder, config.model_copy(update={"parameters": file}))
