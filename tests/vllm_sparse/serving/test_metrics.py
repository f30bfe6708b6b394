"""Prometheus metrics: counters only grow, and labels say which path ran."""

from __future__ import annotations

import pytest
from prometheus_client import REGISTRY, generate_latest

DOWN = "model.layers.0.mlp.down_proj"


def test_layers_by_kind_pattern_and_backend(metrics, fakes):
    layers = [fakes.layer(f"model.layers.{i}.mlp.up_proj") for i in range(3)]
    metrics.objects.update(fakes.stats(*layers, fakes.dense(), fakes.layer(DOWN)))

    def count(kind, pattern, backend):
        return metrics.value("layers", kind=kind, pattern=pattern, backend=backend)

    assert count("up", "8:16", "reference") == 3
    assert count("down", "8:16", "reference") == 1
    assert count("lm_head", "dense", "dense") == 1
    assert count("up", "dense", "dense") is None


def test_elements_and_zeros_are_summed_over_layers(metrics, fakes):
    layers = [
        fakes.layer("model.layers.0.mlp.up_proj", elements=100, nonzeros=40),
        fakes.layer("model.layers.1.mlp.up_proj", elements=100, nonzeros=50),
        fakes.layer(DOWN, elements=10, nonzeros=5),
    ]
    metrics.objects.update(fakes.stats(*layers, fakes.dense()))
    assert metrics.value("elements_total", kind="up") == 200
    assert metrics.value("zero_elements_total", kind="up") == 110
    assert metrics.value("elements_total", kind="down") == 10
    assert metrics.value("elements_total", kind="lm_head") is None


@pytest.mark.parametrize(
    ("phase", "sparse"),
    [
        ("decode", {"decode"}),
        ("prefill", {"prefill"}),
        ("both", {"prefill", "decode"}),
    ],
)
def test_linear_tokens_say_which_path_a_phase_took(metrics, fakes, phase, sparse):
    layers = [fakes.layer(f"model.layers.{i}.mlp.up_proj") for i in range(2)]
    stats = fakes.stats(*layers, fakes.dense(), phase=phase, prefill=30, decode=10)
    metrics.objects.update(stats)

    def tokens(kind, backend, phase):
        return metrics.value(
            "linear_tokens_total", kind=kind, backend=backend, phase=phase
        )

    for token_phase, number in (("prefill", 30), ("decode", 10)):
        path, other = ("reference", "dense")[:: 1 if token_phase in sparse else -1]
        assert tokens("up", path, token_phase) == 2 * number
        assert tokens("up", other, token_phase) is None
        assert tokens("lm_head", "dense", token_phase) == number


def test_counters_advance_by_the_difference(metrics, fakes):
    for elements, decode in ((100, 10), (100, 10), (250, 25)):
        layer = fakes.layer(elements=elements)
        metrics.objects.update(fakes.stats(layer, decode=decode))
        assert metrics.value("elements_total", kind="up") == elements
        assert metrics.value("zero_elements_total", kind="up") == elements // 2
        labels = {"kind": "up", "backend": "reference", "phase": "decode"}
        assert metrics.value("linear_tokens_total", **labels) == decode


def test_counters_do_not_go_back_when_the_engine_restarts(metrics, fakes):
    seen = []
    for elements in (100, 300, 40, 90):
        metrics.objects.update(fakes.stats(fakes.layer(elements=elements)))
        seen.append(metrics.value("elements_total", kind="up"))
    assert seen == [100, 300, 340, 390]


def test_two_sets_of_metrics_do_not_share_what_they_saw(metrics, fakes):
    from vllm_sparse.serving.metrics import SparsityMetrics

    other = SparsityMetrics(f"{metrics.prefix}_other")
    try:
        other.update(fakes.stats(fakes.layer(elements=100)))
        metrics.objects.update(fakes.stats(fakes.layer(elements=30)))
        assert metrics.value("elements_total", kind="up") == 30
    finally:
        for thing in vars(other).values():
            if hasattr(thing, "collect"):
                REGISTRY.unregister(thing)


def test_build_info(metrics, fakes):
    metrics.objects.set_build_info("0.1.0", "0.32.0", fakes.stats(phase="both"))
    labels = {
        "version": "0.1.0",
        "vllm_version": "0.32.0",
        "phase": "both",
        "fingerprint": "0123456789abcdef",
    }
    assert metrics.value("build_info", **labels) == 1


def test_exposition_has_types_and_help(metrics, fakes):
    metrics.objects.update(fakes.stats(fakes.layer()))
    text = generate_latest(REGISTRY).decode()
    for name, kind in (
        ("build_info", "gauge"),
        ("layers", "gauge"),
        ("linear_tokens_total", "counter"),
        ("elements_total", "counter"),
        ("zero_elements_total", "counter"),
        ("poll_errors_total", "counter"),
    ):
        assert f"# TYPE {metrics.prefix}_{name} {kind}\n" in text
        assert f"# HELP {metrics.prefix}_{name} " in text


def test_poll_errors_start_at_zero(metrics):
    # Present from the start, so that an alert on its rate works.
    assert metrics.value("poll_errors_total") == 0


def test_calls_by_way_and_bytes_are_summed_over_layers(metrics, fakes):
    layers = [
        fakes.layer(DOWN, calls={"gather": 3, "masked+stock": 1}, extra_bytes=100),
        fakes.layer("model.layers.1.mlp.down_proj", calls={"gather": 2}),
    ]
    metrics.objects.update(fakes.stats(*layers, fakes.dense()))
    way = {"kind": "down", "way": "gather"}
    assert metrics.value("linear_calls_total", **way) == 5
    assert metrics.value("linear_calls_total", **way | {"way": "masked+stock"}) == 1
    assert metrics.value("extra_weight_bytes", kind="down") == 100
    assert metrics.value("extra_weight_bytes", kind="lm_head") == 0
    layers[0]["calls"]["gather"] = 10
    metrics.objects.update(fakes.stats(*layers))
    assert metrics.value("linear_calls_total", **way) == 12


def test_first_tokens_that_stay_dense(metrics, fakes):
    stats = fakes.stats(fakes.layer(), prefill=30, phase="both", dense_first=4)
    metrics.objects.update(stats)
    labels = {"kind": "up", "phase": "prefill"}
    assert metrics.value("linear_tokens_total", backend="reference", **labels) == 26
    assert metrics.value("linear_tokens_total", backend="dense", **labels) == 4
    labels["phase"] = "decode"
    assert metrics.value("linear_tokens_total", backend="reference", **labels) == 10
    assert metrics.value("linear_tokens_total", backend="dense", **labels) is None
