"""``PackedConfig``: what it reads, which folders it refuses before workers start."""

from __future__ import annotations

import json
import pickle
import shutil
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file, save_file
from support import tiny
from support.pruned import prune
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
from vllm.model_executor.layers.quantization import get_quantization_config

from nmsparse.packed_manifest import PackedFormatError
from offline_prune import pack
from vllm_sparse.packed import register_packed
from vllm_sparse.packed.config import PackedConfig
from vllm_sparse.packed.method import PackedLinearMethod

UP = "model.layers.0.mlp.up_proj"
LLAMA = SimpleNamespace(architectures=["LlamaForCausalLM"])


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    dense = tiny.build("llama", root / "dense", num_hidden_layers=1)
    return pack(prune(dense, root / "pruned", "2:4"), output=root / "packed").folder


@pytest.fixture
def folder(packed, tmp_path):
    return shutil.copytree(packed, tmp_path / "copy")


def read(folder):
    config = json.loads((folder / "config.json").read_text())
    return PackedConfig.from_config(config["quantization_config"])


def check(folder, hf_config=LLAMA):
    read(folder).maybe_update_config(str(folder), hf_config=hf_config)


def change(folder, edit):
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_registers_once():
    register_packed()
    register_packed()
    assert get_quantization_config("vllm_sparse") is PackedConfig


def test_a_packed_folder_is_accepted(packed):
    check(packed)


def test_travels_to_workers(packed):
    config = read(packed)
    assert pickle.loads(pickle.dumps(config)).manifest == config.manifest


def test_a_hub_model_is_checked_when_it_is_loaded(packed):
    read(packed).maybe_update_config("nobody/nothing", hf_config=LLAMA)


def test_the_flag_alone_is_refused():
    with pytest.raises(PackedFormatError, match=r"is not packed.*leave it out"):
        PackedConfig()


def test_other_architectures_are_refused(packed):
    llama4 = SimpleNamespace(architectures=["Llama4ForCausalLM"])
    with pytest.raises(PackedFormatError, match=r"Llama4ForCausalLM were not.*unpack"):
        check(packed, llama4)


def test_a_newer_version_is_refused(packed):
    data = read(packed).manifest.model_dump(mode="json") | {"version": 2, "new": 1}
    with pytest.raises(
        PackedFormatError, match=r"config\.json: quantization_config: version 2 .*upgra"
    ):
        PackedConfig.from_config(data)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.pop(f"{UP}.weight_values"), r"up_proj\.weight_values is missing"),
        (
            lambda t: t.pop(f"{UP}.weight_bitmask"),
            r"proj\.weight_bitmask is missing",
        ),
        (
            lambda t: t.update({f"{UP}.weight_bitmask": t["lm_head.weight"].clone()}),
            r"weight_bitmask is BF16 \[259, 128\]\. Expected U8 \[256, 16\]",
        ),
        (
            lambda t: t.update({f"{UP}.weight": t["lm_head.weight"].clone()}),
            "both dense and packed",
        ),
    ],
)
def test_tensors_that_do_not_fit(folder, edit, message):
    change(folder, edit)
    with pytest.raises(PackedFormatError, match=message):
        check(folder)


def test_a_truncated_file(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(PackedFormatError, match=r"model\.safetensors cannot be read"):
        check(folder)


def test_an_index_of_missing_and_broken_files(folder):
    index = folder / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "gone.safetensors"}}')
    with pytest.raises(PackedFormatError, match=r"gone\.safetensors cannot be read"):
        check(folder)
    index.write_text("[]")
    with pytest.raises(PackedFormatError, match=r"index\.json cannot be read"):
        check(folder)
    index.unlink()
    (folder / "model.safetensors").unlink()
    with pytest.raises(PackedFormatError, match="holds no safetensors"):
        check(folder)


def test_methods(packed):
    config = read(packed)
    layer = LinearBase.__new__(LinearBase)
    found = config.get_quant_method(layer, "model.layers.0.mlp.gate_up_proj")
    assert isinstance(found, PackedLinearMethod)
    for plain in ("model.layers.0.mlp.gate", "vision_tower.0.fc1", "x.query_key_value"):
        found = config.get_quant_method(layer, plain)
        assert type(found) is UnquantizedLinearMethod
    assert config.get_quant_method(object(), "lm_head") is None


def test_quantizing_packed_weights_is_refused(packed):
    config = read(packed)
    config.online_quantization_config = object()
    with pytest.raises(PackedFormatError, match="cannot be quantized while they are"):
        config.get_quant_method(LinearBase.__new__(LinearBase), UP)
