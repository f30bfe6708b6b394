"""Random tokens: reproducible, without special tokens, few of them frequent."""

from __future__ import annotations

import torch
from support import tiny

from offline_prune.calibration import CalibrationConfig, load_calibration
from offline_prune.calibration.synthetic import synthetic_windows


def test_windows_are_whole_and_reproducible():
    config = CalibrationConfig(num_samples=4, seq_len=64, seed=3)
    first, again = (
        load_calibration(config, tiny.tokenizer(), vocab_size=259) for _ in range(2)
    )
    assert first.sha256 == again.sha256
    assert first.source == "synthetic"
    ids = torch.stack(first.windows)
    assert ids.shape == (4, 64)
    assert ids[:, 0].eq(1).all(), "the tokenizer puts <bos> before a text"
    assert ids[:, 1:].min() > 2, "no special token"
    assert ids.max() < 259
    other = load_calibration(
        config.model_copy(update={"seed": 4}), tiny.tokenizer(), vocab_size=259
    )
    assert other.sha256 != first.sha256


def test_no_tokenizer_is_needed():
    config = CalibrationConfig(num_samples=2, seq_len=8)
    found = load_calibration(config, None, vocab_size=11)
    assert all(window.max() < 11 for window in found.windows)


def test_frequencies_follow_zipf():
    windows = synthetic_windows(
        vocab_size=50, count=10, length=20_000, seed=0, excluded=[0, 7]
    )
    counts = torch.cat(windows).bincount(minlength=50).double()
    assert counts[[0, 7]].tolist() == [0, 0]
    rank = {token: i for i, token in enumerate(t for t in range(50) if t not in (0, 7))}
    weights = torch.tensor([1 / (10 + rank[t]) if t in rank else 0 for t in range(50)])
    expected = weights.double() / weights.sum() * 200_000
    error = (counts - expected)[expected > 0] / expected[expected > 0].sqrt()
    assert error.abs().max() < 5, "five standard deviations"
