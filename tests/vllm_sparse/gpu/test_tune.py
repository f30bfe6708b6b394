"""Measuring at load, with a clock that knows what every way takes."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from vllm import distributed

from nmsparse import sparsify
from nmsparse.ops.linear.tiles import GatherTiles
from nmsparse.packed import PackedWeight
from nmsparse.pattern import NMPattern
from vllm_sparse.gpu import tune as module
from vllm_sparse.gpu.choice import NEVER, Plan
from vllm_sparse.gpu.linear import GpuLinear
from vllm_sparse.gpu.tune import context, measure_layer, rotated, table_key, tune
from vllm_sparse.gpu.ways import Terms
from vllm_sparse.gpu.weights import Held
from vllm_sparse.table import CACHE_ENV, TOKENS

K, OUT = 64, 32
CPU = torch.device("cpu")


class FakeClock:
    """Takes plans instead of time; ``rules`` gives seconds of a plan and tokens."""

    name, multiprocessors = "A GPU", 4

    def __init__(self, rules, free=1 << 40):
        self.rules, self.free = rules, free
        self.asked, self.released = [], 0

    def free_bytes(self):
        return self.free

    def release(self):
        self.released += 1

    def seconds(self, calls):
        assert all(isinstance(call, partial) for call in calls)
        x, plan, _, masks, counters = calls[0].args
        assert all(call.args[1] == plan for call in calls)
        assert len(masks.sparse) >= len(x)
        assert counters.tolist() == [0, 0]
        self.asked.append((plan, len(x), len(calls)))
        found = self.rules(plan, len(x))
        if found is None:
            raise RuntimeError("out of shared memory")
        return found


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
    monkeypatch.setenv(CACHE_ENV, str(tmp_path))
    monkeypatch.setattr(module, "_TABLES", {})


def terms_of(**options):
    rows = torch.randn(K, OUT, generator=torch.Generator().manual_seed(0))
    return Terms(rows, None, 8, 16, 2, **options)


def linear_of(**options):
    return GpuLinear(Held(), sparse=True, **({"dense_above": 16} | options))


def gather_wins_until(last):
    def rules(plan, tokens):
        if plan.way != "gather":
            return 10.0
        # The widest tiles are best, and every token costs as much.
        return 10.0 / plan.tiles.block_o + (1.0 if tokens <= last else 20.0)

    return rules


def test_a_way_that_has_lost_is_not_tried_again():
    clock = FakeClock(gather_wins_until(2))
    times = measure_layer(linear_of(), terms_of(), clock)
    assert list(times) == list(TOKENS)
    tried = {
        t: [p for p, n, _ in clock.asked if n == t and p.way == "gather"]
        for t in TOKENS
    }
    assert tried[1]
    assert tried[2]
    assert tried[4], "where it lost"
    assert not tried[8]
    assert not tried[16]
    assert len(tried[2]) < len(tried[1]), "slow tiles are left out"
    assert all(set(found) >= {"dense"} for found in times.values())
    linear = linear_of(times=times)
    best = max(p.tiles.block_o for p in tried[1])
    assert [linear.plan(t).way for t in TOKENS] == ["gather"] * 2 + ["dense"] * 3
    assert linear.plan(1).tiles.block_o == linear.plan(2).tiles.block_o == best


def test_masked_is_measured_where_every_step_is_sparse():
    clock = FakeClock(lambda plan, tokens: 1.0)
    times = measure_layer(linear_of(dense_above=NEVER), terms_of(), clock)
    assert all("masked" in found and "dense" not in found for found in times.values())


def test_shared_lists_are_measured_only_if_they_are_asked_for():
    rules = lambda plan, tokens: 1.0 if plan.way == "shared" else 2.0  # noqa: E731
    clock = FakeClock(rules)
    measure_layer(linear_of(), terms_of(), clock)
    assert "shared" not in {plan.way for plan, _, _ in clock.asked}
    times = measure_layer(linear_of(shared=True), terms_of(), clock)
    assert {t for p, t, _ in clock.asked if p.way == "shared"} == {4, 8, 16}
    linear = linear_of(shared=True, times=times)
    assert [linear.plan(t).way for t in (2, 3, 16)] == ["dense", "shared", "shared"]
    assert isinstance(linear.plan(3).tiles, GatherTiles)


@pytest.mark.parametrize(("above", "way"), [(16, "packed"), (NEVER, "masked+packed")])
def test_a_packed_copy_is_measured(above, way):
    weight = sparsify(torch.randn(OUT, K), NMPattern(1, 4))
    terms = replace(terms_of(), packed=PackedWeight.pack(weight))
    clock = FakeClock(lambda plan, tokens: 1.0 if plan.way == way else 2.0)
    times = measure_layer(linear_of(dense_above=above), terms, clock)
    assert linear_of(dense_above=above, times=times).plan(16) == Plan(way)


def test_tiles_that_cannot_run_are_left_out(monkeypatch):
    said = []
    monkeypatch.setattr(module.logger, "warning_once", lambda *a: said.append(a))

    def rules(plan, tokens):
        if plan.way != "gather":
            return 10.0
        return None if plan.tiles.block_o > 64 else 1.0

    times = measure_layer(linear_of(), terms_of(), FakeClock(rules))
    widths = {Plan.parse(n).tiles.block_o for n in times[1] if n != "dense"}
    assert widths
    assert max(widths) <= 64
    assert said == []
    nothing = FakeClock(lambda plan, tokens: 1.0 if plan.way == "dense" else None)
    assert set(measure_layer(linear_of(), terms_of(), nothing)[1]) == {"dense"}
    assert said
    broken = FakeClock(lambda plan, tokens: None)
    with pytest.raises(RuntimeError, match="shared memory"):  # of the first way
        measure_layer(linear_of(), terms_of(), broken)


def test_weights_are_rotated_in_copies_as_memory_allows():
    terms = terms_of()
    layers = rotated(terms, 1 << 40)
    assert len(layers) == 128
    assert layers[0] is terms
    assert len({layer.rows.data_ptr() for layer in layers}) == len(layers)
    assert all(torch.equal(layer.rows, terms.rows) for layer in layers)
    assert rotated(terms, 0) == [terms]
    assert len(rotated(terms, 12 * terms.rows.nbytes)) == 1 + 3
    large = replace(terms, rows=torch.empty(1 << 10, 1 << 15))  # 128 MiB
    module_bytes, count = module._ROTATED, len(rotated(large, 1 << 40))
    assert count == module_bytes // large.rows.nbytes == 2
    # Of a layer whose input stays dense, the copies have its layout too.
    o_major = replace(terms, rows=torch.randn(OUT, K).t())
    assert rotated(o_major, 1 << 40)[1].rows.stride() == o_major.rows.stride()


def test_a_table_is_measured_once_in_a_process_and_once_on_a_machine(monkeypatch):
    clock = FakeClock(gather_wins_until(4))
    monkeypatch.setattr(module, "clock_of", lambda device: clock)
    linear, terms = linear_of(), terms_of()
    times = tune(linear, terms, "8:16 some")
    asked = len(clock.asked)
    assert asked
    assert clock.released == 1
    assert tune(linear, terms_of(), "8:16 some") == times
    assert len(clock.asked) == asked, "not twice in a process"
    monkeypatch.setattr(module, "_TABLES", {})
    assert tune(linear, terms, "8:16 some") == times
    assert len(clock.asked) == asked, "from the machine's cache"
    tune(linear, terms, "4:16 some")
    assert len(clock.asked) > asked
    clock.name = "Another GPU"
    monkeypatch.setattr(module, "_TABLES", {})
    asked = len(clock.asked)
    tune(linear, terms, "8:16 some")
    assert len(clock.asked) > asked


def test_nothing_is_measured_on_a_cpu_or_if_kernels_are_on(monkeypatch):
    assert tune(linear_of(), terms_of(), "x") == {}
    clock = FakeClock(gather_wins_until(4))
    monkeypatch.setattr(module, "clock_of", lambda device: clock)
    assert tune(linear_of(always=True), terms_of(), "x") == {}
    assert clock.asked == []


def test_keys_differ_in_what_decides_the_cost():
    packed = PackedWeight.pack(torch.ones(OUT, K))
    made = [
        table_key(linear_of(), terms_of(), "a"),
        table_key(linear_of(), terms_of(), "b"),
        table_key(linear_of(shared=True), terms_of(), "a"),
        table_key(linear_of(dense_above=NEVER), terms_of(), "a"),
        table_key(linear_of(), terms_of(packed=packed), "a"),
        table_key(linear_of(), replace(terms_of(), rows=torch.ones(K, 2)), "a"),
        table_key(linear_of(), replace(terms_of(), rows=torch.ones(K, OUT).half()), ""),
    ]
    assert len(set(made)) == len(made)
    assert made[0] == "gpu 64x32 torch.float32 a dense"


def test_the_context_names_the_gpu_and_versions():
    found = context(FakeClock(None))
    assert found["gpu"] == "A GPU"
    assert found.keys() == {
        *("gpu", "driver", "torch", "triton", "vllm", "vllm_sparse")
    }  # fmt: skip
    assert all(isinstance(value, str) for value in found.values())


def test_a_measurement_that_fails_stops_no_server(monkeypatch):
    said = []
    monkeypatch.setattr(module.logger, "warning_once", lambda *a: said.append(a))
    broken = FakeClock(lambda plan, tokens: None)
    monkeypatch.setattr(module, "clock_of", lambda device: broken)
    assert tune(linear_of(), terms_of(), "8:16 some") == {}
    assert "out of shared memory" in str(said[0][-1])
    assert (broken.released, len(broken.asked)) == (1, 1)
    assert tune(linear_of(), terms_of(), "8:16 some") == {}
    assert len(broken.asked) == 1, "not again for every layer of this shape"
    # The next start measures again: nothing was remembered.
    monkeypatch.setattr(module, "_TABLES", {})
    working = FakeClock(gather_wins_until(4))
    monkeypatch.setattr(module, "clock_of", lambda device: working)
    assert tune(linear_of(), terms_of(), "8:16 some")[1]


def test_all_ranks_take_the_first_ones_table(monkeypatch):
    clock = FakeClock(gather_wins_until(4))
    monkeypatch.setattr(module, "clock_of", lambda device: clock)
    first = {1: {"dense": 2.0, "packed": 0.5, "gather": 1.0}}
    asked = []

    class Group:
        world_size = 2

        def broadcast_object(self, mine, src):
            asked.append((mine, src))
            return first

    monkeypatch.setattr(distributed, "model_parallel_is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_tp_group", Group)
    # This rank has no packed copy, whatever the first one has.
    assert tune(linear_of(), terms_of(), "a") == {1: {"dense": 2.0, "gather": 1.0}}
    assert asked[0][0][1].keys() > {"dense"}
    assert asked[0][1] == 0
    packed = replace(terms_of(), packed=PackedWeight.pack(torch.ones(OUT, K)))
    assert tune(linear_of(), packed, "a") == first
    # Layers whose input stays dense differ from rank to rank.
    dense = GpuLinear(Held(), sparse=False)
    assert 16 in tune(dense, packed, "a")
    assert len(asked) == 2
