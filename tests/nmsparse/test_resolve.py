"""Resolution: one rule a module, fused modules, ignore, and targets without a match."""

from __future__ import annotations

import pytest

from nmsparse.config import ConfigError, SparsityConfig
from nmsparse.resolve import Resolver

ATTENTION = "model.layers.0.self_attn"
QKV = [f"{ATTENTION}.{part}_proj" for part in ("qkv", "q", "k", "v")]
DOWN = "model.layers.0.mlp.down_proj"


def config(ignore=(), **groups):
    """Make a configuration from ``name=(pattern or None, *targets)``."""
    data = {
        name: {
            "targets": targets,
            "activation": None if pattern is None else {"pattern": pattern},
        }
        for name, (pattern, *targets) in groups.items()
    }
    return SparsityConfig.parse({"groups": data, "ignore": list(ignore)}, source="test")


def pattern_of(resolution):
    group = resolution.group
    return str(group.activation.pattern) if group and group.activation else None


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ({"a": ("2:4", "Linear"), "b": ("8:16", r"re:.*down_proj$")}, "8:16"),
        ({"a": ("2:4", r"re:.*down_proj$"), "b": ("8:16", "Linear")}, "2:4"),
        ({"a": ("2:4", r"re:.*"), "b": ("8:16", DOWN)}, "8:16"),
        ({"a": ("2:4", DOWN), "b": ("8:16", r"re:.*", DOWN)}, "2:4"),
        ({"a": ("2:4", "Linear"), "b": ("8:16", "RowParallelLinear")}, "2:4"),
        ({"a": ("2:4", r"re:.*up_proj$")}, None),
    ],
    ids=[
        "regex over class",
        "whatever the order",
        "name over regex",
        "first of equals",
        "first of classes",
        "no match",
    ],
)
def test_the_most_specific_target_decides(targets, expected):
    resolver = Resolver(config(**targets))
    found = resolver.resolve([DOWN], ("Linear", "RowParallelLinear"))
    assert pattern_of(found) == expected


def test_the_reason_names_the_target():
    resolver = Resolver(config(["lm_head"], a=("2:4", "Linear")))
    assert resolver.resolve([DOWN]).reason == "target Linear"
    assert resolver.resolve(["lm_head"]).reason == "ignored by lm_head"
    assert resolver.resolve([DOWN], ("Conv1D",)).reason == "no target matches"


@pytest.mark.parametrize(
    ("ignore", "target", "expected"),
    [
        ([r"re:.*down_proj$"], "Linear", None),
        ([r"re:.*down_proj$"], r"re:.*down_proj$", None),
        (["Linear"], r"re:.*down_proj$", None),
        ([r"re:.*down_proj$"], DOWN, "8:16"),
        (["Linear"], DOWN, "8:16"),
        ([DOWN], DOWN, None),
        ([DOWN], "Linear", None),
        ([r"re:.*up_proj$"], "Linear", "8:16"),
    ],
)
def test_ignore_wins_except_over_a_full_name(ignore, target, expected):
    resolver = Resolver(config(ignore, a=("8:16", target)))
    assert pattern_of(resolver.resolve([DOWN])) == expected


@pytest.mark.parametrize(
    "target",
    [
        "Linear",
        QKV[0],
        r"re:.*\.qkv_proj$",
        r"re:.*\.(q_proj|k_proj|v_proj)$",
        r"re:.*",
    ],
)
def test_fused_module_follows_its_name_or_all_its_parts(target):
    resolver = Resolver(config(a=("8:16", target)))
    assert pattern_of(resolver.resolve(QKV)) == "8:16"


def test_fused_module_with_parts_named_one_by_one():
    resolver = Resolver(config(a=("8:16", *QKV[1:])))
    assert pattern_of(resolver.resolve(QKV)) == "8:16"
    resolver.check_targets()


@pytest.mark.parametrize(
    "groups",
    [
        {"a": ("2:4", QKV[1]), "b": ("8:16", *QKV[2:])},
        {"a": ("2:4", QKV[1])},
        {"a": ("2:4", r"re:.*\.qkv_proj$"), "b": ("8:16", QKV[3])},
    ],
    ids=["two rules", "one part of three", "one part beside a pattern for the whole"],
)
def test_fused_module_whose_parts_disagree(groups):
    with pytest.raises(
        ConfigError,
        match=rf"{QKV[0]}: its parts get different sparsity \({QKV[1]}: .*"
        r"expected one rule: target all parts alike, or target .*qkv_proj by name",
    ):
        Resolver(config(**groups)).resolve(QKV)


def test_full_name_of_the_fused_module_settles_a_disagreement():
    resolver = Resolver(config(a=("2:4", QKV[1]), b=("8:16", QKV[0])))
    assert pattern_of(resolver.resolve(QKV)) == "8:16"


@pytest.mark.parametrize(
    "ignore",
    [
        [QKV[0]],
        [r"re:.*\.qkv_proj$"],
        [r"re:.*\.qkv_proj$", QKV[1]],
        [r"re:.*self_attn\."],
        ["Linear"],
        QKV[1:],
    ],
    ids=["name", "expression", "and a part", "both", "class", "parts"],
)
def test_ignored_fused_module(ignore):
    resolver = Resolver(config(ignore, a=("8:16", r"re:.*_proj$")))
    found = resolver.resolve(QKV)
    assert found.group is None
    assert found.reason.startswith("ignored by ")


def test_parts_named_in_full_outrank_a_broad_ignore():
    resolver = Resolver(config([r"re:.*\.qkv_proj$"], a=("8:16", *QKV[1:])))
    assert pattern_of(resolver.resolve(QKV)) == "8:16"


def records(**weights):
    """Return groups that record weights: ``name=(pattern, sparsity, *targets)``."""
    return {
        name: {"targets": targets, "weight": {"pattern": pattern, "sparsity": share}}
        for name, (pattern, share, *targets) in weights.items()
    }


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        (records(a=("2:4", 0.5, *QKV[1:])), "2:4"),
        (records(a=("2:4", 0.5, QKV[1]), b=("2:4", 0.4999, *QKV[2:])), "2:4"),
        (records(a=("70%", 0.7, QKV[1]), b=("71%", 0.71, *QKV[2:])), None),
        (records(a=("2:4", 0.5, QKV[1])), None),
    ],
    ids=["same", "another share", "another pattern", "one part of three"],
)
def test_records_of_weights_may_differ_between_the_parts(groups, expected):
    config = SparsityConfig.parse({"groups": groups}, source="test")
    found = Resolver(config).resolve(QKV).group
    assert found is None or found.activation is None
    weight = found.weight if found else None
    assert (str(weight.pattern) if weight else None) == expected


def test_records_of_weights_may_name_what_the_engine_does_not_build():
    groups = records(a=("50%", 0.5, DOWN, "model.layers.0.mlp.experts.3.up_proj"))
    resolver = Resolver(SparsityConfig.parse({"groups": groups}, source="test"))
    resolver.resolve([DOWN])
    resolver.check_targets()


def test_ignored_part_disagrees_with_the_others():
    resolver = Resolver(config([QKV[2]], a=("8:16", r"re:.*_proj$")))
    with pytest.raises(ConfigError, match=rf"{QKV[2]}: ignored by {QKV[2]}"):
        resolver.resolve(QKV)


def test_unknown_target_names_the_closest_layer():
    typo = DOWN.replace("down", "dwon")
    resolver = Resolver(config(a=("8:16", "Linear", typo)))
    resolver.resolve([DOWN])
    with pytest.raises(
        ConfigError,
        match=rf"groups\.a: unknown target '{typo}': it matches none of the 1 linear "
        rf"layers of this model\. Expected a layer name such as {DOWN}, a class name",
    ):
        resolver.check_targets()


def test_unknown_target_of_a_model_without_layers():
    with pytest.raises(ConfigError, match="none of the 0 linear layers"):
        Resolver(config(a=("8:16", "Linear"))).check_targets()


def test_a_target_that_loses_everywhere_is_still_known():
    resolver = Resolver(config(a=("2:4", "Linear"), b=("8:16", DOWN)))
    resolver.resolve([DOWN])
    resolver.check_targets()


NEVER = ["lm_head", "model.layers.0.mlp.experts.3.up_proj", "model.encoder.0.fc1"]


@pytest.mark.parametrize("name", NEVER)
def test_heads_and_experts_are_meant_only_if_named_in_full(name):
    broad = Resolver(config(a=("8:16", "Linear", r"re:.*")))
    found = broad.resolve([name])
    assert found.group is None
    assert found.reason.startswith("ignored by re:")
    assert pattern_of(Resolver(config(a=("8:16", name))).resolve([name])) == "8:16"
    assert Resolver(config([name], a=("8:16", name))).resolve([name]).group is None


def test_ignored_layers_must_exist():
    typo = DOWN.replace("down", "dwon")
    resolver = Resolver(config([typo], a=("8:16", "Linear")))
    resolver.resolve([DOWN])
    with pytest.raises(
        ConfigError, match=rf"ignore: unknown target '{typo}': .*such as {DOWN}"
    ):
        resolver.check_targets()


@pytest.mark.parametrize(
    "ignore",
    [[DOWN], QKV[1:], ["Linear"], ["NoSuchClass"], [r"re:.*no\.such"], ["lm_head"]],
    ids=["name", "parts", "class", "unknown class", "expression", "top"],
)
def test_other_ignored_targets_need_no_match(ignore):
    resolver = Resolver(config(ignore, a=("8:16", r"re:.*")))
    resolver.resolve([DOWN])
    resolver.resolve(QKV)
    resolver.check_targets()


@pytest.mark.parametrize(
    "name", ["model.embed_tokens", "model.layers.0.mlp.experts.0.up_proj"]
)
def test_ignoring_what_is_never_sparsified_is_no_mistake(name):
    # Checkpoints list modules that vLLM does not build as linear layers.
    resolver = Resolver(config([name], a=("8:16", "Linear")))
    resolver.resolve([DOWN])
    resolver.check_targets()


def test_default_targets_need_no_match():
    resolver = Resolver(SparsityConfig.uniform("8:16"))
    assert pattern_of(resolver.resolve([DOWN])) == "8:16"
    resolver.check_targets()
