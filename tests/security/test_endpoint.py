"""``/sparsity`` can be read and nothing else; without an engine."""

from __future__ import annotations

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from vllm_sparse.serving.endpoint import SparsityEndpoint


@pytest.fixture(scope="module")
def client():
    app = FastAPI()
    SparsityEndpoint().attach_router(app)
    return TestClient(app)


@pytest.mark.parametrize("path", ["/sparsity", "/v1/sparsity"])
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_nothing_can_be_changed(client, path, method):
    answer = client.request(method, path, json={"enabled": False})
    assert answer.status_code == 405
    assert answer.headers["allow"] == "GET"


def test_the_plugin_adds_no_other_route():
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    SparsityEndpoint().attach_router(app)
    paths = TestClient(app)
    assert paths.get("/sparsity").status_code == 503  # no engine here
    for path in ("/sparsity/", "/sparsity/config", "/sparsity/../metrics"):
        assert paths.get(path, follow_redirects=False).status_code in (307, 404)
