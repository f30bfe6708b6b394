"""Targets: syntax, specificity, and which linears the defaults cover."""

from __future__ import annotations

import pytest

from nmsparse.targets import (
    DEFAULT_TARGETS,
    NEVER_TARGETS,
    Specificity,
    best_match,
    check_target,
    match,
)

DOWN = "model.layers.0.mlp.down_proj"


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (DOWN, Specificity.NAME),
        (r"re:.*down_proj$", Specificity.REGEX),
        (r"re:down_proj", Specificity.NONE),
        (r"re:model\.layers\.0", Specificity.REGEX),
        ("Linear", Specificity.CLASS),
        ("RowParallelLinear", Specificity.CLASS),
        ("RowParallel", Specificity.NONE),
        ("model.layers.0.mlp", Specificity.NONE),
        ("down_proj", Specificity.NONE),
    ],
)
def test_match(target, expected):
    assert match(target, DOWN, ("Linear", "RowParallelLinear")) is expected


def test_specificity_order():
    assert Specificity.NAME > Specificity.REGEX > Specificity.CLASS > Specificity.NONE


def test_best_match_takes_the_most_specific_then_the_first():
    targets = ["Linear", "re:.*proj", "re:.*down_proj", DOWN]
    assert best_match(targets, DOWN, ("Linear",)) == (Specificity.NAME, DOWN)
    assert best_match(targets[:3], DOWN, ("Linear",)) == (
        Specificity.REGEX,
        "re:.*proj",
    )
    assert best_match(targets[:1], DOWN, ("Linear",)) == (Specificity.CLASS, "Linear")
    assert best_match(targets, "lm_head", ("Head",)) == (Specificity.NONE, "")


@pytest.mark.parametrize("target", ["", "re:"])
def test_empty_target(target):
    with pytest.raises(ValueError, match=r"target is empty\. Expected a module name"):
        check_target(target)


def test_broken_expression_is_named():
    with pytest.raises(
        ValueError, match=r"Target 're:\(' is no valid regular expression .*Escape"
    ):
        check_target("re:(")


def test_valid_targets_are_returned_unchanged():
    for target in ("Linear", DOWN, *DEFAULT_TARGETS, *NEVER_TARGETS):
        assert check_target(target) == target


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.q_proj",
        "model.layers.31.self_attn.qkv_proj",
        "model.layers.0.mlp.gate_up_proj",
        "model.layers.0.mlp.down_proj",
        "model.decoder.layers.0.fc1",
        "transformer.h.0.attn.c_attn",
        "transformer.h.0.mlp.c_proj",
        "gpt_neox.layers.0.attention.query_key_value",
        "gpt_neox.layers.0.mlp.dense_4h_to_h",
        "transformer.h.0.mlp.fc_in",
        "transformer.blocks.0.attn.Wqkv",
    ],
)
def test_defaults_cover_decoder_linears(name):
    assert best_match(DEFAULT_TARGETS, name, ())[0] is Specificity.REGEX
    assert best_match(NEVER_TARGETS, name, ())[0] is Specificity.NONE


@pytest.mark.parametrize(
    "name",
    [
        "lm_head",
        "model.language_model.lm_head",
        "model.embed_tokens",
        "model.layers.0.mlp.gate",
        "model.layers.0.mlp.router",
        "model.layers.0.mlp.shared_expert_gate",
        "model.layers.0.mlp.experts",
        "model.layers.0.mlp.experts.7.down_proj",
        "model.layers.0.self_attn.kv_b_proj",
        "vision_tower.encoder.layers.0.self_attn.q_proj",
        "model.visual.blocks.0.mlp.fc1",
        "audio_tower.layers.0.fc2",
        "multi_modal_projector.linear_1",
        "model.encoder.layers.0.self_attn.q_proj",
        "whisper_encoder.whisper_encoder.layers.0.self_attn.qkv_proj",
        "apm.layers.0.self_attn.out_proj",
        "resampler.attn.out_proj",
        "model.vit.blocks.0.mlp.fc1",
        "img_processor.layers.0.fc2",
        "siglip_model.layers.0.fc1",
        "model.qformer.layers.0.attention.dense",
    ],
)
def test_never_targets_cover_what_must_stay_dense(name):
    assert best_match(NEVER_TARGETS, name, ())[0] is Specificity.REGEX


def test_never_targets_do_not_cover_look_alikes():
    for name in ("model.layers.0.mlp.gate_proj", "model.layers.0.self_attn.kv_a_proj"):
        assert best_match(NEVER_TARGETS, name, ())[0] is Specificity.NONE
