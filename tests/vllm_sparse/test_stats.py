"""What a worker answers: the session's numbers as plain values."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from nmsparse.config import SparsityConfig
from nmsparse.pattern import NMPattern
from vllm_sparse import engines, stats
from vllm_sparse.phases import TokenPhases
from vllm_sparse.state import LayerState

CONFIG = SparsityConfig.uniform("2:4", phase="both")


@pytest.fixture
def worker(monkeypatch):
    """Return a worker whose engine has one sparse and one dense layer."""
    phases = TokenPhases(8, torch.device("cpu"))
    phases.publish(torch.tensor([0, 1, 2, 3]), torch.tensor([3, 3, 3, 3]))
    common = {
        "layer_class": "ColumnParallelLinear",
        "in_features": 8,
        "out_features": 4,
        "reason": "because",
        "weight_pattern": None,
        "k_sharded": False,
    }
    layers = [
        LayerState(
            name="a.up_proj",
            pattern=NMPattern(2, 4),
            criterion="magnitude",
            backend="reference",
            counters=torch.tensor([32, 16]),
            **common,
        ),
        LayerState(
            name="lm_head",
            pattern=None,
            criterion=None,
            backend="dense",
            counters=None,
            **common,
        ),
    ]
    model = object()
    unseen = []
    session = SimpleNamespace(
        config=CONFIG,
        source="a test",
        phases=phases,
        layers=layers,
        canary=None,
        started="now",
        timings={},
        add_unseen=unseen.append,
    )
    worker = SimpleNamespace(
        rank=3, vllm_config=object(), get_model=lambda: model, unseen=unseen
    )
    found = {id(worker.vllm_config): session}
    monkeypatch.setattr(engines, "find_session", lambda config: found.get(id(config)))
    return worker


def test_statistics_of_a_sparse_engine(worker):
    found = stats.collect(worker)
    assert found["rank"] == 3
    assert found["phase"] == "both"
    assert found["source"] == "a test"
    assert found["fingerprint"] == CONFIG.fingerprint
    assert found["tokens"] == {"prefill": 3, "decode": 1}
    assert [layer["name"] for layer in found["layers"]] == ["a.up_proj", "lm_head"]
    assert [layer["elements"] for layer in found["layers"]] == [32, 0]
    assert [layer["density"] for layer in found["layers"]] == [0.5, None]
    assert SparsityConfig.parse(found["config"], source="stats") == CONFIG


def test_statistics_cross_process_borders(worker):
    found = stats.collect(worker)
    assert json.loads(json.dumps(found)) == found


def test_a_dense_engine_has_none(worker):
    worker.vllm_config = object()
    assert stats.collect(worker) is None


def test_the_method_is_installed_once_and_never_over_another(monkeypatch):
    from vllm.v1.worker.worker_base import WorkerBase

    monkeypatch.delattr(WorkerBase, stats.STATS_METHOD, raising=False)
    stats.register_worker_methods()
    assert WorkerBase.vllm_sparse_stats is stats.collect
    foreign = object()
    monkeypatch.setattr(WorkerBase, stats.STATS_METHOD, foreign)
    stats.register_worker_methods()
    assert WorkerBase.vllm_sparse_stats is foreign
    monkeypatch.delattr(WorkerBase, stats.STATS_METHOD)
