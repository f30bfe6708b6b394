"""Data sets of the Hugging Face Hub, streamed."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from offline_prune.calibration.config import CalibrationConfig
from offline_prune.errors import InputError, MissingDependencyError

# C4 has 365 million documents, of which about one in 30 is longer than 2048 tokens.
_DOCUMENTS_PER_WINDOW = 200
_SHUFFLE_BUFFER = 1000


def stream_rows(config: CalibrationConfig) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield rows in an order that the seed decides, without downloading the rest.

    Args:
        config: names the data set, subset, split and seed.

    Yields:
        Each row with its place; at most 200 rows for every window wanted.

    Raises:
        MissingDependencyError: if the package datasets is not installed.
        InputError: if the data set cannot be loaded.
    """
    try:
        import datasets
    except ImportError as error:
        raise MissingDependencyError(
            f"Calibration data {config.source}: a data set of the Hub needs the "
            "package datasets, which is not installed. Expected: pip install datasets; "
            "or give a local .txt or .jsonl file."
        ) from error
    try:
        stream = datasets.load_dataset(
            config.source, config.subset, split=config.split, streaming=True
        ).shuffle(seed=config.seed, buffer_size=_SHUFFLE_BUFFER)
        for number, row in enumerate(
            islice(stream, _DOCUMENTS_PER_WINDOW * config.num_samples)
        ):
            yield f"{config.source} ({config.split}), row {number} drawn", row
    except (OSError, ValueError) as error:
        raise InputError(
            f"Calibration data {config.source}: {error} Expected a data set of the Hub "
            "with this subset and split, and a network; or the path of a .txt, .jsonl, "
            ".json or .parquet file that exists."
        ) from error
