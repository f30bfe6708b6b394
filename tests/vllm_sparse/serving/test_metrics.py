"""Prometheus metrics: counters only grow, and labels say which path ran."""

from __future__ import annotations

import re

import pytest
from prometheus_client import REGISTRY, generate_latest

from vllm_sparse.serving.catalog import CATALOG, LABELS
from vllm_sparse.timing import KernelTimer
from vllm_sparse.work import REASONS

WAYS = ("stock", "stream", "gather", "masked+stock")
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
        for thing in other.objects.values():
            REGISTRY.unregister(thing)


def test_build_info(metrics, fakes):
    metrics.objects.set_build_info("0.1.0", "0.32.0", fakes.stats(phase="both"))
    labels = {
        "version": "0.1.0",
        "vllm_version": "0.32.0",
        "phase": "both",
        "fingerprint": "0123456789abcdef",
        "backend": "dense",
        "pattern": "dense",
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


def test_bytes_and_fallbacks_are_summed_over_layers(metrics, fakes):
    layers = [
        fakes.layer(DOWN, bytes_read=60, bytes_skipped=40, fallbacks={"dtype": 2}),
        fakes.layer(
            "model.layers.1.mlp.down_proj", bytes_read=5, fallbacks={"dtype": 1}
        ),
        fakes.dense(bytes_read=None),
    ]
    metrics.objects.update(fakes.stats(*layers))
    assert metrics.value("weight_bytes_read_total", kind="down") == 65
    assert metrics.value("weight_bytes_skipped_total", kind="down") == 40
    assert metrics.value("weight_bytes_read_total", kind="lm_head") is None
    labels = {"kind": "down", "reason": "dtype"}
    assert metrics.value("fallback_calls_total", **labels) == 3


def test_a_restart_that_has_overtaken_is_noticed(metrics, fakes):
    """What an engine has counted since it started says nothing about the one before."""
    for started, elements in (("first", 100), ("second", 130), ("second", 140)):
        stats = fakes.stats(fakes.layer(elements=elements), started=started)
        metrics.objects.update(stats)
    assert metrics.value("elements_total", kind="up") == 240


def test_data_parallel_engines_count_by_themselves(metrics, fakes):
    one, two = (
        fakes.stats(fakes.layer(elements=n, extra_bytes=10), started=str(n))
        for n in (100, 40)
    )
    metrics.objects.update(one, two)
    two = fakes.stats(fakes.layer(elements=30, extra_bytes=10), started="again")
    metrics.objects.update(one, two)
    assert metrics.value("elements_total", kind="up") == 170
    assert metrics.value("extra_weight_bytes", kind="up") == 20
    labels = {"kind": "up", "pattern": "8:16", "backend": "reference"}
    assert metrics.value("layers", **labels) == 1, "engines run the same model"


def test_weight_sparsity_is_the_mean_over_weights(metrics, fakes):
    layers = [
        fakes.layer(DOWN, weight_sparsity=0.5),
        fakes.layer("b.down_proj", in_features=192, weight_sparsity=0.9),
        fakes.layer(weight_sparsity=None),
    ]
    metrics.objects.update(fakes.stats(*layers))
    found = metrics.value("weight_sparsity_ratio", kind="down")
    assert found == pytest.approx(0.8)
    assert metrics.value("weight_sparsity_ratio", kind="up") is None


def test_the_age_of_what_is_shown(metrics, fakes, monkeypatch):
    monkeypatch.setattr("time.time", lambda: 1234.5)
    metrics.objects.update(fakes.stats(fakes.layer()))
    assert metrics.value("last_poll_timestamp_seconds") == 1234.5


def test_samples_of_times_keep_bucket_number_and_sum(metrics, fakes):
    timer = KernelTimer()

    def poll(*samples):
        for nanoseconds in samples:
            timer.add("gather", nanoseconds)
        metrics.objects.update(fakes.stats(fakes.layer(), timings=timer.timings))

    labels = {"op": "gather", "backend": "cpu"}
    assert metrics.value("kernel_seconds_count", **labels) is None
    poll(20_000, 30_000, 45_000)
    poll()
    poll(60_000, 2_000_000_000)
    assert metrics.value("kernel_seconds_count", **labels) == 5
    total = metrics.value("kernel_seconds_sum", **labels)
    assert total == pytest.approx(2.000155)
    for bound, number in (("2.5e-05", 1), ("5e-05", 3), ("0.0001", 4), ("+Inf", 5)):
        found = metrics.value("kernel_seconds_bucket", le=bound, **labels)
        assert found == number, bound


CALIBRATED = {
    "groups": {
        "a": {
            "targets": ["Linear"],
            "activation": {"pattern": "50%", "mitigation": ["var"]},
        }
    },
    "provenance": {
        "calibration": "calibrate",
        "online_allocator": "final",
        "text_sha256": "0123456789abcdef",
    },
}


def test_where_a_calibrated_sidecar_comes_from(metrics, fakes):
    stats = fakes.stats(fakes.layer(), config=CALIBRATED)
    metrics.objects.set_build_info("1", "2", stats)
    labels = {
        "method": "magnitude+var, final",
        "data": "0123456789ab",
        "created": "",
        "budget": "0.50",
    }
    assert metrics.value("calibration_info", **labels) == 1


def test_without_a_calibration_there_is_no_provenance(metrics, fakes):
    metrics.objects.set_build_info("1", "2", fakes.stats(fakes.layer()))
    assert list(metrics.objects.objects["calibration_info"].collect()[0].samples) == []


def test_many_patterns_are_not_listed(metrics, fakes):
    layers = [fakes.layer(pattern=f"{n}:16", backend="cpu") for n in range(1, 9)]
    metrics.objects.set_build_info("1", "2", fakes.stats(*layers))
    (sample,) = metrics.objects.objects["build_info"].collect()[0].samples
    assert sample.labels["pattern"] == "several"
    assert sample.labels["backend"] == "cpu"


def test_labels_do_not_grow_with_the_model(metrics, fakes):
    """As many series for 200 blocks as for one; no name of a layer in any label."""

    def series(blocks):
        layers = [
            fakes.layer(
                f"model.layers.{i}.{name}",
                calls=dict.fromkeys(WAYS, 1 + i),
                fallbacks=dict.fromkeys(REASONS, 1 + i),
                weight_sparsity=0.5,
            )
            for i in range(blocks)
            for name in ("mlp.up_proj", "mlp.down_proj")
        ]
        metrics.objects.update(fakes.stats(*layers))
        text = generate_latest(REGISTRY).decode()
        return [
            line.rpartition(" ")[0]
            for line in text.splitlines()
            if line.startswith(metrics.prefix)
        ]

    one, many = series(1), series(200)
    assert one == many
    assert not any(re.search(r"layers\.|_proj", line) for line in many)
    for metric in CATALOG:
        assert set(metric.labels) <= set(LABELS), metric.name
