"""The rules: valid, unit-tested by promtool, each with a runbook."""

from __future__ import annotations

import functools
import re
import subprocess

import pytest
import yaml
from support.prometheus import DEPLOY, RULES, program, rules

FOLDER = DEPLOY / "prometheus"
UNIT_TESTS = sorted((FOLDER / "tests").glob("*.yml"))
ALERTS = [rule for rule in rules() if "alert" in rule]
RECORDS = [rule for rule in rules() if "record" in rule]


def _promtool(*arguments):
    command = [program("promtool"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_configuration_is_valid():
    said = _promtool("check", "config", FOLDER / "prometheus.yml")
    assert "2 rule files found" in said


def test_rules_are_valid():
    said = _promtool("check", "rules", "--lint=all", "--lint-fatal", *RULES)
    found = sum(map(int, re.findall(r"(\d+) rules found", said)))
    assert found == len(ALERTS) + len(RECORDS) > 20


@pytest.mark.parametrize("file", UNIT_TESTS, ids=lambda file: file.stem)
def test_rules_do_what_their_unit_tests_say(file):
    assert "SUCCESS" in _promtool("test", "rules", file)


def test_one_list_of_targets():
    """The configuration reads targets.yml, and the rules' job is the one it scrapes."""
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text(encoding="utf-8"))
    (job,) = config["scrape_configs"]
    assert job["file_sd_configs"] == [{"files": ["targets.yml"]}]
    (group,) = yaml.safe_load((FOLDER / "targets.yml").read_text(encoding="utf-8"))
    assert group["targets"] == ["127.0.0.1:8000"]
    named = re.findall(r'job="([^"]*)"', str([rule["expr"] for rule in rules()]))
    assert set(named) == {job["job_name"]}


@functools.cache
def _unit_tests():
    texts = (file.read_text(encoding="utf-8") for file in UNIT_TESTS)
    return [test for text in texts for test in yaml.safe_load(text)["tests"]]


@pytest.mark.parametrize("alert", ALERTS, ids=lambda rule: rule["alert"])
def test_every_alert_is_seen_to_fire_and_to_stay_silent(alert):
    found = {
        bool(check["exp_alerts"])
        for test in _unit_tests()
        for check in test.get("alert_rule_test", [])
        if check["alertname"] == alert["alert"]
    }
    assert found == {True, False}


def test_every_recorded_value_is_checked():
    checked = {
        check["expr"]
        for test in _unit_tests()
        for check in test.get("promql_expr_test", [])
        if check.get("exp_samples")
    }
    assert checked == {rule["record"] for rule in RECORDS}


@pytest.mark.parametrize("alert", ALERTS, ids=lambda rule: rule["alert"])
def test_every_alert_says_what_to_do(alert, repo_root):
    assert alert["for"]
    assert alert["labels"]["severity"] in ("critical", "warning", "info")
    notes = alert["annotations"]
    assert notes.keys() == {"summary", "description", "runbook_url"}
    page, _, anchor = notes["runbook_url"].partition("#")
    assert anchor == alert["alert"].lower()
    text = (repo_root / page).read_text(encoding="utf-8")
    section = re.search(rf"^## {alert['alert']}\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    assert section, f"no section {alert['alert']} in {page}"
    for part in ("**Meaning.**", "**Impact.**", "**Diagnose.**", "**Act.**"):
        assert part in section[1], (alert["alert"], part)


def test_the_runbook_has_no_section_without_an_alert(repo_root):
    text = (repo_root / "docs/runbooks.md").read_text(encoding="utf-8")
    sections = re.findall(r"^## (VllmSparse\w+)$", text, re.M)
    assert sections == [rule["alert"] for rule in ALERTS]
