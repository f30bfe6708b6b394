"""Prometheus metrics ``vllm_sparse_*``, beside vLLM's own on ``/metrics``.

Ordinary objects in the default registry, so they also work in the multi-process mode
that vLLM turns on for more than one API server. The ``vllm:`` prefix is left to vLLM,
which removes collectors with that prefix. Ratios are for PromQL: we count.
"""

from __future__ import annotations

from collections import Counter as Tally

from prometheus_client import Counter, Gauge

from vllm_sparse.state import LayerReport
from vllm_sparse.stats import RankStats


class SparsityMetrics:
    """All metric objects, and the last totals seen, from which counters advance.

    Args:
        namespace: metric prefix; tests use another to register a second time.
    """

    def __init__(self, namespace: str = "vllm_sparse") -> None:
        self.build_info = Gauge(
            f"{namespace}_build_info",
            "1; labels say what is running.",
            ["version", "vllm_version", "phase", "fingerprint"],
            multiprocess_mode="mostrecent",
        )
        self.layers = Gauge(
            f"{namespace}_layers",
            "Linear layers by kind, pattern and the backend that executes them.",
            ["kind", "pattern", "backend"],
            multiprocess_mode="mostrecent",
        )
        self.linear_tokens = Counter(
            f"{namespace}_linear_tokens",
            "Tokens times layers that went through the sparse and the dense path.",
            ["kind", "backend", "phase"],
        )
        self.elements = Counter(
            f"{namespace}_elements",
            "Activation elements of the tokens that were sparsified.",
            ["kind"],
        )
        self.zero_elements = Counter(
            f"{namespace}_zero_elements",
            "Of these elements, those that are zero afterwards.",
            ["kind"],
        )
        self.linear_calls = Counter(
            f"{namespace}_linear_calls",
            "Calls of layers that own their weight, by the way they were executed.",
            ["kind", "way"],
        )
        self.weight_bytes = Gauge(
            f"{namespace}_extra_weight_bytes",
            "Bytes of the plugin's own copies of weights, over all ranks.",
            ["kind"],
            multiprocess_mode="mostrecent",
        )
        self.poll_errors = Counter(
            f"{namespace}_poll_errors",
            "Times the workers did not answer for their statistics.",
        )
        self._seen: Tally[tuple[str, ...]] = Tally()

    def set_build_info(self, version: str, vllm_version: str, stats: RankStats) -> None:
        """Say what is running."""
        self.build_info.labels(
            version, vllm_version, stats["phase"], stats["fingerprint"]
        ).set(1)

    def update(self, stats: RankStats) -> None:
        """Advance everything to ``stats`` (merged over ranks)."""
        layers = Tally(
            (x["kind"], x["pattern"] or "dense", x["backend"]) for x in stats["layers"]
        )
        for labels, count in layers.items():
            self.layers.labels(*labels).set(count)
        for phase, tokens in stats["tokens"].items():
            dense = stats["dense_first"] if phase == "prefill" else 0
            work: Tally[tuple[str, str]] = Tally()
            for path, count in _paths(stats["layers"], stats["phase"], phase).items():
                work[path] += (tokens - dense) * count
                if dense:  # first tokens of requests, if the configuration says so
                    work[path[0], "dense"] += dense * count
            for path, total in work.items():
                self._advance(self.linear_tokens, (*path, phase), total)
        for kind in {layer["kind"] for layer in stats["layers"]}:
            same = [layer for layer in stats["layers"] if layer["kind"] == kind]
            elements = sum(layer["elements"] for layer in same)
            nonzeros = sum(layer["nonzeros"] for layer in same)
            if any(layer["calls"] for layer in same):
                calls: Tally[str] = Tally()
                for layer in same:
                    calls.update(layer["calls"])
                for way, count in calls.items():
                    self._advance(self.linear_calls, (kind, way), count)
            extra = sum(layer["extra_bytes"] for layer in same)
            self.weight_bytes.labels(kind).set(extra)
            if any(layer["pattern"] for layer in same):
                self._advance(self.elements, (kind,), elements)
                self._advance(self.zero_elements, (kind,), elements - nonzeros)

    def _advance(self, counter: Counter, labels: tuple[str, ...], total: int) -> None:
        key = (counter._name, *labels)
        # A restarted engine counts from zero again; a counter must not go back.
        step = total - self._seen[key] if total >= self._seen[key] else total
        self._seen[key] = total
        counter.labels(*labels).inc(step)


def _paths(
    layers: list[LayerReport], active_phase: str, phase: str
) -> Tally[tuple[str, str]]:
    """Count layers by (kind, backend that ran tokens of ``phase``)."""
    runs_sparse = active_phase in (phase, "both")
    return Tally(
        (x["kind"], x["backend"] if runs_sparse and x["pattern"] else "dense")
        for x in layers
    )
