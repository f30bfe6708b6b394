"""Names: fused parts, and Hugging Face's names as vLLM's."""

from __future__ import annotations

import pytest
from vllm.model_executor.models.utils import WeightsMapper

from nmsparse.config import SparsityConfig
from vllm_sparse.names import to_vllm_names, with_parts

ATTENTION = "model.layers.0.self_attn"


@pytest.mark.parametrize(
    ("name", "packed", "expected"),
    [
        (f"{ATTENTION}.qkv_proj", {}, ["qkv_proj", "q_proj", "k_proj", "v_proj"]),
        (f"{ATTENTION}.o_proj", {}, ["o_proj"]),
        (
            f"{ATTENTION}.gate_up_proj",
            {},
            ["gate_up_proj", "gate_proj", "up_proj"],
        ),
        (f"{ATTENTION}.in_proj", {"in_proj": ["a", "b"]}, ["in_proj", "a", "b"]),
        (f"{ATTENTION}.qkv_proj", {"qkv_proj": ["W_pack"]}, ["qkv_proj", "W_pack"]),
        (f"{ATTENTION}.qkv_proj", {"qkv_proj": ["qkv_proj"]}, ["qkv_proj"]),
    ],
    ids=["qkv", "not fused", "gate_up", "of the model", "renamed", "fused on disk"],
)
def test_with_parts(name, packed, expected):
    assert with_parts(name, packed) == [f"{ATTENTION}.{last}" for last in expected]


def test_with_parts_at_the_top():
    assert with_parts("gate_up_proj", {}) == ["gate_up_proj", "gate_proj", "up_proj"]


def config(*targets, ignore=()):
    group = {"targets": list(targets), "activation": {"pattern": "8:16"}}
    data = {"groups": {"g": group}, "ignore": list(ignore), "phase": "both"}
    return SparsityConfig.parse(data, source="test")


def test_without_a_mapper_nothing_changes():
    before = config("Linear", f"{ATTENTION}.q_proj")
    assert to_vllm_names(before, None) is before


@pytest.mark.parametrize(
    ("mapper", "target", "expected"),
    [
        (
            {"orig_to_new_prefix": {"model.language_model.": "language_model.model."}},
            "model.language_model.layers.0.mlp.down_proj",
            "language_model.model.layers.0.mlp.down_proj",
        ),
        (
            {"orig_to_new_substr": {".attn.": ".self_attn."}},
            "model.layers.0.attn.o_proj",
            "model.layers.0.self_attn.o_proj",
        ),
        (
            {"orig_to_new_stacked": {".q_proj": (".qkv_proj", "q")}},
            f"{ATTENTION}.q_proj",
            f"{ATTENTION}.q_proj",
        ),
        ({"orig_to_new_prefix": {"mtp.": None}}, "mtp.fc.up_proj", "mtp.fc.up_proj"),
        ({"orig_to_new_prefix": {"model.": "x."}}, "Linear", "Linear"),
        ({"orig_to_new_prefix": {"re:": "x."}}, r"re:.*\.up_proj", r"re:.*\.up_proj"),
        ({"orig_to_new_prefix": {"model.": ""}}, "model.lm_head", "lm_head"),
    ],
    ids=["prefix", "inner", "fused", "dropped", "class", "expression", "to the top"],
)
def test_full_names_are_translated(mapper, target, expected):
    before = config("Linear", target, ignore=[target])
    after = to_vllm_names(before, WeightsMapper(**mapper))
    assert after.groups["g"].targets == ("Linear", expected)
    assert after.ignore == (expected,)
    assert after.groups["g"].activation == before.groups["g"].activation
    assert after.phase == before.phase
