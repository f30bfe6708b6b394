"""A real Prometheus on loopback, and the queries of dashboards and rules."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
DEPLOY = ROOT / "deploy"
RULES = sorted((DEPLOY / "prometheus/rules").glob("*.yml"))
DASHBOARD = DEPLOY / "grafana/dashboards/vllm-sparse.json"
READY_SECONDS = 30


def program(name: str) -> str:
    """Return the path of ``prometheus`` or ``promtool``, or skip the test."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"no {name} here; Debian and Ubuntu: apt-get install prometheus")
    return found


def rules() -> list[dict[str, Any]]:
    """Return every recording rule and alert that ships."""
    return [
        rule
        for file in RULES
        for group in yaml.safe_load(file.read_text(encoding="utf-8"))["groups"]
        for rule in group["rules"]
    ]


def dashboard() -> dict[str, Any]:
    """Return the dashboard that ships."""
    data: dict[str, Any] = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    return data


def panels() -> list[dict[str, Any]]:
    """Return its panels without the row headings."""
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def own_metrics() -> list[str]:
    """Return the full names of the plugin's metrics."""
    from vllm_sparse.serving.catalog import CATALOG

    return [metric.sample for metric in CATALOG]


def fill(expression: str, variables: dict[str, str]) -> str:
    """Replace Grafana's variables in a query, longest name first."""
    for name in sorted(variables, key=len, reverse=True):
        expression = expression.replace(f"${name}", variables[name])
    return expression


@dataclass(frozen=True)
class Prometheus:
    """A running Prometheus."""

    url: str

    def get(self, path: str, **params: Any) -> Any:
        """Return the ``data`` of an answer of the HTTP API.

        Raises:
            AssertionError: with Prometheus's words, if it refuses.
        """
        answer = httpx.get(f"{self.url}/api/v1/{path}", params=params, timeout=30)
        body = answer.json()
        assert body["status"] == "success", (params, body)
        return body["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the samples of an instant query that are numbers, not NaN."""
        found = self.get("query", query=expression)["result"]
        return [x for x in found if not math.isnan(float(x["value"][1]))]

    def query_range(
        self, expression: str, seconds: float, *, step: float = 1.0
    ) -> list[dict[str, Any]]:
        """Return the series of the last seconds, without NaN and empty ones."""
        now = time.time()
        data = self.get(
            "query_range", query=expression, start=now - seconds, end=now, step=step
        )
        found = []
        for series in data["result"]:
            values = [(at, float(value)) for at, value in series["values"]]
            values = [(at, value) for at, value in values if not math.isnan(value)]
            if values:
                found.append({"metric": series["metric"], "values": values})
        return found


@contextlib.contextmanager
def prometheus(target: str, folder: Path) -> Iterator[Prometheus]:
    """Run Prometheus with the configuration that ships until the block ends.

    Changed are the target, and the intervals: one second, so that a test need not wait.

    Args:
        target: ``host:port`` of the server to scrape.
        folder: for its configuration and data.

    Raises:
        AssertionError: with the end of the log, if it does not become ready.
    """
    config = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text("utf-8"))
    config["global"] |= {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(file) for file in RULES]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    targets = [{"targets": [target]}]
    (folder / "targets.yml").write_text(yaml.safe_dump(targets))
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    command = [
        program("prometheus"),
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    log = folder / "prometheus.log"
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + READY_SECONDS
        while True:
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{url}/-/ready", timeout=5).status_code == 200:
                    break
            time.sleep(0.2)
        yield Prometheus(url)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(20)
