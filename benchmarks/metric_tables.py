"""Tables of docs/metrics.md: what the code's catalog holds, and what counting costs."""

from __future__ import annotations

import rows

from vllm_sparse.serving.catalog import CATALOG, LABELS
from vllm_sparse.work import REASONS


def catalog() -> str:
    """Return every metric of the plugin."""
    lines = ["| name | type | labels | meaning |", "|---|---|---|---|"]
    for metric in CATALOG:
        labels = ", ".join(f"`{name}`" for name in metric.labels)
        meaning = metric.help.replace("|", "\\|")
        cells = (f"`{metric.sample}`", metric.type, labels, meaning)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def labels() -> str:
    """Return what the values of every label are."""
    lines = ["| label | values |", "|---|---|"]
    return "\n".join(
        [*lines, *(f"| `{name}` | {text} |" for name, text in sorted(LABELS.items()))]
    )


def reasons() -> str:
    """Return why a call of a sparse layer may read the whole weight."""
    lines = ["| reason | meaning |", "|---|---|"]
    return "\n".join([*lines, *(f"| `{name}` | {x} |" for name, x in REASONS.items())])


def cost() -> str:
    """Return what counting and polling take of a decode step."""
    lines = [
        "| model | tokens a step | step | calls counted | a call | the step itself | "
        "a poll of the workers | of the time | measured |",
        "|---" * 9 + "|",
    ]
    for row in rows.newest("metrics_cost", "model", "batch", "threads", "hardware"):
        lines.append(
            f"| {row['model']} | {row['batch']} | {row['step_ms']:.1f} ms | "
            f"{row['calls']} | {row['call_us']:.2f} us | {row['publish_us']:.0f} us | "
            f"{row['poll_ms']:.1f} ms every {row['poll_seconds']:.0f} s | "
            f"{100 * row['share']:.2f} % | {row['date']}, {row['threads']} thread(s), "
            f"{row['hardware']} |"
        )
    return "\n".join(lines)
