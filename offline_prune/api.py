"""``prune``: the one call that prunes a model."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from offline_prune.pipeline.run import PruneReport
    from offline_prune.pipeline.texts import Texts

logger = logging.getLogger(__name__)


def prune(
    model: str | Path,
    *,
    output: str | Path,
    recipe: str | Path | None = None,
    scorer: str | None = None,
    scorer_options: Mapping[str, Any] | None = None,
    sparsity: float | None = None,
    pattern: str | None = None,
    mixed: bool | None = None,
    allocator: str | None = None,
    allocator_options: Mapping[str, Any] | None = None,
    correction: str | None = None,
    correction_options: Mapping[str, Any] | None = None,
    channels: str | None = None,
    channel_options: Mapping[str, Any] | None = None,
    permutation: bool | None = None,
    compensation: Sequence[str] | None = None,
    compensation_options: Mapping[str, Mapping[str, Any]] | None = None,
    bias: str | None = None,
    targets: Sequence[str] | None = None,
    ignore: Sequence[str] | None = None,
    lower: float | None = None,
    upper: float | None = None,
    calibration: str | Path | Texts | Mapping[str, Any] | None = None,
    num_samples: int | None = None,
    seq_len: int | None = None,
    profile: bool | None = None,
    format: str | None = None,
    seed: int | None = None,
    restart: bool = False,
    device: str | None = None,
    report: bool = True,
) -> PruneReport:
    """Prune a Hugging Face model into a new folder.

    Arguments left None have the defaults of :class:`offline_prune.PruneConfig`, or the
    recipe's values. The source is never touched, the output appears whole or not at
    all, and a run that was stopped goes on when the call is repeated.

    Args:
        model: a local folder, or an id of the Hub.
        output: the new folder.
        recipe: a YAML file, or the name of a shipped recipe.
        scorer: how weights are ranked.
        scorer_options: options of the scorer.
        sparsity: share of weights to remove; or give ``pattern``.
        pattern: N kept of every M weights of a row.
        mixed: with a pattern, every block gets its own N of the same M.
        allocator: how the budget is split over blocks.
        allocator_options: options of the allocator.
        correction: ``absorption``, or None.
        correction_options: options of the correction.
        channels: how a layer's budget is split over its rows.
        channel_options: options of the channel method.
        permutation: with a pattern, reorder channels where the model can absorb it.
        compensation: corrections of the kept weights, in this order.
        compensation_options: compensation to its options.
        bias: ``all`` or ``available``, for compensation by biases.
        targets: what to prune; all linears of the decoder blocks by default.
        ignore: what to leave dense.
        lower: least sparsity of a block.
        upper: greatest sparsity of a block.
        calibration: a file, an id of the Hub or ``synthetic``; a list of texts or of
            rows of token ids; or a mapping with the fields of the calibration.
        num_samples: windows of calibration text.
        seq_len: tokens in a window.
        profile: measure every allocator, for the report.
        format: ``dense`` or ``bitmask``.
        seed: of everything random.
        restart: forget what a stopped run of this output left.
        device: where blocks are computed; a GPU if there is one.
        report: write report, model card and pictures (with matplotlib).

    Returns:
        The folder and everything that is known about the run.

    Raises:
        InputError: if the model, an option or the output cannot be used.
    """
    from offline_prune.config import make_config
    from offline_prune.errors import MissingDependencyError
    from offline_prune.pipeline.run import run_prune
    from offline_prune.report.build import build_report

    fields = {
        "scorer": scorer,
        "scorer_options": scorer_options,
        "sparsity": sparsity,
        "pattern": pattern,
        "mixed": mixed,
        "allocator": allocator,
        "allocator_options": allocator_options,
        "correction": correction,
        "correction_options": correction_options,
        "channels": channels,
        "channel_options": channel_options,
        "permutation": permutation,
        "compensation": compensation,
        "compensation_options": compensation_options,
        "bias": bias,
        "targets": targets,
        "ignore": ignore,
        "lower": lower,
        "upper": upper,
        "profile": profile,
        "format": format,
        "seed": seed,
    }
    text: dict[str, Any] = {}
    rows: Texts | None = None
    if isinstance(calibration, Mapping):
        text.update(calibration)
    elif isinstance(calibration, str | Path):
        text["source"] = str(calibration)
    elif calibration is not None:
        rows = calibration
    for name, value in (
        ("num_samples", num_samples),
        ("seq_len", seq_len),
        ("seed", seed),
    ):
        if value is not None:
            text[name] = value
    config = make_config(
        recipe, {k: v for k, v in fields.items() if v is not None}, calibration=text
    )
    done = run_prune(
        model, config, output=output, texts=rows, restart=restart, device=device
    )
    if report and done.first:
        try:
            build_report(done.folder)
        except MissingDependencyError as error:
            logger.warning("Report and model card have no pictures: %s", error)
    return done
