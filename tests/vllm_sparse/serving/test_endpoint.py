"""``GET /sparsity``: what it says of a sparse, a dense and a dead engine."""

from __future__ import annotations

import argparse
import asyncio

import pytest
import vllm
from fastapi import FastAPI
from fastapi.testclient import TestClient
from vllm.plugins.endpoint_plugins.interface import EndpointPlugin

from vllm_sparse import __version__
from vllm_sparse.serving import endpoint
from vllm_sparse.serving.endpoint import SparsityEndpoint, describe
from vllm_sparse.serving.poller import StatsPoller

PATHS = ["/sparsity", "/v1/sparsity"]


@pytest.fixture
def app():
    app = FastAPI()
    SparsityEndpoint().attach_router(app)
    return app


def connect(app, engine):
    """Give the app a poller, as ``init_state`` does."""
    app.state.sparsity_poller = StatsPoller(engine, 60.0)
    return TestClient(app)


def test_it_is_an_endpoint_plugin():
    plugin = SparsityEndpoint()
    declared = set(EndpointPlugin.__annotations__) | {"attach_router", "init_state"}
    assert all(hasattr(plugin, name) for name in declared)
    assert plugin.name == "vllm_sparse"
    assert plugin.required_tasks == ("generate",)


@pytest.mark.parametrize("path", PATHS)
def test_active(app, fakes, path):
    layers = [
        fakes.layer(elements=100, nonzeros=50),
        fakes.layer("model.layers.0.mlp.down_proj", elements=300, nonzeros=50),
        fakes.dense(),
    ]
    answer = connect(app, fakes.engine([fakes.stats(*layers)])).get(path)
    assert answer.status_code == 200
    assert answer.json() == {
        "version": __version__,
        "vllm_version": vllm.__version__,
        "active": True,
        "phase": "decode",
        "source": "a test",
        "fingerprint": "0123456789abcdef",
        "density": 0.25,
        "tokens": {"prefill": 30, "decode": 10},
        "dense_first": 0,
        "weights_read": 0.5,
        "canary": None,
        "config": {"phase": "decode"},
        "layers": layers,
    }


@pytest.mark.parametrize("path", PATHS)
def test_inactive(app, fakes, path):
    answer = connect(app, fakes.engine([None])).get(path)
    assert answer.status_code == 200
    body = answer.json()
    assert body.pop("reason").startswith("no activation sparsity is configured")
    assert body == {
        "version": __version__,
        "vllm_version": vllm.__version__,
        "active": False,
    }


@pytest.mark.parametrize("path", PATHS)
def test_the_engine_does_not_answer(app, fakes, path):
    secret = "tcp://10.0.0.1 is unreachable"
    answer = connect(app, fakes.engine(ConnectionError(secret))).get(path)
    assert answer.status_code == 503
    assert answer.json() == {"error": "The engine does not answer. See /health."}


@pytest.mark.parametrize("path", PATHS)
def test_the_engine_is_not_ready(app, path):
    answer = TestClient(app).get(path)
    assert answer.status_code == 503
    assert answer.json() == {"error": "The engine is not ready."}


@pytest.mark.parametrize("path", PATHS)
def test_it_is_read_only(app, fakes, path):
    client = connect(app, fakes.engine([None]))
    for method in ("post", "put", "delete", "patch"):
        assert getattr(client, method)(path).status_code == 405


def test_density_before_the_first_token(fakes):
    layer = fakes.layer(elements=0)
    assert describe(fakes.stats(layer))["density"] is None


@pytest.fixture
def made(monkeypatch, metrics):
    """Count the metrics ``init_state`` makes; give it those of the test."""
    made = []

    def make():
        made.append(metrics)
        return metrics.objects

    monkeypatch.setattr(endpoint, "SparsityMetrics", make)
    return made


def init(app, engine):
    """Run ``init_state``; return its poller and whether it polls."""

    async def scenario():
        await SparsityEndpoint().init_state(engine, app.state, argparse.Namespace())
        poller = getattr(app.state, "sparsity_poller", None)
        task = poller and poller._task
        polls = task is not None and not task.done()
        if polls:
            task.cancel()
        return poller, polls

    return asyncio.run(scenario())


def test_a_sparse_engine_is_polled(app, fakes, made, metrics):
    _, polls = init(app, fakes.engine([fakes.stats(fakes.layer())]))
    assert polls
    assert made == [metrics]
    labels = {
        "version": __version__,
        "vllm_version": vllm.__version__,
        "phase": "decode",
        "fingerprint": "0123456789abcdef",
        "backend": "reference",
        "pattern": "8:16",
    }
    assert metrics.value("build_info", **labels) == 1


@pytest.mark.parametrize("case", ["dense", "second API server"])
def test_others_answer_but_do_not_count(app, fakes, made, case):
    answers = [None if case == "dense" else fakes.stats(fakes.layer())]
    engine = fakes.engine(answers, api_rank=0 if case == "dense" else 1)
    poller, polls = init(app, engine)
    assert poller is not None
    assert not polls
    assert made == []
    answer = connect(app, engine).get("/sparsity").json()
    assert answer["active"] is (case != "dense")


def test_a_server_starts_without_statistics(app, fakes, made, metrics):
    """Another server's long prompt may keep the engine busy; a dense engine too."""
    engine = fakes.engine(TimeoutError("no answer in 10 s"))

    async def scenario():
        await SparsityEndpoint().init_state(engine, app.state, argparse.Namespace())
        assert made == []
        engine.answers = [fakes.stats(fakes.layer())]
        poller = app.state.sparsity_poller
        poller._interval = 0.001
        while not made:
            await asyncio.sleep(0.001)
        poller.stop()

    asyncio.run(asyncio.wait_for(scenario(), 10))
    assert metrics.value("layers", kind="up", pattern="8:16", backend="reference") == 1


@pytest.mark.parametrize(
    ("answers", "always", "watched"),
    [("dense", False, False), ("dense", True, True), ("sparse", False, True)],
)
def test_a_dense_engine_ends_as_vllm_ends_it(
    app, fakes, made, monkeypatch, answers, always, watched
):
    monkeypatch.setattr(endpoint.ENDING, "always", always)
    engine = fakes.engine([None if answers == "dense" else fakes.stats(fakes.layer())])
    init(app, engine)
    assert ("shutdown" in vars(engine)) is watched


def test_a_render_server_has_no_engine(app, made):
    assert init(app, None) == (None, False)
    assert TestClient(app).get("/sparsity").status_code == 503


def test_weights_that_are_read(fakes):
    """Low-rank matrices count; dense layers do not."""
    layers = [
        fakes.layer(pattern="8:16"),
        fakes.layer("down_proj", pattern="4:16", extra_weights=512),
        fakes.dense(),
    ]
    read = 64 * 32 * 0.5 + 64 * 32 * 0.25 + 512
    found = describe(fakes.stats(*layers))["weights_read"]
    assert found == pytest.approx(read / (2 * 64 * 32))
    assert describe(fakes.stats(fakes.dense()))["weights_read"] is None
