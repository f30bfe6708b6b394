"""Checks against the model's layers, before the engine starts."""

from __future__ import annotations

import argparse

import pytest
import torch
from support import tiny
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config

from nmsparse.config import ConfigError, SparsityConfig
from vllm_sparse.cli.preflight import (
    check_model,
    check_model_exists,
    linear_shapes,
)

ATTENTION = "model.layers.0.self_attn"
MLP = "model.layers.0.mlp"


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return tiny.build("llama", tmp_path_factory.mktemp("llama"), num_hidden_layers=1)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpt2")
    GPT2Config(n_embd=96, n_layer=1, n_head=2, vocab_size=64).save_pretrained(folder)
    return folder


def shapes_of(folder):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    return {shape.names[0]: shape for shape in linear_shapes(model)}


def check(folder, config="8:16", tp=1, **changes):
    if isinstance(config, str):
        config = SparsityConfig.uniform(config)
    args = argparse.Namespace(
        model=str(folder),
        hf_config_path=None,
        revision=None,
        trust_remote_code=False,
        code_revision=None,
        hf_token=None,
        hf_overrides={},
        config_format="auto",
        tensor_parallel_size=tp,
    )
    vars(args).update(changes)
    check_model(config, args)


def rules(*targets, pattern="8:16", ignore=()):
    group = {"targets": list(targets), "activation": {"pattern": pattern}}
    data = {"groups": {"g": group}, "ignore": list(ignore)}
    return SparsityConfig.parse(data, source="test")


def test_llama_is_fused_as_in_vllm(llama):
    shapes = shapes_of(llama)
    assert set(shapes) == {
        f"{ATTENTION}.qkv_proj",
        f"{ATTENTION}.o_proj",
        f"{MLP}.gate_up_proj",
        f"{MLP}.down_proj",
    }
    assert shapes[f"{ATTENTION}.qkv_proj"].names == tuple(
        f"{ATTENTION}.{part}_proj" for part in ("qkv", "q", "k", "v")
    )
    assert shapes[f"{MLP}.gate_up_proj"].names == tuple(
        f"{MLP}.{part}_proj" for part in ("gate_up", "gate", "up")
    )
    sizes = {name: shape.in_features for name, shape in shapes.items()}
    assert sizes.pop(f"{MLP}.down_proj") == 256
    assert set(sizes.values()) == {128}


def test_llama_row_parallel_layers(llama):
    row = {name for name, shape in shapes_of(llama).items() if shape.row_parallel}
    assert row == {f"{ATTENTION}.o_proj", f"{MLP}.down_proj"}


def test_gpt2_conv1d_is_read_the_right_way_round(gpt2):
    shapes = shapes_of(gpt2)
    block = "transformer.h.0"
    assert {name: shape.in_features for name, shape in shapes.items()} == {
        f"{block}.attn.c_attn": 96,
        f"{block}.attn.c_proj": 96,
        f"{block}.mlp.c_fc": 96,
        f"{block}.mlp.c_proj": 384,
    }
    assert all(len(shape.names) == 1 for shape in shapes.values())


@pytest.mark.parametrize("pattern", ["8:16", "2:4", "32:64", "64:128", "50%", "1:1"])
def test_patterns_that_fit(llama, pattern):
    check(llama, pattern)


def test_pattern_that_does_not_fit_names_the_layer(llama):
    with pytest.raises(
        ConfigError,
        match=rf"{ATTENTION}\.qkv_proj: in_features 128 is not a multiple of m=17 "
        r"\(pattern 8:17\)\. Choose an M that divides 128, or add the layer to "
        r"`ignore` in a --sparsity-config file",
    ):
        check(llama, "8:17")


def test_gpt2_pattern_that_does_not_fit(gpt2):
    check(gpt2, "16:32")
    with pytest.raises(
        ConfigError, match=r"attn\.c_attn: in_features 96 is not a mult"
    ):
        check(gpt2, "32:64")


@pytest.mark.parametrize(
    ("pattern", "tp", "message"),
    [
        (
            "64:128",
            2,
            r"o_proj: in_features 64 \(a shard of 128"
            r" over tp=2\) is not a multiple of m=128 .*"
            r"Choose an M that divides 64, another tensor-parallel size, or add",
        ),
        (
            "50%",
            2,
            r"o_proj: unstructured sparsity 50% needs whole rows, but in_features is "
            r"64 \(a shard of 128"
            r" over tp=2\)\. Choose an N:M pattern, another tensor-parallel",
        ),
    ],
    ids=["N:M", "unstructured"],
)
def test_tensor_parallel_shards(llama, pattern, tp, message):
    check(llama, pattern, tp=1)
    with pytest.raises(ConfigError, match=rf"{ATTENTION}\.{message}"):
        check(llama, pattern, tp=tp)


def test_tensor_parallelism_does_not_split_k_of_column_parallel_layers(llama):
    config = rules(r"re:.*\.(qkv_proj|gate_up_proj)$", pattern="64:128")
    check(llama, config, tp=2)


def test_tensor_parallel_sizes_vllm_refuses_are_left_to_vllm(llama):
    check(llama, "8:16", tp=3)


def test_ignored_layers_need_not_fit(llama):
    with pytest.raises(ConfigError, match=r"reaches none of the 4 linear layers"):
        check(llama, rules("Linear", pattern="8:17", ignore=["Linear"]))
    config = rules("Linear", pattern="128:256", ignore=[r"re:(?!.*down_proj)"])
    check(llama, config)
    with pytest.raises(ConfigError, match=rf"{MLP}\.down_proj: in_features 128 \(a"):
        check(llama, config, tp=2)


@pytest.mark.parametrize(
    "target",
    [
        "Linear",
        "LinearBase",
        "QKVParallelLinear",
        "MergedColumnParallelLinear",
        "RowParallelLinear",
        "ColumnParallelLinear",
        f"{MLP}.down_proj",
        f"{ATTENTION}.qkv_proj",
        r"re:.*\.q_proj|.*\.k_proj|.*\.v_proj",
    ],
)
def test_known_targets(llama, target):
    check(llama, rules(target))
    # ... and the target really reaches a layer.
    with pytest.raises(ConfigError, match="is not a multiple of m=17"):
        check(llama, rules(target, pattern="8:17"))


def test_unknown_target(llama):
    target = f"{MLP}.dwon_proj"
    with pytest.raises(
        ConfigError,
        match=rf"groups\.g: unknown target '{target}': .*such as {MLP}\.down_proj",
    ):
        check(llama, rules("Linear", target))


def test_parts_of_a_fused_layer_must_agree(llama):
    with pytest.raises(
        ConfigError, match=rf"{ATTENTION}\.qkv_proj: its parts get different sparsity"
    ):
        check(llama, rules(f"{ATTENTION}.q_proj"))


def test_weight_only_groups_are_not_checked(llama):
    data = {"groups": {"g": {"targets": ["Linear"], "weight": {"pattern": "8:17"}}}}
    check(llama, SparsityConfig.parse(data, source="test"))


def test_tensor_parallel_size_may_be_unset(llama):
    check(llama, "64:128", tp=None)


def test_another_configuration_folder(llama, tmp_path):
    with pytest.raises(ConfigError, match="m=17"):
        check(tmp_path, "8:17", hf_config_path=str(llama))


def test_model_that_cannot_be_found():
    with pytest.raises(
        ConfigError,
        match=r"Model 'nobody/nothing' cannot be found: .*Expected a Hugging Face id",
    ):
        check("nobody/nothing")


@pytest.mark.parametrize("model", ["s3://bucket/x", "x.gguf", "org/name:Q4_K_M"])
def test_models_only_vllm_can_read(capsys, model):
    check(model, "8:17")
    assert "note: layers are checked by the engine" in capsys.readouterr().err


@pytest.mark.parametrize("content", ['{"model_type": "of_tomorrow"}', "{}"])
def test_architecture_transformers_does_not_know(tmp_path, capsys, content):
    (tmp_path / "config.json").write_text(content)
    check(tmp_path, "8:17")
    error = capsys.readouterr().err
    assert "layers are checked by the engine, because transformers cannot read" in error


@pytest.mark.parametrize("model", ["/no/such", "./no-such", "../no-such", "~/no-such"])
def test_paths_must_exist(model):
    with pytest.raises(
        ConfigError,
        match=rf"Model '{model}' does not exist\. Expected .*an existing fol",
    ):
        check_model_exists(model)


def test_what_is_no_path_is_left_to_the_hub(tmp_path):
    for model in ("org/name", "gpt2", str(tmp_path), "s3://bucket/model"):
        check_model_exists(model)


def test_the_head_is_no_target(llama):
    """In vLLM it is not one of the linear classes, so naming it would do nothing."""
    with pytest.raises(ConfigError, match=r"unknown target 'lm_head'"):
        check(llama, rules("lm_head"))
