"""Early blocks cost more, the last one what was measured, and levels follow."""

from __future__ import annotations

from dataclasses import dataclass
from math import exp

import pytest
from support.zoo import build, windows

from offline_prune.online.amplify import amplified
from offline_prune.online.calibrate import calibrate
from offline_prune.online.config import CalibrateConfig
from offline_prune.online.results import read_calibration


@dataclass
class Layer:
    name: str


BLOCKS = [[Layer("a"), Layer("b")], [Layer("c")], [Layer("d")]]
COSTS = {"a": [2.0, 0.0], "b": [3.0, 0.0], "c": [5.0, 0.0], "d": [7.0, 0.0]}


def test_the_factor_falls_from_the_first_block_to_one():
    found = amplified(COSTS, BLOCKS, 0.5)
    assert found["a"] == pytest.approx([2 * exp(0.5), 0])
    assert found["b"] == pytest.approx([3 * exp(0.5), 0])
    assert found["c"] == pytest.approx([5 * exp(0.25), 0])
    assert found["d"] == [7, 0]


def test_zero_and_a_single_block():
    assert amplified(COSTS, BLOCKS, 0.0) == COSTS
    assert amplified({"d": [7.0]}, BLOCKS[2:], 1.0)["d"] == pytest.approx([7 * exp(1)])


def test_a_calibration_gives_early_blocks_more_and_records_what_it_measured(tmp_path):
    model = build("llama", tmp_path / "model")
    text = {"seq_len": 32, "num_samples": 6}
    shares, costs = {}, {}
    for amplification in (0.0, 4.0):
        config = CalibrateConfig.parse(
            {"budget": 0.5, "amplification": amplification, "calibration": text},
            source="test",
        )
        folder = tmp_path / str(amplification)
        calibrate(model, config, output=folder, texts=windows(8))
        record = read_calibration(folder)
        first = [x for x in record.layers if ".layers.0." in x.name]
        shares[amplification] = sum(x.read_bytes for x in first)
        costs[amplification] = [x.costs for x in record.layers]
        assert record.read_bytes <= 0.5 * record.dense_bytes
    assert shares[4.0] > shares[0.0]
    assert costs[4.0] == costs[0.0]


def test_a_negative_one_is_refused():
    with pytest.raises(ValueError, match="amplification"):
        CalibrateConfig.parse({"budget": 0.5, "amplification": -1}, source="test")
