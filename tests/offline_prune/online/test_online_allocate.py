"""A byte budget split over layers: never exceeded, never left lying."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offline_prune.errors import InputError
from offline_prune.online.allocate import LayerBytes, allocate, budget_bytes
from offline_prune.online.levels import Levels
from offline_prune.online.profiles import levels_of_profile

FOUR = Levels.nm("4")
ROWS = Levels(None, 16)


def total(chosen, layers, levels):
    return sum(layers[name].at(level, levels) for name, level in chosen.items())


def test_bytes_of_a_level():
    layer = LayerBytes(in_features=64, out_features=10, item=2, extra=7)
    assert layer.dense == 1280
    assert layer.at(1, FOUR) == 320 + 7
    # A dense layer reads no learned tensors.
    assert layer.at(4, FOUR) == 1280


def test_the_sensitive_layer_gets_more():
    layers = {"a": LayerBytes(16, 16, 2), "b": LayerBytes(16, 16, 2)}
    costs = {"a": [8.0, 4.0, 2.0, 0.0], "b": [0.8, 0.4, 0.2, 0.0]}
    assert allocate(costs, layers, levels=FOUR, budget=0.5) == {"a": 3, "b": 1}


def test_a_bump_is_jumped_over():
    layers = {"a": LayerBytes(16, 16, 2)}
    costs = {"a": [4.0, 5.0, 1.0, 0.0]}
    assert allocate(costs, layers, levels=FOUR, budget=0.75) == {"a": 3}
    # Where the jump does not fit, nothing is bought that makes it worse.
    assert allocate(costs, layers, levels=FOUR, budget=0.5) == {"a": 1}


def convex(draw):
    falls = sorted(draw, reverse=True)
    costs = [0.0]
    for fall in reversed(falls):
        costs.insert(0, costs[0] + fall)
    return costs


@settings(deadline=None)
@given(
    st.lists(
        st.lists(st.floats(0.01, 10), min_size=3, max_size=3), min_size=1, max_size=4
    ),
    st.floats(0.25, 1.0),
)
def test_best_of_all_for_convex_costs_and_equal_layers(falls, budget):
    names = [f"l{i}" for i in range(len(falls))]
    layers = dict.fromkeys(names, LayerBytes(16, 8, 2))
    costs = {name: convex(f) for name, f in zip(names, falls, strict=True)}
    chosen = allocate(costs, layers, levels=FOUR, budget=budget)
    room = budget_bytes(layers, budget)
    assert total(chosen, layers, FOUR) <= room
    price = sum(costs[n][level - 1] for n, level in chosen.items())
    for other in itertools.product(range(1, 5), repeat=len(names)):
        if total(dict(zip(names, other, strict=True)), layers, FOUR) <= room:
            rival = sum(costs[n][x - 1] for n, x in zip(names, other, strict=True))
            assert price <= rival + 1e-9


@settings(deadline=None)
@given(st.integers(0, 10_000), st.floats(0.35, 0.95))
def test_within_the_budget_and_nothing_more_to_gain(seed, budget):
    import random

    draw = random.Random(seed)
    layers = {
        f"l{i}": LayerBytes(64, draw.randint(1, 99), 2, draw.randint(0, 300))
        for i in range(5)
    }
    costs = {
        n: [*sorted((draw.random() for _ in range(15)), reverse=True), 0.0]
        for n in layers
    }
    try:
        chosen = allocate(costs, layers, levels=ROWS, budget=budget)
    except InputError:
        least = sum(layer.at(1, ROWS) for layer in layers.values())
        assert least > budget_bytes(layers, budget)
        return
    used, room = total(chosen, layers, ROWS), budget_bytes(layers, budget)
    assert used <= room
    for name, level in chosen.items():
        for more in range(level + 1, 17):
            step = layers[name].at(more, ROWS) - layers[name].at(level, ROWS)
            assert used + step > room or costs[name][more - 1] >= costs[name][level - 1]


def test_a_budget_below_the_least_level():
    layers = {"a": LayerBytes(16, 16, 2, extra=100)}
    with pytest.raises(InputError, match=r"level 2 of 4 .* learned tensors included"):
        allocate({"a": [1, 1, 1, 0]}, layers, levels=FOUR, budget=0.5, lower=2)


def test_a_profile_gives_blocks_their_share():
    layers = {n: LayerBytes(64, 32, 2) for n in ("0.a", "0.b", "1.a", "1.b")}
    chosen = levels_of_profile(
        [0.25, 0.75], [["0.a", "0.b"], ["1.a", "1.b"]], layers, levels=ROWS, budget=0.5
    )
    assert chosen == {"0.a": 12, "0.b": 12, "1.a": 4, "1.b": 4}


@settings(deadline=None)
@given(st.lists(st.floats(0.1, 0.9), min_size=2, max_size=5), st.integers(0, 64))
def test_a_profile_never_reads_more_than_the_budget(shares, extra):
    names = [[f"{i}.a", f"{i}.b"] for i in range(len(shares))]
    layers = {n: LayerBytes(64, 40, 2, extra) for block in names for n in block}
    chosen = levels_of_profile(shares, names, layers, levels=ROWS, budget=0.5)
    assert total(chosen, layers, ROWS) <= budget_bytes(layers, 0.5)
    assert min(chosen.values()) >= 1
