"""vLLM endpoint plugin: ``GET /sparsity`` and the metrics poller.

vLLM loads it only if ``VLLM_PLUGINS`` names it, which ``vllm-sparse serve`` sees to.
``/sparsity`` is read-only and holds no prompt, like ``/metrics``; it is also served as
``/v1/sparsity``, which ``--api-key`` protects.
"""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING, Any

import vllm
from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse
from vllm.logger import init_logger

from vllm_sparse import __version__
from vllm_sparse.serving.calibration import share_of
from vllm_sparse.serving.ending import ENDING
from vllm_sparse.serving.metrics import SparsityMetrics
from vllm_sparse.serving.poller import StatsPoller
from vllm_sparse.stats import RankStats

if TYPE_CHECKING:
    from starlette.datastructures import State
    from vllm.engine.protocol import EngineClient

logger = init_logger("vllm." + __name__)

POLL_SECONDS = 2.0

router = APIRouter()


@router.get("/sparsity")
@router.get("/v1/sparsity")
async def sparsity(request: Request) -> JSONResponse:
    """Resolved configuration, and per layer: pattern, backend, reason, density."""
    poller: StatsPoller | None = getattr(request.app.state, "sparsity_poller", None)
    if poller is None:
        return JSONResponse({"error": "The engine is not ready."}, status_code=503)
    try:
        stats = await poller.fetch()
    except Exception as error:
        # The engine is gone or busy shutting down: /health says more.
        logger.warning("vllm-sparse: /sparsity could not reach the engine: %r", error)
        return JSONResponse(
            {"error": "The engine does not answer. See /health."}, status_code=503
        )
    return JSONResponse(describe(stats))


def describe(stats: RankStats | None) -> dict[str, Any]:
    """Return the body of ``GET /sparsity``."""
    head = {"version": __version__, "vllm_version": vllm.__version__}
    if stats is None:
        return {
            **head,
            "active": False,
            "reason": "no activation sparsity is configured: every layer is stock vLLM",
        }
    elements = sum(layer["elements"] for layer in stats["layers"])
    nonzeros = sum(layer["nonzeros"] for layer in stats["layers"])
    return {
        **head,
        "active": True,
        "phase": stats["phase"],
        "source": stats["source"],
        "fingerprint": stats["fingerprint"],
        "density": nonzeros / elements if elements else None,
        "tokens": stats["tokens"],
        "dense_first": stats["dense_first"],
        "weights_read": share_of(stats["layers"]),
        "canary": stats["canary"],
        "config": stats["config"],
        "layers": stats["layers"],
    }


class SparsityEndpoint:
    """Implements vLLM's ``EndpointPlugin`` protocol."""

    name = "vllm_sparse"
    # Needs an engine: the CPU-only render server has none.
    required_tasks = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        """Add the routes."""
        app.include_router(router)

    async def init_state(
        self, engine_client: EngineClient | None, state: State, args: Namespace
    ) -> None:
        """Connect to the engine and start polling, if it is sparse."""
        if engine_client is None:
            return
        poller = StatsPoller(engine_client, POLL_SECONDS)
        state.sparsity_poller = poller
        stats = None
        try:
            stats = await poller.fetch()
            dense = stats is None
        except Exception as error:
            # A server must not fail for its statistics: they are asked for again.
            logger.warning("vllm-sparse: no statistics yet: %r", error)
            dense = False
        # Where sparsity is off, plain vLLM stays as it is.
        if ENDING.always or not dense:
            ENDING.watch(engine_client, poller.stop)
        parallel = engine_client.vllm_config.parallel_config
        # Of several API servers only the first counts, or tokens would count twice.
        if not dense and parallel._api_process_rank == 0:
            poller.start(_make_metrics, stats)


def _make_metrics(stats: RankStats) -> SparsityMetrics:
    metrics = SparsityMetrics()
    metrics.set_build_info(__version__, vllm.__version__, stats)
    return metrics
