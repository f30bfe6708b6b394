"""``vllm-sparse plan``: what it prints, and mistakes that come at once."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from nmsparse import SparsityConfig, write_sidecar
from vllm_sparse.cli import main

# O, K.
BLOCK = {
    "self_attn.q_proj": (64, 64),
    "self_attn.k_proj": (32, 64),
    "self_attn.v_proj": (32, 64),
    "self_attn.o_proj": (64, 64),
    "mlp.gate_proj": (128, 64),
    "mlp.up_proj": (128, 64),
    "mlp.down_proj": (64, 128),
}
CONFIG = {"model_type": "llama", "num_key_value_heads": 2, "num_attention_heads": 4}
CONFIG |= {"vocab_size": 256, "tie_word_embeddings": True, "dtype": "bfloat16"}
PARAMETERS = 256 * 64 + 2 * sum(o * k for o, k in BLOCK.values())


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plan") / "model"
    folder.mkdir()
    tensors = {
        f"model.layers.{i}.{name}.weight": torch.zeros(shape, dtype=torch.bfloat16)
        for i in range(2)
        for name, shape in BLOCK.items()
    }
    tensors["model.embed_tokens.weight"] = torch.zeros(256, 64, dtype=torch.bfloat16)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def plan(capsys, *arguments):
    assert main(["plan", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_tables_and_words(made, capsys):
    assert main(["plan", str(made), "--gpu", "h200", "--batch", "1", "16", "64"]) == 0
    text = capsys.readouterr().out
    flat = " ".join(text.split())
    assert f"{PARAMETERS / 1e6:.1f} M parameters, bfloat16" in flat
    assert "none was given, so 8:16 is assumed; phase decode" in flat
    assert "141 GB, 4,800 GB/s, 989 TFLOPS (NVIDIA, H200 data sheet, SXM)" in flat
    assert "8:16 reads 99.998 % of the bytes of its layers: no gain" in flat
    assert "above 16 tokens a step the product is vLLM's dense one" in flat
    assert "a ceiling and not a measurement" in flat
    assert "GPU kernels have not been measured on a GPU" in flat
    lines = text.splitlines()
    assert all(line == line.rstrip() for line in lines)
    (gate_up,) = [line.split() for line in lines if line.startswith(" gate_up")]
    assert gate_up[:4] == ["gate_up", "2", "64x256", "8:16"]
    # Two layers of 64 x 256 in two bytes, and half of that.
    assert gate_up[4:8] == ["65.54", "kB", "32.77", "kB"]


def test_json_has_every_number(made, capsys):
    found = plan(capsys, made, "--gpu", "L4", "--batch", "2", "--context", "100")
    assert found["parameters"] == PARAMETERS
    assert found["machine"]["bandwidth"] == 300e9
    (step,) = found["steps"]
    assert step["share_read"] == 0.75
    assert sum(part["dense_bytes"] for part in step["parts"]) == step["dense_bytes"]
    assert step["sparse_seconds"] == pytest.approx(step["sparse_bytes"] / 300e9)
    assert found["memory"]["kv_sequence"] == 100 * 2 * 64 * 2


def test_the_sidecar_counts_unless_flags_say_otherwise(made, capsys, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for file in made.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    groups = {
        "down": {"targets": ["re:.*down_proj$"], "activation": {"pattern": "4:16"}}
    }
    write_sidecar(folder, SparsityConfig.parse({"groups": groups}, source="test"))

    def sparse(*flags):
        found = plan(capsys, folder, "--batch", "1", *flags)
        parts = found["steps"][0]["parts"]
        return {p["kind"]: p["sparsity"] for p in parts if p["sparsity"]}

    assert sparse() == {"down": "4:16"}
    assert sparse("--activation-sparsity", "8:16")["qkv"] == "8:16"
    assert sparse("--activation-sparsity", "off") == {}
    assert sparse("--sparsity-phase", "prefill") == {}
    assert sparse("--weight-sparsity", "50%") == {
        "qkv": "packed, 50% zeros",
        "o": "packed, 50% zeros",
        "gate_up": "packed, 50% zeros",
        "down": "4:16; packed, 50% zeros",
    }


MISTAKES = {
    "unknown gpu": (["--gpu", "H201"], "Unknown GPU 'H201'. Did you mean: H200?"),
    "amd": (["--gpu", "MI300X"], "GPU 'MI300X' is AMD's. Expected an NVIDIA GPU"),
    "two machines": (["--gpu", "L4", "--cpu"], "--gpu and --cpu are both given"),
    "batch": (["--batch", "0"], "--batch is 0. Expected 1 or more"),
    "context": (["--context", "0"], "--context is 0. Expected 1 or more"),
    "bandwidth": (["--bandwidth", "-1"], "--bandwidth is -1.0. Expected more than 0"),
    "share": (["--achieved", "1.5"], "--achieved is 1.5. Expected a share"),
    "shares": (["--achieved", "1", "1", "1"], "--achieved has 3 values"),
    "launches": (["--launch-us", "2"], "--launch-us needs --gpu, --cpu or --bandwidth"),
    "pattern": (["--activation-sparsity", "16:8"], "Sparsity pattern 16:8 is invalid"),
    "zeros": (["--weight-sparsity", "half"], "Sparsity pattern 'half' is not"),
    "two sources": (
        ["--activation-sparsity", "8:16", "--sparsity-config", "x.json"],
        "are both given. Expected one",
    ),
    "ranks": (["--tensor-parallel", "3"], "cannot be split over 3 ranks"),
    "M": (
        ["--activation-sparsity", "8:48"],
        "in_features 64 is not a multiple of m=48",
    ),
}


@pytest.mark.parametrize(("flags", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes(made, capsys, flags, message):
    assert main(["plan", str(made), *flags]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("vllm-sparse plan: error: ")
    assert message in captured.err


def test_headers_need_neither_torch_nor_vllm(made):
    code = (
        "import json, sys; from vllm_sparse.cli import main;"
        f"status = main({['plan', str(made), '--gpu', 'H200', '--json']!r});"
        "heavy = {'torch', 'vllm', 'transformers', 'fastapi'} & set(sys.modules);"
        "print(json.dumps([status, sorted(heavy)]), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert json.loads(done.stderr.splitlines()[-1]) == [0, []]


def test_this_cpu_is_measured(made, capsys, monkeypatch):
    from nmsparse.native import library
    from vllm_sparse.plan import scan

    if not library.status().available:
        pytest.skip(library.status().reason)
    real = scan.read_bandwidth
    monkeypatch.setattr(scan, "read_bandwidth", lambda: real(1, 1 << 20))
    found = plan(capsys, made, "--cpu", "--batch", "1")["machine"]
    assert found["bandwidth"] > 1e8
    assert found["memory"] > 1e8
    assert found["source"] == "memory of this machine, bandwidth measured now"


def test_a_cpu_without_kernels_asks_for_a_bandwidth(made, capsys, monkeypatch):
    from types import SimpleNamespace

    from nmsparse.native import library

    gone = SimpleNamespace(available=False, reason="no compiler")
    monkeypatch.setattr(library, "status", lambda: gone)
    assert main(["plan", str(made), "--cpu"]) == 2
    assert "no compiler. Expected compiled kernels: give --b" in capsys.readouterr().err
    assert main(["plan", str(made), "--cpu", "--bandwidth", "20"]) == 0


def test_weights_of_four_bits(capsys, tmp_path):
    """As bitsandbytes stores them: a column of bytes in the place of O x K."""
    tensors = {"model.embed_tokens.weight": torch.zeros(256, 64, dtype=torch.bfloat16)}
    for name, (o, k) in BLOCK.items():
        weight = f"model.layers.0.{name}.weight"
        tensors[weight] = torch.zeros(o * k // 2, 1, dtype=torch.uint8)
        tensors[f"{weight}.absmax"] = torch.zeros(o * k // 64)
    save_file(tensors, tmp_path / "model.safetensors")
    config = CONFIG | {"head_dim": 16, "quantization_config": {"quant_method": "bnb"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for sparsity in ("8:16", "off"):
        flags = ["--gpu", "L4", "--batch", "1", "--activation-sparsity", sparsity]
        found = plan(capsys, tmp_path, *flags)
        assert found["memory"]["kv_token"] == 2 * 2 * 16 * 2
        assert found["memory"]["sequences"] > 0
        kinds = {part["kind"] for part in found["steps"][0]["parts"]}
        rest = {"head", "embeddings", "kv cache"}
        assert kinds == {"qkv", "o", "gate_up", "down"} | rest
    assert main(["plan", str(tmp_path), "--gpu", "L4"]) == 0
    assert "KV cache, a token 128 B" in capsys.readouterr().out
