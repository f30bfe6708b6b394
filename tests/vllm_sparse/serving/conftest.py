"""Statistics as workers send them, a fake engine, and metrics of one's own."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
from prometheus_client import REGISTRY

from vllm_sparse.serving.metrics import SparsityMetrics

_NUMBERS = itertools.count()


def make_layer(
    name="model.layers.0.mlp.up_proj", elements=640, nonzeros=None, **changes
):
    """Return one layer of a worker's answer; half of its elements are zero."""
    nonzeros = elements // 2 if nonzeros is None else nonzeros
    layer = {
        "name": name,
        "kind": name.rpartition(".")[2].removesuffix("_proj"),
        "layer_class": "ColumnParallelLinear",
        "in_features": 64,
        "out_features": 32,
        "pattern": "8:16",
        "criterion": "magnitude",
        "mitigation": [],
        "parameters": {},
        "backend": "reference",
        "reason": "target Linear",
        "weight_pattern": None,
        "k_sharded": False,
        "elements": elements,
        "nonzeros": nonzeros,
        "density": nonzeros / elements if elements else None,
        "ways": {},
        "calls": {},
        "weight_sparsity": None,
        "extra_bytes": 0,
        "extra_weights": 0,
        "fallbacks": {},
        "bytes_read": 0,
        "bytes_skipped": 0,
    }
    return layer | changes


def make_dense(name="lm_head", **changes):
    """Return a dense layer of a worker's answer."""
    dense = {"pattern": None, "criterion": None, "backend": "dense", "elements": 0}
    return make_layer(name, **(dense | changes))


def make_stats(*layers, prefill=30, decode=10, **changes):
    """Return a worker's answer."""
    stats = {
        "rank": 0,
        "phase": "decode",
        "source": "a test",
        "fingerprint": "0123456789abcdef",
        "config": {"phase": "decode"},
        "tokens": {"prefill": prefill, "decode": decode},
        "dense_first": 0,
        "layers": list(layers),
        "canary": None,
        "started": "first",
        "timings": {},
        "timed_backend": "cpu",
    }
    return stats | changes


class FakeEngine:
    """Answer ``collective_rpc`` with ``answers``, or raise what it is."""

    def __init__(self, answers, api_rank=0):
        self.answers = answers
        self.methods = []
        parallel = SimpleNamespace(_api_process_rank=api_rank)
        self.vllm_config = SimpleNamespace(parallel_config=parallel)

    def shutdown(self, timeout=None):
        """End; see test_ending.py."""

    async def collective_rpc(self, method):
        self.methods.append(method)
        if isinstance(self.answers, Exception):
            raise self.answers
        return self.answers


class Metrics:
    """Metric objects under a prefix of their own, and their values."""

    def __init__(self):
        self.prefix = f"test{next(_NUMBERS)}"
        self.objects = SparsityMetrics(self.prefix)

    def value(self, name, **labels):
        """Return a sample's value, None if it has not been set."""
        return REGISTRY.get_sample_value(f"{self.prefix}_{name}", labels)

    def close(self):
        """Give the names back."""
        for thing in self.objects.objects.values():
            REGISTRY.unregister(thing)


@pytest.fixture
def metrics():
    """Return fresh metrics."""
    made = Metrics()
    yield made
    made.close()


@pytest.fixture
def fakes():
    """Return the makers of fake statistics: test modules cannot import a conftest."""
    return SimpleNamespace(
        layer=make_layer, dense=make_dense, stats=make_stats, engine=FakeEngine
    )
