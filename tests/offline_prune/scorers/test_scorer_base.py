"""What every scorer does: exact counts, zeros, fallbacks, errors."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from support.input_statistics import gaussian, statistics_of

from nmsparse.pattern import NMPattern
from offline_prune.errors import InputError
from offline_prune.scorers import DEFAULT_SCORER, scorers
from offline_prune.scorers.magnitude import Magnitude
from offline_prune.selection import LayerTarget
from offline_prune.statistics.inputs import InputStatistics
from offline_prune.statistics.needs import Need

NAMES = list(scorers)
DATA = [name for name in NAMES if scorers.get(name)().required]
WEIGHT, INPUTS = gaussian(12, 32)
STATISTICS = statistics_of(*INPUTS)
UNSEEN = InputStatistics(32, needs=Need)
ROWS = torch.arange(12) * 2
TARGETS = [
    *(LayerTarget.count(count) for count in (0, 1, 133, 12 * 32)),
    *(LayerTarget.nm(NMPattern(n, m)) for n, m in ((1, 4), (2, 4), (6, 8), (16, 32))),
    LayerTarget.per_row(ROWS),
]


def describe(target):
    return str(target.pattern or target.removed)


def test_registry():
    assert NAMES == ["cvr", "magnitude", "ria", "sparsegpt", "wanda"]
    assert DEFAULT_SCORER in scorers
    assert sorted(DATA) == ["cvr", "ria", "sparsegpt", "wanda"]
    for name in NAMES:
        scorer = scorers.get(name)
        assert scorer.name == name
        assert scorer.title
        assert "arXiv" in scorer.paper or "ICLR" in scorer.paper
        assert all(field.description for field in scorer.model_fields.values())


def test_listing_scorers_loads_no_torch():
    program = (
        "import sys, offline_prune.scorers as s, offline_prune.compensation as c\n"
        "assert list(s.scorers) and list(c.compensations)\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("target", TARGETS, ids=describe)
@pytest.mark.parametrize("compare", [None, "row", "layer"])
def test_removes_exactly_what_was_asked(name, target, compare):
    weight = WEIGHT.bfloat16()
    before = weight.clone()
    pruned = scorers.get(name)(compare=compare).prune(weight, STATISTICS, target)
    assert torch.equal(weight, before)
    assert pruned.fallback is None
    assert pruned.weight.dtype is torch.float32
    assert pruned.keep.dtype is torch.bool
    assert int((~pruned.keep).sum()) == target.total(weight.shape)
    assert torch.equal(pruned.weight != 0, pruned.keep)
    assert not pruned.weight[~pruned.keep].signbit().any()
    gone = (~pruned.keep).sum(1)
    if target.rows is not None:
        assert torch.equal(gone, target.rows)
    elif target.pattern is not None:
        kept = pruned.keep.view(12, -1, target.pattern.m).sum(-1)
        assert (kept == target.pattern.n).all()
    elif compare == "row":
        assert gone.max() - gone.min() <= 1


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("target", TARGETS[2::2], ids=describe)
def test_layer_without_tokens_is_pruned_by_magnitude(name, target):
    scorer = scorers.get(name)()
    pruned = scorer.prune(WEIGHT, UNSEEN, target)
    expected = Magnitude(compare=scorer.comparison).prune(WEIGHT, None, target)
    assert torch.equal(pruned.keep, expected.keep)
    assert torch.equal(pruned.weight, expected.weight)
    assert pruned.fallback == (
        "no calibration token reached this layer: pruned by magnitude"
    )


@pytest.mark.parametrize("name", DATA)
def test_layer_of_zero_inputs_is_pruned_by_magnitude(name):
    scorer = scorers.get(name)()
    pruned = scorer.prune(WEIGHT, statistics_of(torch.zeros(3, 32)), TARGETS[2])
    expected = Magnitude(compare=scorer.comparison).prune(WEIGHT, None, TARGETS[2])
    assert torch.equal(pruned.keep, expected.keep)
    assert "every calibration input of this layer is zero" in pruned.fallback


@pytest.mark.parametrize("name", DATA)
def test_missing_statistics_are_refused(name):
    with pytest.raises(ValueError, match=f"Scorer {name}: no input statistics"):
        scorers.get(name)().prune(WEIGHT, None, TARGETS[2])


@pytest.mark.parametrize("name", DATA)
def test_statistics_of_another_layer_are_refused(name):
    with pytest.raises(ValueError, match=r"16 inputs for a weight of shape \(12, 32\)"):
        scorers.get(name)().prune(WEIGHT, statistics_of(torch.ones(2, 16)), TARGETS[2])


@pytest.mark.parametrize("name", NAMES)
def test_weight_that_is_not_a_number_is_refused(name):
    weight = WEIGHT.clone()
    weight[3, 4] = float("nan")
    with pytest.raises(ValueError, match=r"NaN|not finite"):
        scorers.get(name)().prune(weight, STATISTICS, TARGETS[2])


@pytest.mark.parametrize("name", NAMES)
def test_unknown_option_gets_a_hint(name):
    with pytest.raises(InputError, match="Did you mean: compare"):
        scorers.get(name).parse({"compares": "row"}, source="recipe")


@pytest.mark.parametrize("name", DATA)
def test_scores_have_the_shape_of_the_weight(name):
    scores = scorers.get(name)().scores(WEIGHT, STATISTICS)
    assert scores.shape == WEIGHT.shape
    assert scores.dtype is torch.float32
    assert (scores >= 0).all()
