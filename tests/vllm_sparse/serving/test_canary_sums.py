"""The canary's sums on their way from workers to metrics and ``GET /sparsity``."""

from __future__ import annotations

import pytest

from vllm_sparse.serving.aggregate import merge_ranks
from vllm_sparse.serving.endpoint import describe

UP, DOWN = "model.layers.0.mlp.up_proj", "model.layers.0.mlp.down_proj"


def canary(layers=(UP,), **kinds):
    """Return a worker's canary; a kind is tokens, error and distance."""
    names = ("tokens", "relative_error", "cosine_distance")
    sums = {kind: dict(zip(names, x, strict=True)) for kind, x in kinds.items()}
    return {"share": 0.1, "layers": list(layers), "kinds": sums}


def test_ranks_are_added(fakes):
    first = canary(up=(2, 0.5, 0.25))
    second = canary((UP, DOWN), up=(2, 1.5, 0.25), down=(1, 0.5, 0.125))
    ranks = [fakes.stats(canary=x) for x in (first, second)]
    assert merge_ranks(ranks)["canary"] == canary(
        (UP, DOWN), up=(4, 2.0, 0.5), down=(1, 0.5, 0.125)
    )
    assert first == canary(up=(2, 0.5, 0.25))
    assert merge_ranks([fakes.stats(), fakes.stats()])["canary"] is None


def test_the_report_has_the_sums(fakes):
    found = canary(up=(2, 0.5, 0.25))
    assert describe(fakes.stats(canary=found))["canary"] == found
    assert describe(fakes.stats())["canary"] is None


def test_counters_advance_to_the_sums(metrics, fakes):
    for sums in ((2, 0.5, 0.25), (2, 0.5, 0.25), (6, 1.75, 0.5)):
        metrics.objects.update(fakes.stats(canary=canary(up=sums)))
        found = [
            metrics.value(f"canary_{name}_total", kind="up")
            for name in ("tokens", "relative_error", "cosine_distance")
        ]
        assert found == pytest.approx(sums)


def test_without_a_canary_there_is_no_sample(metrics, fakes):
    metrics.objects.update(fakes.stats(fakes.layer()))
    assert metrics.value("canary_tokens_total", kind="up") is None
