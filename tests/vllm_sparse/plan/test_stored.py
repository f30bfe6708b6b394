"""Where shapes come from: files, the Hub, or transformers on the meta device."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from nmsparse.config import ConfigError
from nmsparse.packed_manifest import PackedFormatError
from vllm_sparse.plan.estimate import make_plan
from vllm_sparse.plan.modules import read_modules
from vllm_sparse.plan.stored import read_model

SMALL = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
SMALL |= {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 128}
EXPERTS = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2}
MODELS = {
    "llama": SMALL,
    "qwen2": SMALL | {"tie_word_embeddings": True},
    "gemma3_text": SMALL | {"head_dim": 16},
    "phi3": SMALL | {"pad_token_id": 0},
    "mixtral": SMALL | EXPERTS,
    "qwen3_moe": SMALL | EXPERTS | {"head_dim": 16, "moe_intermediate_size": 32},
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 128},
    "opt": {**SMALL, "num_key_value_heads": 4, "ffn_dim": 96}
    | {"word_embed_proj_dim": 64},
}


def write(folder, **config):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("kind", MODELS)
def test_configurations_are_built_whole(kind, tmp_path, ask):
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(kind, **MODELS[kind])
    config.save_pretrained(tmp_path)
    stored = read_model(str(tmp_path))
    assert stored.source == "config.json"
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    count = sum(parameter.numel() for parameter in model.parameters())
    plan = make_plan(stored, ask())
    assert plan.parameters == count
    assert plan.memory.weights == 2 * count
    # Keys and values of every layer, in 2 bytes.
    heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
    head = getattr(config, "head_dim", None)
    head = head or config.hidden_size // config.num_attention_heads
    assert plan.memory.kv_token == 2 * 2 * 2 * heads * head
    kinds = {part.kind for part in plan.steps[0].parts}
    assert ("experts" in kinds) == ("num_experts" in MODELS[kind])
    assert plan.steps[0].ceiling > 1


def test_files_and_configuration_agree(tmp_path):
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model("llama", **SMALL, dtype="bfloat16")
    config.save_pretrained(tmp_path / "config")
    built = read_modules(read_model(str(tmp_path / "config")), 2)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "whole")
    saved = read_model(str(tmp_path / "whole"))
    assert saved.source == "headers of its weight files"
    key = {module.name: module for module in read_modules(saved, 2)}
    assert {module.name: module for module in built} == key


def test_no_weights_are_read(tmp_path, monkeypatch, ask):
    import safetensors

    folder = write(tmp_path / "m", **SMALL, head_dim=16)
    tensors = {
        f"model.layers.0.self_attn.{x}_proj.weight": torch.zeros(32, 64) for x in "qkv"
    }
    save_file(tensors, folder / "model.safetensors")

    def read(self, name):
        raise AssertionError("a weight was read")

    monkeypatch.setattr(safetensors.safe_open, "get_tensor", read, raising=False)
    plan = make_plan(read_model(str(folder)), ask())
    # Floats of 32 bits are served as 16.
    assert plan.memory.weights == 3 * 2 * 32 * 64


@pytest.mark.parametrize("name", ["/no/such/folder", "./nothing"])
def test_paths_that_do_not_exist(name):
    with pytest.raises(ConfigError, match=r"is no folder\. Expected a folder with"):
        read_model(name)


def test_no_network(tmp_path):
    with pytest.raises(ConfigError, match=r"'nobody/nothing' cannot be found:.*folder"):
        read_model("nobody/nothing")


def test_bad_folders_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"config\.json cannot be read"):
        read_model(str(tmp_path))
    folder = write(tmp_path / "odd", model_type="nonsense")
    with pytest.raises(ConfigError, match="transformers cannot build it"):
        read_model(str(folder))
    (folder / "config.json").write_text("[]")
    with pytest.raises(ConfigError, match="holds no object"):
        read_model(str(folder))
    write(folder, **SMALL)
    (folder / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(PackedFormatError, match="cannot be read"):
        read_model(str(folder))


def test_quantized_models_need_their_headers(tmp_path):
    folder = write(tmp_path / "q", quantization_config={"quant_method": "gptq"})
    with pytest.raises(ConfigError, match="is quantized, and its weight files are not"):
        read_model(str(folder))


def test_code_of_a_model_is_not_run(tmp_path):
    (tmp_path / "evil.py").write_text("raise SystemExit('was run')")
    auto = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    folder = write(tmp_path, model_type="evil", auto_map=auto)
    with pytest.raises(ConfigError, match="transformers cannot build it"):
        read_model(str(folder))


def test_the_hub_gives_headers_alone(tmp_path, monkeypatch, ask):
    import huggingface_hub
    from huggingface_hub.utils import (
        SafetensorsFileMetadata,
        SafetensorsRepoMetadata,
        TensorInfo,
    )

    path = write(tmp_path / "cached", **SMALL, head_dim=16) / "config.json"
    info = TensorInfo(dtype="F8_E4M3", shape=[64, 96], data_offsets=(0, 6144))
    name = "model.layers.0.mlp.down_proj"
    file = SafetensorsFileMetadata(metadata={}, tensors={f"{name}.weight": info})
    found = SafetensorsRepoMetadata(
        metadata=None,
        sharded=False,
        weight_map={f"{name}.weight": "model.safetensors"},
        files_metadata={"model.safetensors": file},
    )
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *a: str(path))
    monkeypatch.setattr(huggingface_hub, "get_safetensors_metadata", lambda *a: found)
    stored = read_model("org/name")
    assert stored.source == "headers of its weight files on the Hub"
    plan = make_plan(stored, ask())
    assert plan.memory.weights == 64 * 96
    assert plan.parameters is None
    assert "1 layers (quantized)" in plan.verdict[0]


def test_encoders_are_refused(small, ask):
    with pytest.raises(ConfigError, match="has an encoder and a decoder"):
        make_plan(small(is_encoder_decoder=True), ask())


def test_weights_may_be_links_to_another_folder(tmp_path, ask):
    config = SMALL | {"head_dim": 16}
    folder, other = write(tmp_path / "m", **config), tmp_path / "elsewhere"
    other.mkdir()
    names = [f"model.layers.0.self_attn.{x}_proj.weight" for x in "qkv"]
    files = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    place = {name: files[name.endswith("v_proj.weight")] for name in names}
    for file in files:
        held = {x: torch.zeros(32, 64) for x in names if place[x] == file}
        save_file(held, other / file)
        (folder / file).symlink_to(other / file)
    whole = make_plan(read_model(str(folder)), ask())
    assert whole.memory.weights == 3 * 2 * 32 * 64
    index = {"metadata": {}, "weight_map": place}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert make_plan(read_model(str(folder)), ask()) == whole
