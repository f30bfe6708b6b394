"""Real servers, asked through the ``openai`` client, as users do."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest
import torch
from support import tiny
from support.server import eventually, serve
from transformers import AutoModelForCausalLM, AutoTokenizer

from nmsparse.parameters import read_parameters
from nmsparse.sidecar import read_sidecar
from offline_prune.online.emulation import attach

pytestmark = pytest.mark.server

GREEDY = {"temperature": 0.0, "model": "m"}
KEY = "secret"


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory):
    return str(tiny.build("llama", tmp_path_factory.mktemp("models") / "llama"))


@pytest.fixture(scope="module")
def server(tiny_folder):
    """Two API servers and two tensor-parallel ranks, behind an API key."""
    flags = ("--activation-sparsity", "8:16", "--api-server-count", "2")
    flags += ("--canary", "0.5")
    with serve(
        tiny_folder,
        *flags,
        *("--tensor-parallel-size", "2", "--dtype", "float32"),
        key=KEY,
        VLLM_CPU_OMP_THREADS_BIND="0|1",
    ) as running:
        yield running


def _families(server):
    """Return name and type of every metric of a server."""
    return set(re.findall(r"^# TYPE (.*)$", server.get("/metrics").text, re.MULTILINE))


def test_start_up_is_not_counted(server):
    """First in this file: nobody has asked for anything yet."""
    report = server.get("/sparsity").json()
    assert report["tokens"] == {"prefill": 0, "decode": 0}
    for layer in report["layers"]:
        counted = ("elements", "nonzeros", "bytes_read", "bytes_skipped")
        assert [layer[name] for name in counted] == [0] * 4
        assert layer["calls"] == layer["fallbacks"] == {}
    eventually(lambda: server.metric("vllm_sparse_last_poll_timestamp_seconds") > 0)
    for name in ("elements", "linear_calls", "weight_bytes_read", "fallback_calls"):
        assert server.metric(f"vllm_sparse_{name}_total") == 0


def test_counts_every_token_once(server):
    """With two API servers and two ranks, nothing is counted twice."""
    client = server.client()
    before = server.get("/sparsity").json()["tokens"]
    for _ in range(4):
        client.completions.create(prompt="abcde", max_tokens=9, **GREEDY)
    after = server.get("/sparsity").json()["tokens"]
    # <bos> and five bytes; the last generated token is never an input.
    assert after["prefill"] - before["prefill"] <= 4 * 6  # a cached prefix is not run
    assert after["prefill"] > before["prefill"]
    assert after["decode"] - before["decode"] == 4 * 8
    layers = 2
    name = "vllm_sparse_linear_tokens_total"
    for kind in ("qkv", "o", "gate_up", "down"):
        eventually(
            lambda kind=kind: (
                server.metric(name, kind=kind, backend="cpu", phase="decode")
                == layers * after["decode"]
            )
        )
        assert server.metric(name, kind=kind, backend="cpu", phase="prefill") == 0
    for kind, width in (("qkv", 128), ("o", 128), ("down", 256)):
        elements = server.metric("vllm_sparse_elements_total", kind=kind)
        zeros = server.metric("vllm_sparse_zero_elements_total", kind=kind)
        assert elements == layers * after["decode"] * width
        assert 0.5 <= zeros / elements <= 0.52


def test_bytes_of_both_ranks(server):
    """Read and skipped bytes are together those of dense calls, over all ranks."""
    client = server.client()
    for prompt in ("abc", "defgh"):
        client.completions.create(prompt=prompt, max_tokens=6, **GREEDY)
    report = server.get("/sparsity").json()
    for layer in report["layers"]:
        dense = layer["in_features"] * layer["out_features"] * 4
        calls = sum(layer["calls"].values())
        assert calls > 0
        assert layer["bytes_read"] + layer["bytes_skipped"] == calls * dense
        gathered = layer["calls"].get("gather", 0)
        assert (layer["bytes_skipped"] > 0) == (gathered > 0)
        masked = sum(n for way, n in layer["calls"].items() if "masked" in way)
        assert sum(layer["fallbacks"].values()) == masked
        assert set(layer["fallbacks"]) <= {"dense_faster", "mixed_step"}
    for kind in ("qkv", "o", "gate_up", "down"):
        for field in ("read", "skipped"):
            total = sum(
                x[f"bytes_{field}"] for x in report["layers"] if x["kind"] == kind
            )
            name = f"vllm_sparse_weight_bytes_{field}_total"
            eventually(
                lambda name=name, kind=kind, total=total: (
                    server.metric(name, kind=kind) == total
                )
            )


def test_metrics_beside_vllms(server):
    samples = server.metrics()
    info = [name for name in samples if name.startswith("vllm_sparse_build_info")]
    assert len(info) == 1
    assert 'phase="decode"' in info[0]
    assert server.metric("vllm_sparse_layers") == 8
    assert server.metric("vllm_sparse_poll_errors_total") == 0
    for theirs in ("vllm:generation_tokens_total", "vllm:inter_token_latency_seconds"):
        assert any(name.startswith(theirs) for name in samples), theirs


def test_the_canary_of_two_ranks(server):
    tokens = "vllm_sparse_canary_tokens_total"
    errors = "vllm_sparse_canary_relative_error_total"
    server.client().completions.create(prompt="abcde", max_tokens=9, **GREEDY)
    found = server.get("/sparsity").json()["canary"]
    assert found["share"] == 0.5
    assert len(found["layers"]) == 8
    assert set(found["kinds"]) == {"qkv", "o", "gate_up", "down"}
    for kind, sums in found["kinds"].items():
        assert sums["tokens"] >= 4 * 4, "half of the steps, two layers, two ranks"
        assert sums["tokens"] % 4 == 0
        assert 0.03 < sums["relative_error"] / sums["tokens"] < 1.5
        eventually(lambda k=kind, n=sums["tokens"]: server.metric(tokens, kind=k) >= n)
        assert server.metric(errors, kind=kind) >= sums["relative_error"] * 0.999


def test_sparsity_report(server):
    for _ in range(4):  # either API server answers
        report = server.get("/sparsity").json()
        assert report["active"] is True
        assert report["phase"] == "decode"
        assert len(report["layers"]) == 8
        for layer in report["layers"]:
            assert layer["pattern"] == "8:16"
            assert layer["backend"] == "cpu"
            assert "our K-major rows for few tokens" in layer["reason"]
    down = next(x for x in report["layers"] if x["kind"] == "down")
    assert down["in_features"] == 256  # of the whole layer, not of a shard
    assert "abcde" not in str(report)


def test_auth_as_vllm(server):
    assert server.get("/v1/sparsity").status_code == 401
    authorised = server.get("/v1/sparsity", headers={"Authorization": f"Bearer {KEY}"})
    assert authorised.json()["active"] is True
    server_without_key = openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong")
    with pytest.raises(openai.AuthenticationError):
        server_without_key.models.list()


def test_what_is_sent_appears_nowhere(server):
    """Not in the log, not in a metric, not in /sparsity, which nobody can change."""
    marker = "qzmarkerzq"
    client = server.client()
    asked = {"max_tokens": 4, "user": marker, "extra_headers": {"X-Note": marker}}
    client.completions.create(prompt=f"{marker} one", **asked, **GREEDY)
    messages = [{"role": "user", "content": marker}]
    client.chat.completions.create(messages=messages, **asked, **GREEDY)
    with pytest.raises(openai.BadRequestError):  # too long: an error may not tell
        client.completions.create(prompt=marker * 100, **asked, **GREEDY)
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        answer = httpx.request(method, f"{server.url}/sparsity", content=marker)
        assert answer.status_code == 405
    time.sleep(3)  # a poll of the metrics
    for _ in range(4):  # either API server answers
        assert marker not in server.get("/sparsity").text
        assert marker not in server.get("/metrics").text
    assert marker not in server.log.read_text(errors="replace")


def test_chat_and_streaming_agree(server):
    client = server.client()
    question = [{"role": "user", "content": "Hello"}]
    options = {"messages": question, "max_tokens": 12, **GREEDY}
    whole = client.chat.completions.create(**options).choices[0].message.content
    pieces = client.chat.completions.create(stream=True, **options)
    streamed = "".join(p.choices[0].delta.content or "" for p in pieces if p.choices)
    assert streamed == whole
    assert whole


def test_concurrent_requests_equal_single_ones(server):
    client = server.client()

    def ask(prompt):
        done = client.completions.create(prompt=prompt, max_tokens=16, **GREEDY)
        return done.choices[0].text

    questions = [f"question {i} " + "x" * (3 * i) for i in range(8)]
    alone = [ask(question) for question in questions]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, questions)) == alone


def test_cancelled_request_leaves_a_working_server(server):
    client = server.client()
    stream = client.completions.create(
        prompt="go",
        max_tokens=200,
        stream=True,
        extra_body={"ignore_eos": True},
        **GREEDY,
    )
    next(iter(stream))
    stream.close()
    done = client.completions.create(prompt="after", max_tokens=4, **GREEDY)
    assert done.usage.completion_tokens == 4
    eventually(lambda: server.metric("vllm:num_requests_running") == 0)


@pytest.mark.parametrize(
    ("request_", "error", "message"),
    [
        ({"model": "wrong", "prompt": "x"}, openai.NotFoundError, "wrong"),
        ({"model": "m", "prompt": "x" * 4000}, openai.BadRequestError, "256"),
        (
            {"model": "m", "prompt": "x", "max_tokens": -1},
            openai.BadRequestError,
            "max",
        ),
    ],
    ids=["wrong model", "oversize prompt", "bad max_tokens"],
)
def test_bad_requests_get_clear_errors(server, request_, error, message):
    with pytest.raises(error, match=message):
        server.client().completions.create(**request_)
    assert server.get("/health").status_code == 200


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--activation-sparsity", "8:0"], "8:0 is invalid"),
        (["--activation-sparsity", "9:8"], "9:8 is invalid"),
        (["--activation-sparsity", "8:17"], "not a multiple of m=17"),
        (["--activation-sparsity", "foo"], "'foo' is not understood"),
        (["--activation-sparsity", "8:16", "--sparsity-phase", "x"], "invalid choice"),
        (["--sparsity-config", "/nowhere.json"], "does not exist"),
    ],
    ids=["8:0", "9:8", "8:17", "foo", "phase", "file"],
)
def test_bad_sparsity_options_stop_before_the_engine(tiny_folder, flags, message):
    command = [sys.executable, "-m", "vllm_sparse", "serve", tiny_folder, *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert "EngineCore" not in done.stdout + done.stderr


def test_bad_models_stop_before_the_engine(tmp_path):
    newer = tiny.build("llama", tmp_path / "newer")
    (newer / "vllm_sparse_config.json").write_text('{"schema_version": 3}')
    stray = tiny.build("llama", tmp_path / "stray")
    target = "model.layers.7.mlp.down_proj"
    group = {"targets": [target], "activation": {"pattern": "8:16"}}
    (stray / "vllm_sparse_config.json").write_text(json.dumps({"groups": {"a": group}}))
    for folder, message in (
        (tmp_path / "missing", "does not exist. Expected a Hugging Face id"),
        (newer, "schema_version 3 is newer than this vllm-sparse can read"),
        (stray, f"unknown target {target!r}"),
    ):
        command = [sys.executable, "-m", "vllm_sparse", "serve", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 2, done.stderr
        assert message in done.stderr
        assert "EngineCore" not in done.stdout + done.stderr


def test_a_calibrated_folder_serves_itself(tiny_folder, tmp_path):
    """What ``offline-prune calibrate`` writes needs no flag, and is what it promised.

    The answer is compared with the emulation in transformers, token by token.
    """
    model = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    tokens = AutoTokenizer.from_pretrained(tiny_folder)
    model.save_pretrained(tmp_path / "wide")  # so that rounding cannot choose a token
    tokens.save_pretrained(tmp_path / "wide")
    rows = [{"text": "".join(map(chr, range(33 + i, 97 + i)))} for i in range(16)]
    texts = tmp_path / "texts.jsonl"
    texts.write_text("\n".join(map(json.dumps, rows)))
    folder = tmp_path / "calibrated"
    command = [
        *(sys.executable, "-m", "offline_prune", "calibrate", str(tmp_path / "wide")),
        *("--pattern", "8:16", "--mitigation", "l_pts,var,ls", "--phase", "both"),
        *("--calibration", str(texts), "--num-samples", "8", "--seq-len", "32"),
        *("--output", str(folder)),
    ]
    subprocess.run(command, check=True, capture_output=True)
    config = read_sidecar(folder)
    assert config is not None
    flags = ("--dtype", "float32", "--kernel-timing")
    with serve(str(folder), *flags) as running:
        said = running.client().completions.create(
            prompt="abcde", max_tokens=12, **GREEDY
        )
        report = running.get("/sparsity").json()
        # 12 steps of 8 layers, one call of 61.
        name = "vllm_sparse_kernel_seconds_count"
        eventually(lambda: running.metric(name, backend="cpu") == 1)
        data = config.provenance["text_sha256"][:12]
        assert running.metric("vllm_sparse_calibration_info", data=data) == 1
        ours_and_theirs = _families(running)
    with serve(str(folder), "--activation-sparsity", "off") as running:
        running.client().completions.create(prompt="abcde", max_tokens=2, **GREEDY)
        theirs = _families(running)
    assert not {name for name in theirs if name.startswith("vllm_sparse")}
    assert {x for x in ours_and_theirs if not x.startswith("vllm_sparse")} == theirs
    assert {x["pattern"] for x in report["layers"]} == {"8:16"}
    assert all(x["mitigation"] == ["l_pts", "var", "ls"] for x in report["layers"])
    assert all("channel_shift" in x["parameters"] for x in report["layers"])
    ids = torch.tensor([tokens("abcde").input_ids])
    dense = model.generate(ids, max_new_tokens=12, do_sample=False)
    with attach(model, config, read_parameters(folder, config.parameters)):
        sparse = model.generate(ids, max_new_tokens=12, do_sample=False)
    want, other = (
        tokens.decode(x[0, ids.shape[1] :], skip_special_tokens=True)
        for x in (sparse, dense)
    )
    assert said.choices[0].text == want != other


@pytest.mark.demo
def test_embedded_model_answers(demo_model):
    """A real model, 8:16 on every decoder linear at decode, says something sensible.

    It is a small base model: dense, it continues the first prompt with " the capital of
    the country of France", and answers the second with " Paris".
    """
    statement = "The capital of France is"
    question = "Question: What is the capital of France?\nAnswer:"
    with serve(str(demo_model), "--activation-sparsity", "8:16") as running:
        client = running.client()
        said, answered = (
            client.completions.create(prompt=prompt, max_tokens=12, **GREEDY)
            for prompt in (statement, question)
        )
        report = running.get("/sparsity").json()
        # One API server: the other tests here use two.
        name = "vllm_sparse_linear_tokens_total"
        labels = {"backend": "cpu", "phase": "decode", "kind": "down"}
        eventually(lambda: running.metric(name, **labels) == 18 * 22)
        assert running.metric("vllm:generation_tokens_total") == 24
    assert re.search(r"France|French|Paris", said.choices[0].text)
    assert answered.choices[0].text.startswith(" Paris")
    assert report["tokens"]["decode"] == 2 * 11
    sparse = [layer for layer in report["layers"] if layer["pattern"]]
    assert len(sparse) == len(report["layers"]) == 72
    assert all(0.45 <= layer["density"] <= 0.5 for layer in sparse)
