"""Several engines behind one address: each counts its own tokens."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from support import tiny
from support.server import eventually, serve

pytestmark = pytest.mark.server


def test_data_parallel_engines_are_counted_together(tmp_path):
    """Two engines behind one address: every token of both is counted, once.

    In a file of its own: the tensor-parallel ranks of another file's server would keep
    both cores of a small machine busy.
    """
    folder = str(tiny.build("llama", tmp_path / "llama"))
    flags = ("--activation-sparsity", "8:16", "--data-parallel-size", "2")
    bind = {"VLLM_CPU_OMP_THREADS_BIND": "0|1"}
    with serve(folder, *flags, "--dtype", "float32", **bind) as running:
        client = running.client()

        def ask(number):
            client.completions.create(
                prompt=f"{number}" * 9, max_tokens=9, temperature=0.0, model="m"
            )

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(ask, range(12)))
        by_engine = [
            running.metric("vllm:generation_tokens_total", engine=str(engine))
            for engine in range(2)
        ]
        assert min(by_engine) > 0, "both engines worked"
        assert running.get("/sparsity").json()["tokens"]["decode"] == 12 * 8
        name = "vllm_sparse_linear_tokens_total"
        labels = {"kind": "down", "backend": "cpu", "phase": "decode"}
        eventually(lambda: running.metric(name, **labels) == 2 * 12 * 8)
        assert running.metric("vllm_sparse_layers") == 8
        assert running.metric("vllm_sparse_poll_errors_total") == 0
