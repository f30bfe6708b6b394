"""The engine's numbers are those of the emulation with transformers."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest
import torch
from support import tiny
from transformers import AutoModelForCausalLM, AutoTokenizer

from nmsparse import SparsityConfig, write_sidecar
from nmsparse.parameters import write_parameters
from offline_prune.evaluation.online import attach_sidecar, online_result
from offline_prune.evaluation.policies import Forced, View, compare
from offline_prune.evaluation.windows import windows_of
from offline_prune.evaluation.zero_shot import zero_shot
from offline_prune.online.emulation import attach
from offline_prune.online.fused import fused_linears

pytestmark = pytest.mark.engine

TEXT = "the red cup fell off a tall blue table into some very cold water, 42 times. "
PHASES = ("both", "decode", "prefill")
MITIGATION = "d_pts,var"
WORDS = TEXT.split()
PIQA = [
    {
        "goal": " ".join(WORDS[i : i + 4]),
        "sol1": " ".join(WORDS[i + 2 : i + 5]),
        "sol2": WORDS[(3 * i) % len(WORDS)] + "é" * (i % 3),
        "label": i % 2,
    }
    for i in range(10)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("engine")
    (root / "text.txt").write_text("".join(f"{i}: {TEXT}" for i in range(12)))
    (root / "data" / "piqa").mkdir(parents=True)
    rows = "".join(json.dumps(row) + "\n" for row in PIQA)
    (root / "data" / "piqa" / "rows.jsonl").write_text(rows)
    # Small enough that rounding moves few selections, large enough to differ.
    tiny.build("qwen2", root / "model", initializer_range=0.1)
    return root


@pytest.fixture(scope="module")
def engine(folder):
    command = [sys.executable, "-m", "vllm_sparse", "eval", str(folder / "model")]
    command += ["--text", str(folder / "text.txt"), "--seq-len", "48"]
    command += ["--windows", "4", "--continuation-tokens", "8", "--dense"]
    command += ["--activation-sparsity", "8:16", "--mitigation", MITIGATION]
    command += ["--phase", *PHASES, "--engine-args", '{"dtype": "float32"}']
    command += ["--tasks", "piqa", "--task-data", str(folder / "data")]
    command += ["--output", str(folder / "results.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    # Standard output holds results alone.
    assert done.stdout.startswith("dense:\n  perplexity ")
    assert "INFO" not in done.stdout
    found = json.loads((folder / "results.json").read_text())
    return {mode["mode"]: mode for mode in found["modes"]}


@pytest.fixture(scope="module")
def emulated(folder):
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    text = (folder / "text.txt").read_text()
    windows = windows_of(text, tokenizer, seq_len=48, limit=4)
    config = SparsityConfig.uniform("8:16", mitigation=tuple(MITIGATION.split(",")))
    emulation = attach(model.eval(), config)
    views = {
        phase: View(model, lambda n, p=phase: emulation.using(phase=p, prompt_len=n))
        for phase in PHASES
    }
    dense = View(model, lambda _: emulation.off())
    found = compare(dense, views, sequences=[Forced(x, 24) for x in windows])
    data = {"tasks": ["piqa"], "task_data": folder / "data"}
    with emulation.off():
        scores = {"dense": zero_shot(model, tokenizer, **data).scores}
    scores["both"] = zero_shot(model, tokenizer, **data).scores
    return found, scores


@pytest.mark.parametrize("mode", ["dense", *PHASES])
def test_perplexity_and_decode_fidelity_are_the_emulation_s(engine, emulated, mode):
    found, expected = engine[mode], emulated[0][mode]
    if mode in ("dense", "both"):
        close = pytest.approx(math.log(expected.perplexity), abs=1e-4)
        assert math.log(found["perplexity"]) == close
    else:
        assert "perplexity" not in found
    close = pytest.approx(math.log(expected.decode_perplexity), abs=1e-4)
    assert math.log(found["decode_perplexity"]) == close
    if mode != "dense":
        assert found["decode_tokens"] == expected.decode_tokens == 4 * 23
        agreement = expected.top1_agreement
        assert found["decode_top1_agreement"] == pytest.approx(agreement, abs=0.011)
        assert 0 < found["generated_top1_agreement"] < 1
        assert found["decode_mean_logprob_difference"] > 0


def test_modes_differ(engine):
    numbers = [math.log(engine[x]["decode_perplexity"]) for x in ("dense", *PHASES)]
    apart = [abs(a - b) for i, a in enumerate(numbers) for b in numbers[:i]]
    assert min(apart) > 1e-3, "the comparison with the emulation could not fail"


def calibrate(folder):
    """Make a folder that looks calibrated: random parameters for every linear."""
    g = torch.Generator().manual_seed(5)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    given = {}
    for layer in fused_linears(model):
        if layer.name == "lm_head":
            continue
        k = layer.in_features
        same = {
            "factor": torch.rand(k, generator=g) + 0.1,
            "channel_shift": torch.randn(k, generator=g) / 8,
            "low_rank_in": torch.randn(4, k, generator=g) / 16,
            "channel_groups": torch.randperm(k, generator=g),
        }
        for name, o in zip(layer.parts, layer.out_features, strict=True):
            given[name] = same | {
                "output_scale": torch.randn(o, generator=g) / 8,
                "output_shift": torch.randn(o, generator=g) / 8,
                "low_rank_out": torch.randn(o, 4, generator=g) / 16,
            }
    config = SparsityConfig.uniform(
        "8:16",
        criterion="second_order",
        mitigation=("l_pts", "var", "ls", "output_shift", "r_sparse"),
    )
    file = write_parameters(folder, given)
    update = {"parameters": file, "dense_first_token": True}
    write_sidecar(folder, config.model_copy(update=update))


def test_a_calibrated_folder(folder):
    path = tiny.build("llama", folder / "calibrated", initializer_range=0.1)
    calibrate(path)
    command = [sys.executable, "-m", "vllm_sparse", "eval", str(path)]
    command += ["--text", str(folder / "text.txt"), "--seq-len", "48"]
    command += ["--windows", "3", "--engine-args", '{"dtype": "float32"}']
    command += ["--phase", "both", "decode", "--dense"]
    command += ["--output", str(folder / "calibrated.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads((folder / "calibrated.json").read_text())
    assert found["sparsity"].startswith("sidecar ")
    engine = {mode["mode"]: mode for mode in found["modes"]}
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    windows = windows_of(
        (folder / "text.txt").read_text(),
        AutoTokenizer.from_pretrained(path),
        seq_len=48,
        limit=3,
    )
    emulation = attach_sidecar(model, path)
    expected = online_result(
        model, emulation, windows=windows, text="", policies=["both", "decode"]
    )
    for one in expected.policies:
        mode = engine[one.policy]
        assert math.log(mode["decode_perplexity"]) == pytest.approx(
            math.log(one.decode_perplexity), abs=1e-3
        )
        if one.policy != "decode":
            assert math.log(mode["perplexity"]) == pytest.approx(
                math.log(one.perplexity), abs=1e-3
            )
    dense, both, decode = (math.log(x.decode_perplexity) for x in expected.policies)
    assert min(abs(dense - both), abs(dense - decode), abs(both - decode)) > 5e-3


@pytest.mark.parametrize("mode", ["dense", "both"])
def test_tasks_are_those_of_offline_prune(engine, emulated, mode):
    expected = {score.metric: score.value for score in emulated[1][mode]}
    assert engine[mode]["tasks"]["piqa"] == pytest.approx(expected)
    assert "tasks" not in engine["decode"]
