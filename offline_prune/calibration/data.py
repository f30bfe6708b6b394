"""Calibration windows from any source, reproducible to the token."""

from __future__ import annotations

import hashlib
import logging
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from offline_prune.calibration.config import SYNTHETIC, CalibrationConfig
from offline_prune.calibration.documents import Document, Documents
from offline_prune.calibration.encoding import Encoder
from offline_prune.calibration.sources import drawn_rows, is_local, shuffled
from offline_prune.calibration.synthetic import synthetic_windows
from offline_prune.calibration.token_ids import check_id
from offline_prune.calibration.windows import Cutter, Windows
from offline_prune.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class CalibrationSet:
    """Windows of token ids.

    Attributes:
        windows: int64 ``[T]`` each, in random order.
        sha256: hash of the ids.
        source: where they come from.
        description: how they were made, for the report; plain JSON types.
    """

    windows: list[torch.Tensor]
    sha256: str
    source: str
    description: dict[str, Any]

    @property
    def tokens(self) -> int:
        """Number of tokens of all windows."""
        return sum(len(window) for window in self.windows)


def load_calibration(
    config: CalibrationConfig,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    vocab_size: int,
    texts: Sequence[str] | Sequence[Sequence[int]] | None = None,
) -> CalibrationSet:
    """Return the windows that ``config`` describes.

    Args:
        config: source, number and length of the windows, seed.
        tokenizer: the model's; never changed. None if the data are token ids or
            synthetic.
        vocab_size: rows of the model's embedding.
        texts: texts, or rows of token ids, in the place of ``config.source``.

    Raises:
        InputError: if the data cannot be used.
        MissingDependencyError: if a package for this source is not installed.
    """
    encoder = Encoder(tokenizer, bos=config.bos)
    if texts is None and config.source == SYNTHETIC:
        return _synthetic(config, encoder, vocab_size)
    source = config.source if texts is None else "texts given by the caller"
    rng = random.Random(config.seed)
    maker = Documents(config, tokenizer, encoder, vocab_size)
    kinds: set[str] = set()

    def documents() -> Iterator[Document]:
        made = _drawn(maker, rng) if texts is None else _given(maker, texts, rng)
        for document in made:
            kinds.add(document.kind)
            yield document

    # Texts are joined as the papers join the rows of WikiText.
    separator = [] if tokenizer is None else encoder.encode("\n\n")
    cutter = Cutter(config.num_samples, config.seq_len, separator, source)
    cut = cutter.from_joined if config.joined else cutter.from_single
    windows = cut(documents(), rng)
    _warn(windows, source, config)
    return _described(config, windows, source, sorted(kinds), vocab_size, encoder)


def split_held_out(
    data: CalibrationSet, count: int
) -> tuple[CalibrationSet, CalibrationSet]:
    """Split off windows that choose a hyper-parameter and measure nothing else.

    Args:
        data: windows, in random order.
        count: how many are held out: the last ones.

    Returns:
        The rest, and the held-out windows.

    Raises:
        InputError: if no window would be left on one side.
    """
    if not 0 < count < len(data.windows):
        raise InputError(
            f"Held-out calibration: {count} of {len(data.windows)} windows. Expected "
            "at least 1 on each side: raise num_samples, or hold out fewer."
        )
    return _part(data, data.windows[:-count]), _part(data, data.windows[-count:])


def hash_of(windows: Sequence[torch.Tensor]) -> str:
    """Return the SHA-256 of windows: lengths and ids, as little-endian int64."""
    digest = hashlib.sha256()
    for window in windows:
        values = [len(window), *window.tolist()]
        digest.update(b"".join(item.to_bytes(8, "little") for item in values))
    return digest.hexdigest()


def _drawn(maker: Documents, rng: random.Random) -> Iterator[Document]:
    for place, row in drawn_rows(maker.config, rng):
        yield maker.of_row(row, place=place)


def _given(
    maker: Documents,
    texts: Sequence[str] | Sequence[Sequence[int]],
    rng: random.Random,
) -> Iterator[Document]:
    for index in shuffled(len(texts), rng):
        item = texts[index]
        if isinstance(item, str):
            yield maker.of_text(item)
        else:
            yield maker.of_ids(item, place=f"texts[{index}]")


def _synthetic(
    config: CalibrationConfig, encoder: Encoder, vocab_size: int
) -> CalibrationSet:
    lead = encoder.text_lead()
    drawn = synthetic_windows(
        vocab_size=vocab_size,
        count=config.num_samples,
        length=config.seq_len - len(lead),
        seed=config.seed,
        excluded=encoder.special_ids,
    )
    windows = Windows([lead + window.tolist() for window in drawn], documents=0)
    return _described(config, windows, SYNTHETIC, [SYNTHETIC], vocab_size, encoder)


def _described(
    config: CalibrationConfig,
    windows: Windows,
    source: str,
    kinds: Sequence[str],
    vocab_size: int,
    encoder: Encoder,
) -> CalibrationSet:
    """Check the ids and describe the windows."""
    for ids in windows.ids:
        for token in (min(ids), max(ids)):
            check_id(token, vocab_size=vocab_size, place=f"Calibration data {source}")
    tensors = [torch.tensor(ids) for ids in windows.ids]
    begin = sum(encoder.without_bos(ids)[1] for ids in windows.ids)
    description: dict[str, Any] = {
        "source": source,
        "kinds": list(kinds),
        "windows": len(tensors),
        "seq_len": config.seq_len,
        "seed": config.seed,
        "bos": config.bos,
        "windows_with_bos": begin,
        "documents_read": windows.documents,
        "joined": windows.joined,
        "overlapping": windows.overlapping,
    }
    if source == config.source and source != SYNTHETIC and not is_local(source):
        description |= {"subset": config.subset, "split": config.split}
    return CalibrationSet(tensors, hash_of(tensors), source, description)


def _part(data: CalibrationSet, windows: list[torch.Tensor]) -> CalibrationSet:
    description = data.description | {"windows": len(windows), "of": data.sha256}
    return CalibrationSet(windows, hash_of(windows), data.source, description)


def _warn(windows: Windows, source: str, config: CalibrationConfig) -> None:
    """Say what differs from what was asked for."""
    if windows.joined and not config.joined:
        logger.warning(
            "Calibration data %s: documents are joined, as %s.", source, windows.joined
        )
    if windows.joined and windows.overlapping:
        logger.warning(
            "Calibration data %s: too little text for %d windows of %d tokens, so that "
            "windows overlap.",
            source,
            config.num_samples,
            config.seq_len,
        )
