"""Prometheus metrics ``vllm_sparse_*``, beside vLLM's own on ``/metrics``.

Ordinary objects in the default registry, so they also work in the multi-process mode
that vLLM turns on for more than one API server. The ``vllm:`` prefix is left to vLLM,
which removes collectors with that prefix. Ratios are for PromQL: we count.
"""

from __future__ import annotations

import time
from collections import Counter as Tally
from collections import defaultdict
from collections.abc import Iterable

from prometheus_client import Counter, Gauge, Histogram

from vllm_sparse.serving.calibration import calibration_labels
from vllm_sparse.serving.catalog import CATALOG, NAMESPACE, Metric
from vllm_sparse.state import LayerReport
from vllm_sparse.stats import RankStats
from vllm_sparse.timing import BUCKETS

# More patterns than these are not listed in a label.
_LISTED = 3


class SparsityMetrics:
    """All metric objects, and the last totals seen, from which counters advance.

    Args:
        namespace: metric prefix; tests use another to register a second time.

    Attributes:
        objects: the metric of each name in the catalog.
    """

    def __init__(self, namespace: str = NAMESPACE) -> None:
        self.objects: dict[str, Counter | Gauge | Histogram] = {
            metric.name: _make(metric, namespace) for metric in CATALOG
        }
        # Last totals, by engine, metric and labels; and which start of it they are of.
        self._seen: defaultdict[tuple[int, str, tuple[str, ...]], float]
        self._seen = defaultdict(float)
        self._starts: dict[int, str] = {}

    def set_build_info(self, version: str, vllm_version: str, stats: RankStats) -> None:
        """Say what is running."""
        sparse = [layer for layer in stats["layers"] if layer["pattern"]]
        patterns = sorted({str(layer["pattern"]) for layer in sparse})
        backends = sorted({layer["backend"] for layer in sparse})
        self._set(
            "build_info",
            1,
            version,
            vllm_version,
            stats["phase"],
            stats["fingerprint"],
            "+".join(backends) or "dense",
            "several" if len(patterns) > _LISTED else "+".join(patterns) or "dense",
        )
        labels = calibration_labels(stats)
        if labels is not None:
            self._set("calibration_info", 1, *labels)

    def poll_failed(self) -> None:
        """Count a poll that the workers did not answer."""
        self._inc("poll_errors", (), 1)

    def update(self, *engines: RankStats) -> None:
        """Advance everything to these statistics.

        Args:
            engines: of every engine, each merged over its ranks. Engines run the same
                model, so that the first one's layers speak for all.
        """
        self._set("last_poll_timestamp_seconds", time.time())
        self._describe(engines[0]["layers"])
        extra: Tally[str] = Tally()
        for number, stats in enumerate(engines):
            if self._starts.get(number) != stats["started"]:
                # Another engine, or one that counts from zero again.
                self._starts[number] = stats["started"]
                for key in [key for key in self._seen if key[0] == number]:
                    del self._seen[key]
            self._count_tokens(number, stats)
            self._count_work(number, stats["layers"])
            self._count_canary(number, stats)
            self._observe(number, stats)
            for layer in stats["layers"]:
                extra[layer["kind"]] += layer["extra_bytes"]
        for kind, size in extra.items():
            self._set("extra_weight_bytes", size, kind)

    def _describe(self, layers: list[LayerReport]) -> None:
        """Set the gauges that say what the model is made of."""
        found = Tally(
            (x["kind"], x["pattern"] or "dense", x["backend"]) for x in layers
        )
        for labels, count in found.items():
            self._set("layers", count, *labels)
        sizes: Tally[str] = Tally()
        zeros: dict[str, float] = {}
        for layer in layers:
            if layer["weight_sparsity"] is not None:
                kind, size = layer["kind"], layer["in_features"] * layer["out_features"]
                sizes[kind] += size
                zeros[kind] = zeros.get(kind, 0.0) + size * layer["weight_sparsity"]
        for kind, share in zeros.items():
            self._set("weight_sparsity_ratio", share / max(1, sizes[kind]), kind)

    def _count_tokens(self, engine: int, stats: RankStats) -> None:
        for phase, tokens in stats["tokens"].items():
            dense = stats["dense_first"] if phase == "prefill" else 0
            work: Tally[tuple[str, str]] = Tally()
            for path, count in _paths(stats["layers"], stats["phase"], phase).items():
                work[path] += (tokens - dense) * count
                if dense:  # first tokens of requests, if the configuration says so
                    work[path[0], "dense"] += dense * count
            for path, total in work.items():
                self._advance(engine, "linear_tokens", (*path, phase), total)

    def _count_work(self, engine: int, layers: list[LayerReport]) -> None:
        totals: Tally[tuple[str, tuple[str, ...]]] = Tally()
        for layer in layers:
            kind = layer["kind"]
            for way, count in layer["calls"].items():
                totals["linear_calls", (kind, way)] += count
            for reason, count in layer["fallbacks"].items():
                totals["fallback_calls", (kind, reason)] += count
            if layer["pattern"]:
                zeros = layer["elements"] - layer["nonzeros"]
                totals["elements", (kind,)] += layer["elements"]
                totals["zero_elements", (kind,)] += zeros
            if layer["bytes_read"] is not None:
                totals["weight_bytes_read", (kind,)] += layer["bytes_read"]
                totals["weight_bytes_skipped", (kind,)] += layer["bytes_skipped"]
        for (name, labels), total in totals.items():
            self._advance(engine, name, labels, total)

    def _count_canary(self, engine: int, stats: RankStats) -> None:
        canary = stats["canary"]
        for kind, sums in canary["kinds"].items() if canary else ():
            self._advance(engine, "canary_tokens", (kind,), sums["tokens"])
            for name in ("relative_error", "cosine_distance"):
                total = sums[name]
                self._advance(engine, f"canary_{name}", (kind,), total)

    def _observe(self, engine: int, stats: RankStats) -> None:
        """Bring the histogram to what the workers' has.

        Samples of a bucket are observed at their mean: bucket, number and sum are then
        those of the samples.
        """
        histogram = self.objects["kernel_seconds"]
        assert isinstance(histogram, Histogram)
        for op, found in stats["timings"].items():
            for place, (count, nanoseconds) in enumerate(found):
                labels = (op, str(place))
                number = int(self._step(engine, "kernel_seconds", labels, count))
                time_ = self._step(engine, "kernel_nanoseconds", labels, nanoseconds)
                if number:
                    child = histogram.labels(op, stats["timed_backend"])
                    for _ in range(number):
                        child.observe(time_ / number / 1e9)

    def _advance(
        self, engine: int, name: str, labels: tuple[str, ...], total: float
    ) -> None:
        self._inc(name, labels, self._step(engine, name, labels, total))

    def _step(
        self, engine: int, name: str, labels: tuple[str, ...], total: float
    ) -> float:
        """Return what came to a total since it was last seen; never below 0."""
        key = (engine, name, labels)
        # A total that went back was counted anew: a counter must not go back.
        step = total - self._seen[key] if total >= self._seen[key] else total
        self._seen[key] = total
        return step

    def _inc(self, name: str, labels: Iterable[str], step: float) -> None:
        self._child(name, labels).inc(step)  # type: ignore[union-attr]

    def _set(self, name: str, value: float, *labels: str) -> None:
        self._child(name, labels).set(value)  # type: ignore[union-attr]

    def _child(self, name: str, labels: Iterable[str]) -> Counter | Gauge | Histogram:
        found, values = self.objects[name], tuple(labels)
        return found.labels(*values) if values else found


def _make(metric: Metric, namespace: str) -> Counter | Gauge | Histogram:
    name = f"{namespace}_{metric.name}"
    if metric.type == "counter":
        return Counter(name, metric.help, metric.labels)
    if metric.type == "histogram":
        return Histogram(name, metric.help, metric.labels, buckets=BUCKETS)
    return Gauge(name, metric.help, metric.labels, multiprocess_mode="mostrecent")


def _paths(
    layers: list[LayerReport], active_phase: str, phase: str
) -> Tally[tuple[str, str]]:
    """Count layers by (kind, backend that ran tokens of ``phase``)."""
    runs_sparse = active_phase in (phase, "both")
    return Tally(
        (x["kind"], x["backend"] if runs_sparse and x["pattern"] else "dense")
        for x in layers
    )
