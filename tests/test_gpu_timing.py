"""Timing of GPU kernels, on a GPU that is pretended."""

from __future__ import annotations

import contextlib
import types

import pytest
import torch


@pytest.fixture
def scripts(repo_root, monkeypatch):
    folder = repo_root / "benchmarks"
    monkeypatch.syspath_prepend(str(folder))
    return folder


@pytest.fixture
def pretended_gpu(monkeypatch):
    """Stand in for CUDA graphs and events: a replay calls, a clock ticks per call."""
    ticks = [0.0]

    class Graph:
        def __init__(self):
            self.calls = 0

        def replay(self):
            ticks[0] += self.calls * 0.5

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.time = ticks[0]

        def elapsed_time(self, other):
            return other.time - self.time

        def synchronize(self):
            pass

    graphs = []

    @contextlib.contextmanager
    def capturing(graph):
        graphs.append(graph)
        yield
        graphs.remove(graph)

    stream = types.SimpleNamespace(wait_stream=lambda other: None)
    for name, value in {
        "CUDAGraph": Graph,
        "Event": Event,
        "Stream": lambda: stream,
        "current_stream": lambda: stream,
        "stream": lambda other: contextlib.nullcontext(),
        "graph": capturing,
        "synchronize": lambda: None,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return graphs


def test_graphs_rotate_over_all_copies(scripts, pretended_gpu):
    from gpu_timing import capture

    called = []

    def work(number):
        called.append((number, bool(pretended_gpu)))
        for graph in pretended_gpu:
            graph.calls += 1

    captured = capture(work, 7)
    assert captured.calls == 21
    inside = [number for number, is_captured in called if is_captured]
    assert inside == list(range(21))
    assert [number for number, is_captured in called if not is_captured]
    assert captured.sample(3) == pytest.approx(0.0005)
    assert captured.replays() == 2


def test_rows_of_a_step(scripts, pretended_gpu, tmp_path, monkeypatch):
    import gpu_step
    from gpu_modes import Mode, Unavailable
    from gpu_peer_triton import PeerTiles
    from gpu_weights import Shape, Weights

    slow, fast = PeerTiles(2, 1, 1), PeerTiles(1, 1, 1)

    def product(cost, wrong=False):
        def make(weights, xs):
            def call(number, tiles):
                for graph in pretended_gpu:
                    graph.calls += cost * tiles.block_k
                x = xs[number % len(xs)]
                return x @ weights.dense.t() + wrong

            def expected(number):
                return xs[number].float() @ weights.dense.float().t()

            return Mode(call, expected, 4000, (slow, fast))

        return make

    def missing(weights, xs):
        raise Unavailable("no such machine")

    def breaks(weights, xs):
        raise RuntimeError("broken\nsecond line")

    def only_eager(weights, xs):
        mode = product(1)(weights, xs)

        def call(number, tiles):
            if pretended_gpu:
                raise RuntimeError("not in a graph")
            return mode.run(number, tiles)

        return Mode(call, mode.expected, 4000, (fast,))

    modes = {
        **{"cublas": product(4), "8:16": product(2), "2:4": product(1, True)},
        **{"4:16": missing, "sparsify": breaks, "peer 50%": only_eager},
    }
    monkeypatch.setattr(gpu_step, "MODES", modes)
    torch.manual_seed(0)
    weights = Weights(Shape(32, 16), torch.bfloat16, torch.device("cpu"), 5)
    step = gpu_step.Step(weights, 2, list(modes), timed=True, most_tiles=None)
    step.prepare()
    copy = types.SimpleNamespace(bandwidth=lambda: 1e9)
    step.measure(copy, 3)
    found = {row["mode"]: row for row in step.rows}
    assert found["4:16"] == {
        **{"mode": "4:16", "status": "skipped", "reason": "no such machine"}
    }
    assert found["sparsify"]["reason"] == "RuntimeError: broken"
    assert found["peer 50%"]["reason"] == "RuntimeError: not in a graph"
    assert found["2:4"]["status"] == "wrong"
    assert "microseconds_p50" not in found["2:4"]
    row = found["8:16"]
    assert (row["status"], row["tiles_tried"]) == ("right", 2)
    assert row["tiles"] == fast._asdict()
    assert row["speed_vs_cublas_p50"] == 2
    assert row["microseconds_p50"] == 1000  # two ticks of half a millisecond
    assert row["copy_gb_per_s"] == 1
    assert row["gb_per_s"] == pytest.approx(0.004, abs=0.1)
    assert row["copy_fraction"] == pytest.approx(0.004)
    assert found["cublas"]["speed_vs_cublas_p50"] == 1
