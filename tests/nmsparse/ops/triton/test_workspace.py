"""``Workspace``: grows outside graph capture only, and never takes a buffer away."""

from __future__ import annotations

import threading

import pytest
import torch

from nmsparse.ops.linear import workspace
from nmsparse.ops.linear.workspace import Workspace

CPU = torch.device("cpu")


def test_buffers(device):
    space = Workspace(torch.device(device), floats=100, tickets=10)
    partials, tickets = space.reserve(100, 10)
    assert partials.dtype is torch.float32
    assert tickets.dtype is torch.int32
    assert (partials.numel(), tickets.numel()) == (100, 10)
    assert not tickets.any()
    assert space.reserve(1, 1)[0] is partials


@pytest.mark.usefixtures("poisoned_memory")
def test_grows_and_keeps_what_a_graph_may_hold():
    space = Workspace(CPU, floats=100, tickets=10)
    old_partials, old_tickets = space.reserve(100, 10)
    partials, tickets = space.reserve(101, 10)
    assert partials.numel() == 200
    assert tickets is old_tickets
    partials, tickets = space.reserve(5, 1000)
    assert partials.numel() == 200
    assert tickets.numel() == 1000
    assert not tickets.any()
    kept = [tensor.data_ptr() for tensor in space._kept]
    assert kept == [old_partials.data_ptr(), old_tickets.data_ptr()]


def test_growing_doubles():
    space = Workspace(CPU, floats=16, tickets=1)
    for floats in range(1, 2000):
        space.reserve(floats, 1)
    assert sum(tensor.numel() for tensor in space._kept) <= space.partials.numel()


@pytest.mark.parametrize("sizes", [(1 << 40, 1), (1, 1 << 40)], ids=str)
def test_is_bounded(sizes):
    space = Workspace(CPU, floats=16, tickets=16)
    with pytest.raises(ValueError, match=r"use fewer splits"):
        space.reserve(*sizes)
    assert space.partials.numel() == space.tickets.numel() == 16


def test_one_a_device(monkeypatch):
    monkeypatch.setattr(workspace, "_SHARED", {})
    assert Workspace.for_(CPU) is Workspace.for_(torch.device("cpu"))
    assert Workspace.for_(CPU) is not Workspace(CPU, floats=1, tickets=1)
    assert Workspace.for_(CPU).tickets.numel() >= 1 << 16


def test_threads_get_the_same(monkeypatch):
    monkeypatch.setattr(workspace, "_SHARED", {})
    found, gate = [], threading.Barrier(8)

    def ask():
        gate.wait()
        found.append(Workspace.for_(CPU))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(space) for space in found}) == 1


def test_capture_is_refused(monkeypatch):
    """Without a GPU: the question alone is replaced."""
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match=r"being captured.*outside the capture"):
        workspace._refuse_capture(torch.device("cuda", 0), "is made")
    space = Workspace(CPU, floats=16, tickets=16)
    space.device = torch.device("cuda", 0)
    assert space.reserve(16, 16)[0].numel() == 16
    with pytest.raises(RuntimeError, match="grows to 17 sums and 3 tickets"):
        space.reserve(17, 3)
    assert space.partials.numel() == 16


@pytest.mark.gpu
def test_growing_in_a_capture_is_refused(device):
    space = Workspace(torch.device(device), floats=16, tickets=16)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        torch.zeros(1, device=device).add_(1)
        with pytest.raises(RuntimeError, match="being captured"):
            space.reserve(17, 1)
    graph.replay()
    torch.cuda.synchronize()
