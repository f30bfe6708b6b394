"""Which way a number of tokens takes: the rule, and names that survive a table."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from nmsparse.ops.linear.tiles import GatherTiles
from vllm_sparse.gpu.choice import (
    NEVER,
    Plan,
    choose_plan,
    choose_product,
    first_way,
)
from vllm_sparse.gpu.linear import GpuLinear
from vllm_sparse.gpu.weights import Held
from vllm_sparse.phases import Steps
from vllm_sparse.table import TOKENS

TILES = GatherTiles(128, 32, 8, 4, 1)
FAST = TOKENS[-1]


def ways(times, tokens=range(1, 19), **options):
    given = {"always": False, "shared": False, "dense_above": FAST} | options
    return [str(choose_plan(times, t, **given)) for t in tokens]


def table(**seconds):
    return {tokens: dict(seconds) for tokens in TOKENS}


@pytest.mark.parametrize("tiles", [None, TILES, GatherTiles(64, 16, 1, 8, 3)])
@pytest.mark.parametrize("way", ["gather", "shared"])
def test_a_name_says_all_of_a_plan(way, tiles):
    plan = Plan(way, tiles)
    assert Plan.parse(str(plan)) == plan
    assert Plan.parse("masked+packed") == Plan("masked+packed")
    assert str(Plan("gather", TILES)) == "gather 128x32x8 w4 s1"


def test_the_first_way():
    assert first_way(NEVER) == Plan("masked")
    assert first_way(0) == first_way(16) == Plan("dense")


@pytest.mark.parametrize(("above", "first"), [(FAST, "dense"), (NEVER, "masked")])
def test_what_was_not_measured_is_not_left(above, first):
    assert set(ways({}, dense_above=above)) == {first}
    # Times of the other first way prove nothing.
    other = {"dense": "masked", "masked": "dense"}[first]
    assert set(ways(table(**{other: 9.0, "gather": 1.0}), dense_above=above)) == {first}


@pytest.mark.parametrize(("above", "first"), [(FAST, "dense"), (NEVER, "masked")])
def test_the_fastest_tiles_if_they_win_clearly(above, first):
    slow, quick = str(Plan("gather", TILES)), "gather 64x32x8 w4 s1"
    times = table(**{first: 2.0, slow: 1.5, quick: 1.0})
    assert ways(times, dense_above=above) == [quick] * 16 + [first] * 2
    near = table(**{first: 1.04, quick: 1.0})
    assert set(ways(near, dense_above=above)) == {first}


def test_tokens_between_take_the_next_larger_entry():
    times = {t: {"dense": 2.0, "gather": 1.0 if t <= 4 else 3.0} for t in TOKENS}
    assert ways(times) == ["gather"] * 4 + ["dense"] * 14


def test_steps_above_the_limit_are_dense():
    times = table(dense=2.0, gather=1.0)
    assert ways(times, range(1, 6), dense_above=2) == ["gather"] * 2 + ["dense"] * 3


def test_a_shared_list_only_where_it_is_asked_for_and_legal():
    times = table(dense=3.0, gather=2.0, shared=1.0)
    assert ways(times) == ["gather"] * 16 + ["dense"] * 2
    found = ways(times, shared=True)
    assert found == ["gather"] * 2 + ["shared"] * 14 + ["dense"] * 2


def test_a_packed_copy_multiplies_what_the_first_way_does():
    times = table(dense=3.0, masked=3.0, packed=1.0)
    times = {t: found | {"masked+packed": 2.0} for t, found in times.items()}
    assert set(ways(times, range(1, 17))) == {"packed"}
    assert set(ways(times, range(1, 17), dense_above=NEVER)) == {"masked+packed"}
    assert str(choose_product(times, 16)) == "packed"
    assert str(choose_product(times, 17)) == "dense"
    assert str(choose_product({}, 1)) == "dense"


@pytest.mark.parametrize("above", [FAST, NEVER])
def test_without_measuring_two_tokens_gather(above):
    first = str(first_way(above))
    found = ways({}, always=True, dense_above=above)
    assert found == ["gather"] * 2 + [first] * 16
    found = ways({}, always=True, shared=True, dense_above=above)
    assert found == ["gather"] * 2 + ["shared"] * 14 + [first] * 2


def test_a_layer_explains_itself():
    times = {t: {"dense": 3.0, "gather 128x32x8 w4 s1": t / 2} for t in TOKENS}
    linear = GpuLinear(Held(), sparse=True, dense_above=FAST, times=times)
    assert linear.explain() == {
        "1": "gather 6.00x",
        "2": "gather 3.00x",
        "4": "gather 1.50x",
        "8": "dense 1.00x",
        "16": "dense 1.00x",
    }
    assert linear.describe() == "our K-major rows for few tokens, dense for many"
    assert linear.plan(99) is linear.plan(17)
    dense = GpuLinear(Held(), sparse=False, times=table(dense=2.0, packed=1.0))
    assert set(dense.explain().values()) == {"packed 2.00x"}
    assert dense.first == "dense"


WEIGHT = 1000


def work(*steps, **options):
    """Return what a layer that keeps a quarter of its channels did in these steps."""
    given = {"sparse": True, "always": True, "shared": True, "dense_above": FAST}
    held = options.pop("held", Held())
    linear = GpuLinear(held, weight_bytes=WEIGHT, density=0.25, **(given | options))
    return linear.work([Steps(*step) for step in steps])


@pytest.mark.parametrize(
    ("step", "way", "read", "reason"),
    [
        ((1, True), "gather", 250, None),
        ((2, True), "gather", 500, None),  # at most: no two tokens share a channel
        ((8, True), "shared", 250, None),
        ((17, True), "dense", WEIGHT, "many_tokens"),
        ((2, None), "gather", WEIGHT, "mixed_step"),
        ((2, False), "gather", WEIGHT, None),  # a list of all channels
    ],
)
def test_calls_follow_from_steps(step, way, read, reason):
    found = work((*step, 3))
    assert found.calls == {way: 3}
    assert found.fallbacks == ({reason: 3} if reason else {})
    assert (found.read, found.skipped) == (3 * read, 3 * (WEIGHT - read))


def test_steps_of_other_layers():
    assert work((1, True, 2), always=False).fallbacks == {"dense_faster": 2}
    packed = SimpleNamespace(nbytes=600)
    times = table(dense=2.0, packed=1.0)
    found = work((4, True, 2), sparse=False, held=Held(0.5, packed), times=times)
    assert (found.calls, found.skipped) == ({"packed": 2}, 2 * (WEIGHT - 600))
    broken = GpuLinear(Held(), sparse=True, weight_bytes=WEIGHT, always=True)
    broken.use_dense()
    assert broken.work([Steps(1, True, 1)]).fallbacks == {"no_kernel": 1}
    assert work().calls == {}
