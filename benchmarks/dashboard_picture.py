"""Draw the Grafana dashboard from a Prometheus, without Grafana.

    python benchmarks/dashboard_picture.py --prometheus http://127.0.0.1:9090 \
        --instance 127.0.0.1:8000 --minutes 3 --output dashboard.png

Every panel of deploy/grafana/dashboards/vllm-sparse.json is drawn at its place, from
its own queries: what the dashboard will show, before Grafana is set up. Needs
matplotlib: pip install vllm-sparse[report].
"""

from __future__ import annotations

import argparse
import json
import math
import re
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

DASHBOARD = (
    Path(__file__).resolve().parents[1] / "deploy/grafana/dashboards/vllm-sparse.json"
)
COLUMNS, INCH = 24, 0.62  # of the grid; height of one of its lines
MOST_LINES = 10  # of a legend
Series = dict[str, Any]


class Source:
    """Queries to one Prometheus.

    Args:
        url: of Prometheus.
        variables: of the dashboard, by name without the dollar sign.
        minutes: that are drawn.
        end: where they end, in Unix time.
    """

    def __init__(
        self, url: str, variables: dict[str, str], minutes: float, end: float
    ) -> None:
        self._url = url.rstrip("/")
        self._variables = variables
        self.end = end
        self.start = self.end - 60 * minutes

    def ask(self, expression: str, *, instant: bool) -> list[Series]:
        """Return the series of a panel's query.

        Raises:
            RuntimeError: with Prometheus's words, if it refuses the query.
        """
        for name in sorted(self._variables, key=len, reverse=True):
            expression = expression.replace(f"${name}", self._variables[name])
        fields: dict[str, Any] = {"query": expression}
        if instant:
            fields["time"] = self.end
        else:
            step = max(1.0, (self.end - self.start) / 200)
            fields |= {"start": self.start, "end": self.end, "step": step}
        path = "query" if instant else "query_range"
        url = f"{self._url}/api/v1/{path}?{urllib.parse.urlencode(fields)}"
        with urllib.request.urlopen(url, timeout=30) as answer:
            body = json.load(answer)
        if body["status"] != "success":
            raise RuntimeError(f"Prometheus refuses {expression}: {body}")
        found: list[Series] = body["data"]["result"]
        return found


def _scaled(steps: tuple[str, ...], base: float) -> Callable[[float], str]:
    def text(value: float) -> str:
        power = 0
        while abs(value) >= base and power < len(steps) - 1:
            value, power = value / base, power + 1
        return f"{value:.3g}{steps[power]}"

    return text


def _seconds(value: float) -> str:
    if value == 0 or abs(value) >= 1:
        return f"{value:.3g} s"
    return f"{value * 1e3:.3g} ms" if abs(value) >= 1e-3 else f"{value * 1e6:.3g} us"


_COUNT = _scaled(("", " K", " M", " G"), 1000)
_BYTES = _scaled((" B", " KiB", " MiB", " GiB", " TiB"), 1024)


def format_value(value: float, unit: str) -> str:
    """Return a value as Grafana shows it in this unit."""
    if unit == "percentunit":
        return f"{100 * value:.3g}%"
    if unit == "s":
        return _seconds(value)
    if unit in ("bytes", "binBps"):
        return _BYTES(value) + ("/s" if unit == "binBps" else "")
    suffix = {"reqps": " req/s", "cps": " calls/s"}.get(unit, "")
    if unit.startswith("suffix:"):
        suffix = unit.removeprefix("suffix:")
    return _COUNT(value) + suffix


def draw_timeseries(axes: Axes, panel: dict[str, Any], source: Source) -> None:
    """Draw lines, or areas on top of each other."""
    defaults = panel["fieldConfig"]["defaults"]
    lines: list[tuple[str, list[datetime], list[float]]] = []
    for target in panel["targets"]:
        for series in source.ask(target["expr"], instant=False):
            pairs = [(float(t), float(v)) for t, v in series["values"]]
            pairs = [(t, v) for t, v in pairs if not math.isnan(v)]
            name = re.sub(
                r"\{\{(\w+)\}\}",
                lambda label, labels=series["metric"]: labels.get(label[1], ""),
                target["legendFormat"],
            )
            moments = [datetime.fromtimestamp(t) for t, _ in pairs]
            lines.append((name, moments, [v for _, v in pairs]))
    lines.sort()
    if not any(values for _, _, values in lines):
        axes.text(0.5, 0.5, "No data", ha="center", transform=axes.transAxes)
        axes.set_axis_off()
        return
    custom = defaults["custom"]
    if "stacking" in custom:
        moments = sorted({moment for _, at, _ in lines for moment in at})
        rows = [dict(zip(at, values, strict=True)) for _, at, values in lines]
        heights = [[row.get(moment, 0.0) for moment in moments] for row in rows]
        axes.stackplot(moments, heights, labels=[x[0] for x in lines], alpha=0.75)
    else:
        for name, at, values in lines:
            axes.plot(at, values, label=name, linewidth=1)
    if custom.get("scaleDistribution", {}).get("type") == "log":
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=defaults.get("min"), top=defaults.get("max"))
    unit = defaults["unit"]
    axes.yaxis.set_major_formatter(lambda value, _: format_value(value, unit))
    axes.xaxis.set_major_formatter(mpl.dates.DateFormatter("%H:%M:%S"))
    axes.xaxis.set_major_locator(mpl.dates.AutoDateLocator(maxticks=5))
    axes.set_xlim(*(datetime.fromtimestamp(t) for t in (source.start, source.end)))
    axes.grid(alpha=0.25)
    axes.tick_params(labelsize=6)
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) <= MOST_LINES:
        axes.legend(handles, labels, fontsize=5.5, loc="best", framealpha=0.6)


def draw_stat(axes: Axes, panel: dict[str, Any], source: Source) -> None:
    """Write one large number in the colour of its threshold."""
    axes.set_axis_off()
    found = source.ask(panel["targets"][0]["expr"], instant=True)
    defaults = panel["fieldConfig"]["defaults"]
    text, colour = "No data", "grey"
    if found and not math.isnan(value := float(found[0]["value"][1])):
        text = format_value(value, defaults["unit"])
        for step in defaults["thresholds"]["steps"]:
            if step["value"] is None or value >= step["value"]:
                colour = step["color"]
    axes.text(
        *(0.5, 0.45, text),
        **{"ha": "center", "va": "center", "fontsize": 20, "color": colour},
        transform=axes.transAxes,
    )


def draw_table(axes: Axes, panel: dict[str, Any], source: Source) -> None:
    """Write labels and value of every series as a line."""
    axes.set_axis_off()
    (options,) = (x["options"] for x in panel["transformations"])
    order = options["indexByName"]
    columns = sorted(order, key=lambda name: order[name])
    rows = [
        [
            {**x["metric"], "Value": format_value(float(x["value"][1]), "none")}.get(
                name, ""
            )
            for name in columns
        ]
        for x in source.ask(panel["targets"][0]["expr"], instant=True)
    ]
    if not rows:
        axes.text(0.5, 0.5, "No data", ha="center", transform=axes.transAxes)
        return
    widths = [
        max(len(str(row[i])) for row in [columns, *rows]) for i in range(len(columns))
    ]
    shares = [width / sum(widths) for width in widths]
    table = axes.table(rows, colLabels=columns, colWidths=shares, loc="upper center")
    table.auto_set_font_size(False)
    table.set_fontsize(6)


DRAW = {"timeseries": draw_timeseries, "stat": draw_stat, "table": draw_table}


def draw(dashboard: dict[str, Any], source: Source) -> Figure:
    """Return a picture of all panels at their places."""
    panels = dashboard["panels"]
    height = max(p["gridPos"]["y"] + p["gridPos"]["h"] for p in panels)
    figure = plt.figure(figsize=(16, height * INCH / 2), dpi=80)
    for panel in panels:
        place = panel["gridPos"]
        left, top = place["x"] / COLUMNS, 1 - place["y"] / height
        wide, high = place["w"] / COLUMNS, place["h"] / height
        if panel["type"] == "row":
            y = top - high / 2
            figure.text(
                0.005, y, panel["title"], fontsize=12, weight="bold", va="center"
            )
            continue
        # Room for the title above and the axes' labels beside and below.
        area = (left + 0.045, top - high + 0.011, wide - 0.055, high - 0.021)
        if panel["type"] != "timeseries":
            area = (left + 0.004, top - high + 0.002, wide - 0.008, high - 0.012)
        axes = figure.add_axes(area)
        axes.set_title(panel["title"], fontsize=8, loc="left", pad=3)
        DRAW[panel["type"]](axes, panel, source)
    return figure


def main() -> None:
    """Read the flags, ask, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prometheus", default="http://127.0.0.1:9090", metavar="URL")
    parser.add_argument("--model", default=".*", help="a regular expression")
    parser.add_argument("--instance", default=".*", help="a regular expression")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument(
        "--end", type=float, default=time.time(), help="Unix time; now by default"
    )
    parser.add_argument(
        "--interval", default="20s", help="what $__rate_interval stands for"
    )
    parser.add_argument("--output", type=Path, default=Path("dashboard.png"))
    args = parser.parse_args()
    variables = {
        "model_name": args.model,
        "instance": args.instance,
        "__rate_interval": args.interval,
    }
    source = Source(args.prometheus, variables, args.minutes, args.end)
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    draw(dashboard, source).savefig(args.output)
    print(f"{args.output}: {len(dashboard['panels'])} panels and rows")


if __name__ == "__main__":
    main()
