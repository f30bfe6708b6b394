"""Two processes that share the sequences know as much as one that saw them all."""

from __future__ import annotations

import os
import subprocess
import sys

import torch

from offline_prune.statistics import InputStatistics, Need

# A script, not torch.multiprocessing: a test module cannot be imported by name.
WORKER = """
import sys
import torch
import torch.distributed as dist
from offline_prune.statistics import InputStatistics, Need

rank, store, data, out = int(sys.argv[1]), *sys.argv[2:]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
sequences = torch.load(data)
full = InputStatistics(5, needs=set(Need), sample_rows=12, sequences=len(sequences))
idle = InputStatistics(5, needs=set(Need), sample_rows=12, sequences=len(sequences))
for index in range(rank, len(sequences), 2):
    full.update(sequences[index], index=index)
if rank == 1:
    idle.update(sequences[0], index=0)
nothing = InputStatistics(5, needs=set(Need))
for statistics in (full, idle, nothing):
    statistics.all_reduce()
names = "tokens sequences nonfinite sum sum_sq sum_abs gram sample".split()
found = [{n: getattr(s, n) for n in names} for s in (full, idle, nothing)]
torch.save(found, f"{out}/{rank}.pt")
dist.destroy_process_group()
"""


def test_two_ranks_give_the_statistics_of_one(tmp_path):
    generator = torch.Generator().manual_seed(7)
    data = [torch.randn(3 + 4 * i, 5, generator=generator) for i in range(5)]
    data[3][0, 0] = float("inf")
    torch.save(data, tmp_path / "data.pt")
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
    }
    arguments = [str(tmp_path / name) for name in ("store", "data.pt")]
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(rank), *arguments, str(tmp_path)],
            env=environment,
        )
        for rank in range(2)
    ]
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    one = InputStatistics(5, needs=set(Need), sample_rows=12, sequences=5)
    for x in data:
        one.update(x)
    first = InputStatistics(5, needs=set(Need), sample_rows=12, sequences=5)
    first.update(data[0])
    for rank in range(2):
        full, idle, nothing = torch.load(tmp_path / f"{rank}.pt")
        assert (full["tokens"], full["sequences"]) == (one.tokens, 5)
        assert full["nonfinite"] == 1
        for name in ("sum", "sum_sq", "sum_abs"):
            expected = getattr(one, name)
            torch.testing.assert_close(full[name], expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(
            full["gram"], one.gram, rtol=1e-5, atol=1e-5, equal_nan=True
        )
        assert torch.equal(full["sample"], one.sample)
        assert idle["tokens"] == 3
        assert torch.equal(idle["sum"], first.sum)
        assert torch.equal(idle["sample"], first.sample)
        assert nothing["tokens"] == 0
        assert nothing["sample"].shape == (0, 5)
