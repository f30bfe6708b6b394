"""Write prometheusrule.yaml from deploy/prometheus/rules, the one source of the rules.

``python deploy/kubernetes/monitoring/prometheusrule.py`` after a change of the rules; a
test says when it was forgotten. Comments stay behind: read the rules at their source.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
RULES = HERE.parents[1] / "prometheus" / "rules"
OUTPUT = HERE / "prometheusrule.yaml"
HEAD = "# Made by prometheusrule.py from deploy/prometheus/rules: change them there.\n"


class _Dumper(yaml.SafeDumper):
    """Long expressions keep their lines."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    style = "|" if "\n" in value else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)


def render(folder: Path = RULES) -> str:
    """Return a PrometheusRule that holds every group of the files in a folder."""
    groups: list[Any] = []
    for file in sorted(folder.glob("*.yml")):
        groups += yaml.safe_load(file.read_text())["groups"]
    rule = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "vllm-sparse"},
        "spec": {"groups": groups},
    }
    return HEAD + yaml.dump(rule, Dumper=_Dumper, sort_keys=False, width=100)


if __name__ == "__main__":
    OUTPUT.write_text(render())
