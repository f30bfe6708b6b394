"""The dashboard: valid for Grafana's own schema, and whole."""

from __future__ import annotations

import itertools
import json
import re
import string
from collections import Counter
from pathlib import Path

import jsonschema
import pytest
import yaml
from support.prometheus import DEPLOY, dashboard, own_metrics, panels, rules

# Says in its first field what it was made from.
SCHEMA = json.loads((Path(__file__).parent / "grafana_schema.json").read_text("utf-8"))
DATASOURCE = {"type": "prometheus", "uid": "${DS_PROMETHEUS}"}
# Grafana's own variables.
BUILT_IN = {"__rate_interval"}
WIDTH = 24


def _validate(part, schema):
    errors = jsonschema.Draft7Validator(SCHEMA[schema]).iter_errors(part)
    assert [(error.json_path, error.message[:200]) for error in errors] == []


def test_the_dashboard_fits_the_published_schema():
    _validate(dashboard(), "dashboard")


@pytest.mark.parametrize("panel", panels(), ids=lambda panel: panel["title"])
def test_panel_options_fit_the_published_schema(panel):
    _validate(panel["options"], panel["type"])
    if panel["type"] == "timeseries":
        _validate(panel["fieldConfig"]["defaults"]["custom"], "timeseries_custom")


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda d: d["panels"][1].update(titel="x"), "titel"),
        (lambda d: d["panels"][1]["gridPos"].update(w="4"), "'4'"),
        (lambda d: d.pop("schemaVersion"), "schemaVersion"),
    ],
)
def test_the_schema_refuses_what_is_wrong(change, part):
    broken = dashboard()
    change(broken)
    errors = jsonschema.Draft7Validator(SCHEMA["dashboard"]).iter_errors(broken)
    every = [e for error in errors for e in (error, *error.context)]
    assert any(part in error.message for error in every)


def test_the_identity_is_fixed():
    data = dashboard()
    assert data["uid"] == "vllm-sparse"
    assert "id" not in data  # Grafana gives it; a foreign one would overwrite another
    assert "iteration" not in data


def test_rows_ask_the_four_questions():
    rows = [panel["title"] for panel in dashboard()["panels"] if panel["type"] == "row"]
    assert rows == [
        "Is it on?",
        "Is it faster?",
        "Is it still right?",
        "Why dense?",
    ]


def test_panels_have_their_own_id_title_and_place():
    everything = dashboard()["panels"]
    for key in ("id", "title"):
        assert not [x for x, n in Counter(p[key] for p in everything).items() if n > 1]
    taken = Counter()
    for place in (panel["gridPos"] for panel in everything):
        assert place["x"] + place["w"] <= WIDTH
        columns = range(place["x"], place["x"] + place["w"])
        lines = range(place["y"], place["y"] + place["h"])
        taken.update(itertools.product(columns, lines))
    assert set(taken.values()) == {1}, "panels overlap"
    height = max(line for _, line in taken) + 1
    assert len(taken) == WIDTH * height, "the dashboard has a hole"


@pytest.mark.parametrize("panel", panels(), ids=lambda panel: panel["title"])
def test_a_panel_says_how_to_read_it_and_what_its_unit_is(panel):
    assert len(panel["description"].split()) >= 8
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["datasource"] == DATASOURCE
    letters = [target["refId"] for target in panel["targets"]]
    assert letters == list(string.ascii_uppercase[: len(letters)])
    for target in panel["targets"]:
        assert target["datasource"] == DATASOURCE
        assert target["expr"].count("(") == target["expr"].count(")")
        if "rate(" in target["expr"] and "increase(" not in target["expr"]:
            assert "[$__rate_interval]" in target["expr"]
        if panel["type"] == "timeseries":
            assert target["legendFormat"]


def test_variables_are_defined_and_used():
    variables = {v["name"]: v for v in dashboard()["templating"]["list"]}
    assert variables["DS_PROMETHEUS"]["type"] == "datasource"
    queries = [t["expr"] for panel in panels() for t in panel["targets"]]
    used = {name for text in queries for name in re.findall(r"\$(\w+)", text)}
    used |= {"DS_PROMETHEUS"}
    assert used - BUILT_IN == set(variables)
    # Several servers can be chosen, so labels are matched by a regular expression.
    for text in queries:
        for name in ("model_name", "instance"):
            assert f'{name}="${name}"' not in text
        assert 'instance=~"$instance"' in text, text


def test_queries_match_vllms_metrics_by_model_and_ours_by_server():
    """Ours have no ``model_name``: a server has one model, and instance says which."""
    for panel in panels():
        for target in panel["targets"]:
            for name, matchers in re.findall(
                r"([a-z0-9_:]+)\{([^}]*)\}", target["expr"]
            ):
                assert ("model_name" in matchers) == name.startswith("vllm:"), name


def test_queries_know_our_metrics_and_show_them_all():
    text = json.dumps([panels(), rules()])
    named = set(re.findall(r"\bvllm_sparse_[a-z_]+[a-z]\b", text))
    assert {name.removesuffix("_bucket") for name in named} == set(own_metrics())


def test_provisioning_leads_to_the_dashboard():
    folder = DEPLOY / "grafana/provisioning"
    source = yaml.safe_load((folder / "datasources/prometheus.yml").read_text("utf-8"))
    (prometheus,) = source["datasources"]
    assert prometheus["type"] == "prometheus"
    assert prometheus["isDefault"] is True
    scraped = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text("utf-8"))
    # $__rate_interval is computed from it.
    assert (
        prometheus["jsonData"]["timeInterval"] == scraped["global"]["scrape_interval"]
    )
    shown = yaml.safe_load((folder / "dashboards/vllm-sparse.yml").read_text("utf-8"))
    (provider,) = shown["providers"]
    assert provider["type"] == "file"
    assert provider["options"]["path"] == "/var/lib/grafana/dashboards"
