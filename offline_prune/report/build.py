"""``build_report``: report, model card and pictures of a pruned folder."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from nmsparse.packed_manifest import QUANT_METHOD
from offline_prune.errors import MissingDependencyError
from offline_prune.packing.config_text import KEY
from offline_prune.packing.folder import CONFIG_NAME, ModelFolder
from offline_prune.report.card import CARD_NAME, model_card
from offline_prune.report.markdown import REPORT_NAME, report
from offline_prune.report.plots import Plots, write_plots
from offline_prune.report.results import Results, read_results
from offline_prune.text_file import write_text


def build_report(folder: str | Path, *, plots: bool = True) -> list[Path]:
    """Write ``report.md``, ``README.md`` and ``figures/`` from ``results.json``.

    Run it again after more was measured: the same results give the same bytes. The text
    of a base model's card in ``README.md`` is kept below ours.

    Args:
        folder: a pruned folder.
        plots: whether to draw pictures, which needs matplotlib.

    Returns:
        The files that were written.

    Raises:
        InputError: if the folder has no usable ``results.json``.
        MissingDependencyError: if pictures are wanted and matplotlib is missing; report
            and card were then written without them.
    """
    path = Path(folder)
    results = _as_found(path, read_results(path))
    if not plots:
        return _write(path, results, Plots((), ()))
    try:
        drawn = write_plots(path, results)
    except MissingDependencyError:
        _write(path, results, Plots((), ()))
        raise
    return _write(path, results, drawn)


def _as_found(path: Path, results: Results) -> Results:
    """Return the results of a folder that was packed or unpacked afterwards."""
    sizes = results.sizes
    if sizes is None or not (path / CONFIG_NAME).is_file():
        return results
    model = ModelFolder.open(path)
    found = model.config.get(KEY)
    packed = isinstance(found, dict) and found.get("quant_method") == QUANT_METHOD
    form: Literal["dense", "packed"] = "packed" if packed else "dense"
    if form == sizes.saved_format:
        return results
    changed = {"saved_format": form, "saved_bytes": model.weight_bytes}
    # The recorded hashes are those of the files before they were rewritten.
    update = {"sizes": sizes.model_copy(update=changed), "files": {}}
    return results.model_copy(update=update)


def _write(path: Path, results: Results, drawn: Plots) -> list[Path]:
    """Write the two texts."""
    card = path / CARD_NAME
    existing = card.read_text("utf-8") if card.is_file() else ""
    text = model_card(results, drawn.pictures, existing=existing)
    return [
        write_text(path / REPORT_NAME, report(results, drawn.pictures)),
        write_text(card, text),
        *drawn.files,
    ]
