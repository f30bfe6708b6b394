"""Every metric of the plugin: name, type, labels and meaning, in one place.

The metric objects and the tables in ``docs/metrics.md`` are made from it. No label
follows the number of layers, requests or models: each has a small fixed set of values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

NAMESPACE = "vllm_sparse"
_ALL_KINDS = "last part of the layer's name without `_proj`"

# Every label, and what its values are.
LABELS: dict[str, str] = {
    "backend": "`dense`, or what executes sparse layers: `cpu`, `triton`, `reference`",
    "budget": "share of the weight bytes that a sparsified token reads, as recorded or "
    "as the patterns give it",
    "created": "day on which the sidecar was calibrated",
    "data": "first 12 digits of the calibration text's SHA-256",
    "fingerprint": "hash of the resolved configuration without its provenance",
    "kind": f"{_ALL_KINDS}: `qkv`, `o`, `gate_up`, `down`",
    "method": "criterion, mitigations and allocator of the calibration",
    "op": "the [way](#ways) that was timed",
    "pattern": "`dense`, N:M or a share of zeros; in `build_info` those of all sparse "
    "layers, `several` for more than three",
    "phase": "of tokens: `prefill`, `decode`; in `build_info` those that are sparse, "
    "also `both`",
    "reason": "one of the [reasons](#fallbacks)",
    "version": "version of vllm-sparse",
    "vllm_version": "version of vLLM",
    "way": "one of the [ways](#ways)",
}


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric.

    Attributes:
        name: without the prefix, and without the ``_total`` of a counter.
        type: of Prometheus.
        labels: names of its labels.
        help: what it is, on ``/metrics`` and in the documents.
    """

    name: str
    type: Literal["gauge", "counter", "histogram"]
    labels: tuple[str, ...]
    help: str

    @property
    def sample(self) -> str:
        """The full name, as queries have it (a histogram's without its suffixes)."""
        suffix = "_total" if self.type == "counter" else ""
        return f"{NAMESPACE}_{self.name}{suffix}"


CATALOG: tuple[Metric, ...] = (
    Metric(
        "build_info",
        "gauge",
        ("version", "vllm_version", "phase", "fingerprint", "backend", "pattern"),
        "1; labels say what is running.",
    ),
    Metric(
        "layers",
        "gauge",
        ("kind", "pattern", "backend"),
        "Linear layers of the model by kind, pattern and what executes them.",
    ),
    Metric(
        "linear_tokens",
        "counter",
        ("kind", "backend", "phase"),
        "Tokens times layers that went through the sparse and the dense path.",
    ),
    Metric(
        "elements",
        "counter",
        ("kind",),
        "Activation elements of the tokens that were sparsified, before selection.",
    ),
    Metric(
        "zero_elements",
        "counter",
        ("kind",),
        "Of these elements, those that are zero afterwards.",
    ),
    Metric(
        "linear_calls",
        "counter",
        ("kind", "way"),
        "Calls of layers that own their weight, by the way they were executed.",
    ),
    Metric(
        "fallback_calls",
        "counter",
        ("kind", "reason"),
        "Calls of sparse layers that ran no kernel that reads fewer weights, and why.",
    ),
    Metric(
        "weight_bytes_read",
        "counter",
        ("kind",),
        "Bytes of weights that sparse layers read from memory, over all ranks.",
    ),
    Metric(
        "weight_bytes_skipped",
        "counter",
        ("kind",),
        "Bytes of weights that the same calls would have read more, were they dense.",
    ),
    Metric(
        "extra_weight_bytes",
        "gauge",
        ("kind",),
        "Bytes of the plugin's own copies of weights, over all ranks.",
    ),
    Metric(
        "weight_sparsity_ratio",
        "gauge",
        ("kind",),
        "Share of zeros found in the weights of layers that own theirs, 0 to 1.",
    ),
    Metric(
        "calibration_info",
        "gauge",
        ("method", "data", "created", "budget"),
        "1; labels say where a calibrated sidecar comes from. Absent without one.",
    ),
    Metric(
        "kernel_seconds",
        "histogram",
        ("op", "backend"),
        "Seconds of sampled calls of layers that own their weight; --kernel-timing.",
    ),
    Metric(
        "canary_tokens",
        "counter",
        ("kind",),
        "Tokens times tapped layers times ranks that were compared; --canary.",
    ),
    Metric(
        "canary_relative_error",
        "counter",
        ("kind",),
        "Sum over them of |sparse result - dense result| / |dense result|.",
    ),
    Metric(
        "canary_cosine_distance",
        "counter",
        ("kind",),
        "Sum over them of 1 - cosine of the two results.",
    ),
    Metric(
        "last_poll_timestamp_seconds",
        "gauge",
        (),
        "Unix time of the workers' last answer; everything here is as old as that.",
    ),
    Metric(
        "poll_errors",
        "counter",
        (),
        "Times the workers did not answer for their statistics.",
    ),
)
