"""A real Prometheus reads a real server under load: every query has an answer."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time

import pytest
from support import tiny
from support.prometheus import (
    dashboard,
    fill,
    own_metrics,
    panels,
    program,
    prometheus,
    rules,
)
from support.server import serve

pytestmark = pytest.mark.server

# Until every counter has moved: the plugin asks its workers every two seconds.
LOAD_SECONDS = 25
MOST_REQUESTS = 2000
WINDOW = "15s"


def _calibrated(folder):
    """Write a tiny model with a sidecar that leaves one kind of layer dense."""
    tiny.build("llama", folder)
    sparse = {"pattern": "8:16"}
    config = {
        "schema_version": 2,
        "phase": "decode",
        "groups": {
            "sparse": {
                "targets": ["re:.*(qkv|gate_up|down)_proj"],
                "activation": sparse,
            }
        },
        "provenance": {"calibration": "text", "created": "2026-11-23"},
    }
    (folder / "vllm_sparse_config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """A server under load until the tests are done, and a Prometheus that reads it."""
    program("prometheus")  # or skip before the server starts
    folder = _calibrated(tmp_path_factory.mktemp("models") / "llama")
    flags = ("--dtype", "float32", "--canary", "1", "--kernel-timing")
    stop = threading.Event()
    with serve(folder, *flags) as server:
        target = server.url.removeprefix("http://")
        client = server.client()

        def ask(number):
            for i in range(MOST_REQUESTS):
                if stop.is_set():
                    return
                # Now one token in a step, now several, now a prompt beside them.
                client.completions.create(
                    model="m",
                    prompt=f"{number} {i} " + "x" * (20 * number),
                    max_tokens=24,
                    temperature=0,
                )
                stop.wait(0.5 * number)

        threads = [threading.Thread(target=ask, args=(n,)) for n in range(4)]
        with prometheus(target, tmp_path_factory.mktemp("prometheus")) as running:
            for thread in threads:
                thread.start()
            try:
                time.sleep(LOAD_SECONDS)
                variables = {
                    "model_name": "m",
                    "instance": target,
                    "__rate_interval": WINDOW,
                }
                yield running, variables
            finally:
                stop.set()
                for thread in threads:
                    thread.join(60)


def test_the_server_is_scraped_without_a_key(watched):
    running, variables = watched
    (up,) = running.query('up{job="vllm-sparse"}')
    assert up["value"][1] == "1"
    assert up["metric"]["instance"] == variables["instance"]


@pytest.mark.parametrize("panel", panels(), ids=lambda panel: panel["title"])
def test_no_panel_is_empty(watched, panel):
    running, variables = watched
    for target in panel["targets"]:
        query = fill(target["expr"], variables)
        if target.get("instant"):
            assert running.query(query), query
        else:
            series = running.query_range(query, LOAD_SECONDS)
            assert series, query
            legends = {json.dumps(x["metric"], sort_keys=True) for x in series}
            assert len(legends) == len(series)


def test_variables_offer_the_server(watched):
    """Grafana's ``label_values(metric, label)`` asks Prometheus in this way."""
    running, variables = watched
    for variable in dashboard()["templating"]["list"]:
        if variable["type"] != "query":
            continue
        inside = variable["query"]["query"].removeprefix("label_values(")
        metric, _, label = inside.removesuffix(")").rpartition(", ")
        found = running.get(
            f"label/{label}/values", **{"match[]": fill(metric, variables)}
        )
        assert found == [variables[variable["name"]]]


@pytest.mark.parametrize(
    "rule",
    [rule for rule in rules() if "record" in rule],
    ids=lambda rule: rule["record"],
)
def test_every_recording_rule_records(watched, rule):
    running, _ = watched
    assert running.query(rule["record"])
    assert running.query(rule["expr"])


@pytest.mark.parametrize(
    "rule",
    [rule for rule in rules() if "alert" in rule],
    ids=lambda rule: rule["alert"],
)
def test_no_alert_condition_holds_on_a_healthy_server(watched, rule):
    running, _ = watched
    assert running.query(rule["expr"]) == []


def test_prometheus_evaluates_every_rule(watched):
    running, _ = watched
    found = [
        rule for group in running.get("rules")["groups"] for rule in group["rules"]
    ]
    assert len(found) == len(rules())
    assert {rule["health"] for rule in found} == {"ok"}, found
    assert not [rule for rule in found if rule.get("state") == "firing"]


def test_the_dashboard_can_be_drawn(watched, repo_root, tmp_path):
    pytest.importorskip("matplotlib")
    running, variables = watched
    output = tmp_path / "dashboard.png"
    script = repo_root / "benchmarks/dashboard_picture.py"
    command = [sys.executable, script, "--prometheus", running.url]
    command += ["--instance", variables["instance"], "--minutes", "1"]
    subprocess.run([*command, "--output", output], check=True)
    assert output.read_bytes().startswith(b"\x89PNG")


def _queries_of(page):
    blocks = re.findall(r"```promql\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


def test_queries_of_the_documents_are_understood(watched, repo_root):
    """Those of runbooks may find nothing on a healthy server."""
    running, _ = watched
    for name, at_least in (("runbooks", 30), ("monitoring", 1)):
        queries = _queries_of(repo_root / f"docs/{name}.md")
        assert len(queries) >= at_least
        empty = [query for query in queries if not running.query(query)]
        # No layer runs the reference here.
        assert all("reference" in query for query in empty), empty


def test_every_metric_is_there_and_true(watched):
    running, _ = watched
    for name in own_metrics():
        suffix = "_bucket" if name.endswith("kernel_seconds") else ""
        assert running.query(name + suffix), name
    sparse = running.query("vllm_sparse:decode_sparse_share:ratio_rate5m")
    assert float(sparse[0]["value"][1]) == pytest.approx(0.75)  # three of four kinds
    for series in running.query("vllm_sparse:density:ratio_rate5m"):
        assert float(series["value"][1]) == pytest.approx(0.5, abs=0.01)
    for series in running.query("vllm_sparse:weight_read_share:ratio_rate5m"):
        assert 0.4 < float(series["value"][1]) < 1
    (info,) = running.query("vllm_sparse_calibration_info")
    assert info["metric"]["created"] == "2026-11-23"
