"""The worker's answer to ``collective_rpc("vllm_sparse_stats")``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypedDict

if TYPE_CHECKING:
    from nmsparse.config import SparsityConfig
    from vllm_sparse.canary.canary import CanaryStats
    from vllm_sparse.state import LayerReport
    from vllm_sparse.timing import Timings

STATS_METHOD = "vllm_sparse_stats"


class RankStats(TypedDict):
    """One worker's statistics: plain values only.

    ``dense_first`` of the prefill tokens were first of a request and kept dense.
    Everything is counted since ``started``, which is another text after each start.
    ``timings`` are samples of the calls of layers, if they are timed.
    """

    rank: int
    phase: str
    source: str
    fingerprint: str
    config: dict[str, Any]
    tokens: dict[str, int]
    dense_first: int
    layers: list[LayerReport]
    canary: CanaryStats | None
    started: str
    timings: Timings
    timed_backend: str


def collect(worker: Any) -> RankStats | None:
    """Return the statistics of a worker; None if its engine is not sparse.

    Args:
        worker: a vLLM worker (``WorkerBase``).
    """
    # Here, so that processes that only register the method do not load all of it.
    from vllm_sparse.engines import find_session
    from vllm_sparse.phases import DECODE, FIRST, PREFILL, phase_code
    from vllm_sparse.state import layer_report, read_counters

    session = find_session(worker.vllm_config)
    if session is None:
        return None
    session.add_unseen(worker.get_model())
    config: SparsityConfig = session.config
    totals = session.phases.totals.tolist()
    first = totals[FIRST]
    counts = read_counters(session.layers)
    steps = session.phases.steps(phase_code(config))
    return RankStats(
        rank=worker.rank,
        phase=config.phase.value,
        source=session.source,
        fingerprint=config.fingerprint,
        config=config.model_dump(mode="json"),
        tokens={"prefill": totals[PREFILL] + first, "decode": totals[DECODE]},
        dense_first=first,
        layers=[
            layer_report(s, c, steps)
            for s, c in zip(session.layers, counts, strict=True)
        ],
        canary=None if session.canary is None else session.canary.read(),
        started=session.started,
        timings=session.timings,
        timed_backend=session.phases.codes.device.type,
    )


def register_worker_methods() -> None:
    """Install the method on vLLM's worker base class (see ``patches.md``)."""
    from vllm.v1.worker.worker_base import WorkerBase

    if not hasattr(WorkerBase, STATS_METHOD):
        setattr(WorkerBase, STATS_METHOD, collect)
