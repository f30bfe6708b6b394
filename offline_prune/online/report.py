"""``calibration.md`` and its picture: what every layer keeps, and what it reads."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from offline_prune.online.results import CalibrationRecord
from offline_prune.text_file import write_text

REPORT_NAME = "calibration.md"


def write_report(folder: Path, record: CalibrationRecord) -> None:
    """Write the report, with a picture where matplotlib is installed."""
    shown = "No picture: matplotlib is not installed (extra `report`)."
    if importlib.util.find_spec("matplotlib") is not None:
        from offline_prune.online.picture import PICTURE, write_picture

        write_picture(folder, record)
        shown = PICTURE.markdown
    write_text(folder / REPORT_NAME, markdown(record, picture=shown))


def markdown(record: CalibrationRecord, *, picture: str) -> str:
    """Return the report.

    Args:
        record: the calibration.
        picture: Markdown of its picture, or why there is none.
    """
    config = record.config
    wanted = config["pattern"] or f"{config['budget']:.4g} of the bytes"
    how = "uniform" if config["pattern"] else f"allocator {config['allocator']}"
    lines = [
        "# Online activation sparsity of this model",
        "",
        f"Calibrated for {wanted} ({how}, criterion {config['criterion']}, mitigation "
        f"{', '.join(config['mitigation']) or 'none'}). The weights are those of the "
        "dense model; `vllm_sparse_config.json` says what is sparse.",
        "",
        f"* A sparse token reads {record.read_bytes:,} of {record.dense_bytes:,} bytes "
        f"of these layers, learned tensors included: {record.read_share:.4f}.",
        f"* Text: {record.source}, {record.windows} windows, {record.tokens:,} tokens, "
        f"SHA-256 of the token ids {record.sha256[:16]}.",
        f"* {sum(record.seconds.values()):.0f} s, peak memory "
        f"{record.peak_memory_bytes / 2**20:,.0f} MiB, {record.hardware}.",
    ]
    if record.command:
        lines += ["", "```console", f"$ {record.command}", "```"]
    if picture:
        lines += ["", picture]
    lines += [
        "",
        "| layer | K | O | keeps | bytes read | share |",
        "|---|---:|---:|---|---:|---:|",
    ]
    for layer in record.layers:
        share = layer.read_bytes / layer.dense_bytes
        lines.append(
            f"| {layer.name} | {layer.in_features} | {layer.out_features} | "
            f"{layer.pattern or 'all'} | {layer.read_bytes:,} | {share:.3f} |"
        )
    if record.block_errors:
        lines += [
            "",
            "Relative error of the blocks' outputs, before and after fitting:",
            "",
            "| block | before | after |",
            "|---:|---:|---:|",
        ]
        lines += [
            f"| {index} | {before:.4f} | {after:.4f} |"
            for index, (before, after) in enumerate(record.block_errors)
        ]
    return "\n".join([*lines, ""])
