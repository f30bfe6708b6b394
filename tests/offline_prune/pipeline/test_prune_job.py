"""A job without an output: what searches and studies run many times."""

from __future__ import annotations

import torch
from support import zoo

from offline_prune.config import PruneConfig
from offline_prune.pipeline.job import Job
from offline_prune.pipeline.skeleton import Skeleton
from offline_prune.pipeline.source import open_source

ROWS = zoo.windows()


def test_a_job_leaves_the_model_dense(tmp_path):
    """A search prunes one model many times: each time the same one."""
    source = open_source(zoo.build("llama", tmp_path / "dense"), tokenizer=False)
    skeleton = Skeleton.build(source)
    windows = [torch.tensor(row) for row in ROWS]
    found = []
    for scorer in ("wanda", "magnitude", "wanda"):
        config = PruneConfig(scorer=scorer, sparsity=0.5)
        job = Job.prepare(config, source, skeleton, windows=windows[:4])
        job.plan()
        outcomes, _, loss = job.prune(judge=windows[4:])
        assert all(outcome.zeros == outcome.removed for outcome in outcomes)
        found.append((loss, [outcome.relative_error for outcome in outcomes]))
    assert found[0] == found[2]
    assert found[0][0] != found[1][0]
