"""Gradient steps: their schedule, and that they lower the error."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from nmsparse import parse_pattern
from nmsparse.ops.online import Online
from offline_prune.online.fit.gradient import descend, schedule
from offline_prune.online.fit.judge import HeldOut, judge
from offline_prune.online.fit.options import FitOptions
from offline_prune.online.fit.parts import learned_tensors, neutral, with_tensors
from offline_prune.online.fit.resident import Resident
from offline_prune.pipeline.capture import Call

K, D, TOKENS = 16, 12, 20


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up_proj, self.gate_proj = nn.Linear(D, K), nn.Linear(D, K)
        self.down_proj = nn.Linear(K, D, bias=False)

    def forward(self, hidden_states):
        act = self.up_proj(hidden_states) * self.gate_proj(hidden_states).tanh()
        return hidden_states + self.down_proj(act), None


@pytest.fixture
def resident():
    torch.manual_seed(0)
    block = Block().requires_grad_(False)
    windows = [torch.arange(TOKENS)] * 4
    capture = SimpleNamespace(call=lambda index, window: Call((), {}))
    return Resident(
        block,
        "layers.0",
        index=0,
        capture=capture,
        windows=windows,
        dense_first_token=False,
    )


def ready(resident, *mitigation):
    rules = {}
    for name, layer in resident.layers.items():
        online = Online(parse_pattern("2:4"), "magnitude", mitigation)
        rules[name] = neutral(online, layer.weight(), rank=2)
    return rules


def states(resident):
    g = torch.Generator().manual_seed(1)
    hidden = [torch.randn(1, TOKENS, D, generator=g) + 0.5 for _ in range(4)]
    wanted = [resident.output(i, h) for i, h in enumerate(hidden)]
    return hidden, wanted


def error(resident, rules, hidden, wanted):
    for name, online in rules.items():
        resident.set(name, online)
    pairs = zip(hidden, wanted, strict=True)
    windows = [HeldOut(i, h, w, w) for i, (h, w) in enumerate(pairs)]
    found = judge(resident, windows, weight_clip=4.0)
    resident.restore()
    return found.objective


@pytest.mark.parametrize("mitigation", [("ls", "output_shift"), ("l_pts", "var")])
def test_steps_lower_the_error(resident, mitigation):
    hidden, wanted = states(resident)
    rules = ready(resident, *mitigation)
    assert set(rules) == {"layers.0.gate_up_proj", "layers.0.down_proj"}
    before = error(resident, rules, hidden, wanted)
    options = FitOptions(steps=80, learning_rate=1e-2)
    after = descend(resident, rules, hidden=hidden, wanted=wanted, options=options)
    assert error(resident, after, hidden, wanted) < 0.9 * before
    # The rules that were given are not touched, nor is the block.
    assert not any(t.any() for r in rules.values() for t in learned_tensors(r).values())
    assert all("forward" not in vars(module) for module in resident.block.modules())


def test_a_low_rank_is_trained_from_where_it_is(resident):
    hidden, wanted = states(resident)
    rules = ready(resident, "r_sparse")
    options = FitOptions(steps=20, learning_rate=1e-2)
    arguments = {"hidden": hidden, "wanted": wanted, "options": options}
    still = descend(resident, rules, **arguments)
    assert not any(t.any() for r in still.values() for t in learned_tensors(r).values())
    g = torch.Generator().manual_seed(2)
    for name, online in rules.items():
        old = learned_tensors(online)
        new = {k: torch.randn(t.shape, generator=g) / 8 for k, t in old.items()}
        rules[name] = with_tensors(online, new)
    before = error(resident, rules, hidden, wanted)
    after = descend(resident, rules, **arguments)
    assert error(resident, after, hidden, wanted) < before


def test_nothing_happens_without_steps(resident):
    hidden, wanted = states(resident)
    rules = ready(resident, "ls")
    arguments = {"hidden": hidden, "wanted": wanted, "options": FitOptions()}
    assert descend(resident, rules, **arguments) == rules


def test_it_is_the_same_every_time_and_under_no_grad(resident):
    hidden, wanted = states(resident)
    rules = ready(resident, "ls", "output_shift")
    options = FitOptions(steps=5)
    arguments = {"hidden": hidden, "wanted": wanted, "options": options}
    one = descend(resident, rules, **arguments)
    with torch.no_grad():
        two = descend(resident, rules, **arguments)
    for name in rules:
        left, right = learned_tensors(one[name]), learned_tensors(two[name])
        assert all(torch.equal(left[k], right[k]) for k in left)
        assert all(t.any() for t in left.values())


def test_the_learning_rate_warms_up_and_falls_to_nothing():
    found = [schedule(step, 100) for step in range(100)]
    assert found[:4] == [0.25, 0.5, 0.75, 1.0]
    assert all(a > b for a, b in pairwise(found[3:]))
    assert found[-1] == pytest.approx(1 / 97)
    assert schedule(0, 1) == 1.0
