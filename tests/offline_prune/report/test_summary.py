"""A run in words."""

from __future__ import annotations

import pytest
from support.run_results import layer, results_of, run

from offline_prune.report.summary import (
    by_kind,
    method_parts,
    pattern_slug,
    pattern_text,
)


def layers_of(*patterns):
    found = []
    for block, pattern in enumerate(patterns):
        changes = {} if pattern is None else {"pattern": pattern}
        found.append(layer(f"model.layers.{block}.mlp.up_proj", block, 512, **changes))
    return found


@pytest.mark.parametrize(
    ("patterns", "text", "slug"),
    [
        (("2:4", "2:4"), "2:4", "2of4"),
        (("6:16", "10:16", "8:16"), "6:16 to 10:16", "mixed-of16"),
        ((None, None), "unstructured", "sparse50"),
        (("2:4", None), "2:4 and unstructured", "sparse50"),
        (("2:4", "8:16"), "2:4 and 8:16", "sparse50"),
    ],
)
def test_pattern(patterns, text, slug):
    layers = layers_of(*patterns)
    assert pattern_text(layers) == text
    assert pattern_slug(results_of(layers)) == slug


def test_kinds_are_weighted_by_size_and_keep_the_models_order():
    layers = [
        layer("model.layers.0.mlp.up_proj", 0, 8, shape=(4, 4), relative_error=0.2),
        layer("model.layers.0.self_attn.q_proj", 0, 1, shape=(2, 2)),
        layer("model.layers.1.mlp.up_proj", 1, 64, shape=(8, 8), relative_error=0.4),
        layer("model.layers.1.self_attn.q_proj", 1, 3, shape=(2, 2)),
    ]
    up, q = by_kind(layers)
    assert (up.kind, up.layers, q.kind) == ("up_proj", 2, "q_proj")
    assert up.sparsity == pytest.approx(72 / 80)
    assert (up.lowest, up.highest) == (0.5, 1.0)
    assert up.relative_error == pytest.approx(0.3)
    assert (q.sparsity, q.relative_error) == (0.5, None)


def test_method_parts_leave_out_what_was_not_used():
    config = {
        "scorer": "cvr",
        "scorer_options": {"alpha": 0.5},
        "allocator": "uniform",
        "allocator_options": {},
        "correction": None,
        "channels": "ogas",
        "channel_options": {"amplitude": 0.2},
        "compensation": ["least_squares", "mean_shift"],
        "compensation_options": {"least_squares": {"lower": 0.8}},
        "permutation": False,
    }
    assert method_parts(config) == {
        "scorer": "cvr (alpha=0.5)",
        "allocator": "uniform",
        "channels": "ogas (amplitude=0.2)",
        "compensation": "least_squares (lower=0.8), then mean_shift",
    }
    assert method_parts({}) == {}
    assert "permutation" in method_parts({"permutation": True})


def test_a_real_run_has_seven_kinds():
    assert len(by_kind(run(3).layers)) == 7
