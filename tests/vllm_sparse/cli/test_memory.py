"""``vllm-sparse doctor --model``: bytes of linear layers, from headers alone."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from nmsparse import SparsityConfig, k_major, write_sidecar
from nmsparse.config import ConfigError
from nmsparse.packed_manifest import PackedFormatError
from vllm_sparse.cli.memory import Linear, estimate, read_linears

BLOCK = "model.layers.0."
# Name: O, K. The last two are no decoder linears.
SHAPES = {
    "self_attn.q_proj": (64, 32),
    "self_attn.k_proj": (16, 32),
    "self_attn.v_proj": (16, 32),
    "self_attn.o_proj": (32, 64),
    "mlp.down_proj": (32, 128),
    "mlp.gate": (4, 32),
    "mlp.experts.0.up_proj": (128, 32),
}


@pytest.fixture
def folder(tmp_path):
    tensors = {
        f"{BLOCK}{name}.weight": torch.zeros(shape, dtype=torch.bfloat16)
        for name, shape in SHAPES.items()
    }
    tensors["model.embed_tokens.weight"] = torch.zeros(512, 32, dtype=torch.bfloat16)
    tensors[f"{BLOCK}input_layernorm.weight"] = torch.zeros(32, dtype=torch.bfloat16)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def mib(text):
    return float(text.split(" MiB")[0].replace(",", ""))


@pytest.mark.parametrize("size", [(64, 32), (96, 32), (100, 7)])
def test_rows_are_what_k_major_makes(size):
    out_features, in_features = size
    rows = k_major(torch.zeros(size, dtype=torch.bfloat16))
    linear = Linear(("x",), out_features, in_features, 2)
    assert linear.rows == in_features * rows.stride(0) * 2
    assert linear.dense == out_features * in_features * 2


def test_parts_are_fused(folder):
    linears = {x.names[0]: x for x in read_linears(folder)}
    qkv = linears[f"{BLOCK}self_attn.qkv_proj"]
    assert (qkv.out_features, qkv.in_features, qkv.size) == (96, 32, 2)
    assert qkv.names[1:] == tuple(f"{BLOCK}self_attn.{x}_proj" for x in "qkv")
    assert f"{BLOCK}self_attn.q_proj" not in linears


def test_stock_keep_and_drop(folder, monkeypatch):
    monkeypatch.setattr("vllm_sparse.cli.memory._MIB", 1)  # so that nothing is rounded
    found = dict(estimate(str(folder)))
    stock = 2 * (96 * 32 + 32 * 64 + 32 * 128)
    rows = 2 * (32 * (96 + 64) + 64 * (32 + 64) + 128 * (32 + 64))
    assert mib(found["stock"]) == stock
    assert "3 decoder linears" in found["stock"]
    assert mib(found["keep"]) == stock + rows
    assert mib(found["drop"]) == rows
    assert f"({rows / stock:.2f}x)" in found["drop"]


def test_a_sidecar_says_which_layers_are_sparse(folder, monkeypatch):
    monkeypatch.setattr("vllm_sparse.cli.memory._MIB", 1)
    groups = {
        "down": {"targets": ["re:.*down_proj$"], "activation": {"pattern": "8:16"}}
    }
    write_sidecar(folder, SparsityConfig.parse({"groups": groups}, source="test"))
    found = dict(estimate(str(folder)))
    rows = 2 * 128 * (32 + 64)
    assert mib(found["keep"]) == mib(found["stock"]) + rows
    assert mib(found["drop"]) == 2 * (96 * 32 + 32 * 64) + rows
    assert "rows of 1 layers" in found["keep"]


@pytest.mark.parametrize(
    ("method", "text"), [("fp8", "quantized (fp8)"), ("vllm_sparse", "is packed")]
)
def test_other_weights_are_not_counted(folder, method, text):
    config = {"quantization_config": {"quant_method": method}}
    (folder / "config.json").write_text(json.dumps(config))
    ((name, found),) = estimate(str(folder))
    assert name == "not counted"
    assert text in found


def test_what_is_not_there_is_named(folder, tmp_path):
    with pytest.raises(ConfigError, match="'no/such' is not on this machine"):
        estimate("no/such")
    (folder / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(PackedFormatError, match="cannot be read"):
        estimate(str(folder))
    (folder / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"config\.json cannot be read"):
        estimate(str(folder))
