"""Asks the workers for statistics, on request and every few seconds."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from vllm.logger import init_logger

from vllm_sparse.serving.aggregate import merge_engines, merge_ranks
from vllm_sparse.stats import STATS_METHOD, RankStats

if TYPE_CHECKING:
    from collections.abc import Callable

    from vllm.engine.protocol import EngineClient

    from vllm_sparse.serving.metrics import SparsityMetrics

logger = init_logger("vllm." + __name__)

# How long a caller waits for an answer.
TIMEOUT_SECONDS = 10.0
# A step cannot be interrupted, and a long prompt on a CPU takes its time: a question
# stands that long before it counts as not answered.
PATIENCE_SECONDS = 60.0
# While the engine does not answer, the interval doubles; this many times at most.
MOST_DOUBLINGS = 3


class StatsPoller:
    """Bring the engine's statistics into the API server's metrics.

    Args:
        engine: vLLM's engine client.
        interval: seconds between polls.
    """

    def __init__(self, engine: EngineClient, interval: float) -> None:
        self._engine = engine
        self._metrics: SparsityMetrics | None = None
        self._interval = interval
        self._lock = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._asked = -1.0
        self._latest: RankStats | None = None
        self._question: asyncio.Future[RankStats | None] | None = None

    async def fetch(self) -> RankStats | None:
        """Return the engine's current statistics; None if it runs dense.

        Callers that wait at the same time share one answer, so a crowd of them costs
        the engine no more than one.

        Raises:
            TimeoutError: if the engine does not answer in ``TIMEOUT_SECONDS``.
        """
        arrived = time.monotonic()
        async with self._lock:
            if self._asked >= arrived and self._question is None:
                return self._latest
            if self._question is None:
                self._asked = time.monotonic()
                self._question = asyncio.ensure_future(self._ask())
            question = self._question
            # Not wait_for: before Python 3.12 it can lose a cancellation.
            done, _ = await asyncio.wait({question}, timeout=TIMEOUT_SECONDS)
            waited = time.monotonic() - self._asked
            if not done and waited < PATIENCE_SECONDS:
                # The engine would have to answer another question as well.
                raise TimeoutError(f"no answer in {waited:.0f} s")
            self._question, asked, self._asked = None, self._asked, -1.0
            if not done:
                question.cancel()
                raise TimeoutError(f"no answer in {waited:.0f} s")
            self._latest = question.result()
            self._asked = asked  # only an answer is shared
            return self._latest

    async def _ask(self) -> RankStats | None:
        engines = [
            merge_ranks(ranks)
            for answers in await self._answers()
            if (ranks := [answer for answer in answers if answer is not None])
        ]
        if not engines:
            return None
        if self._metrics is not None:
            self._metrics.update(*engines)
        return merge_engines(engines)

    async def _answers(self) -> list[list[RankStats | None]]:
        """Return the answers of all ranks, engine by engine.

        With data parallelism the client of the engines has several, and of a plain
        ``collective_rpc`` it returns the first one's answer alone.
        """
        core: Any = getattr(self._engine, "engine_core", None)
        ask_all = getattr(core, "call_utility_all_async", None)
        if ask_all is None or len(getattr(core, "core_engines", ())) < 2:
            return [await self._engine.collective_rpc(STATS_METHOD)]
        found: list[list[RankStats | None]] = await ask_all(
            "collective_rpc", STATS_METHOD, None, (), None
        )
        return found

    def start(
        self,
        make: Callable[[RankStats], SparsityMetrics],
        first: RankStats | None = None,
    ) -> None:
        """Keep metrics current until the server's event loop ends, or :meth:`stop`.

        Args:
            make: makes them from the first answer; an engine that turns out to run
                dense has none.
            first: this answer, if it is there.
        """
        if first is not None:
            self._metrics = make(first)
        self._task = asyncio.create_task(self._run(make), name="vllm-sparse-poller")

    def stop(self) -> None:
        """Ask no more: the engine is about to end."""
        if self._task is not None:
            self._task.cancel()

    async def _run(self, make: Callable[[RankStats], SparsityMetrics]) -> None:
        failures = 0
        while True:
            try:
                stats = await self.fetch()
                if self._metrics is None:
                    if stats is None:
                        return
                    self._metrics = make(stats)
                    continue  # and count
            except asyncio.CancelledError:
                raise
            except Exception as error:
                # The server must go on; the metric and one log line tell.
                if self._question is None:  # else a long step: the question stands
                    if self._metrics is not None:
                        self._metrics.poll_failed()
                    if not failures:
                        logger.warning("vllm-sparse: statistics poll failed: %r", error)
                    failures += 1
            else:
                failures = 0
            # An engine that drains or dies is not pressed: it logs every question.
            await asyncio.sleep(self._interval * 2 ** min(failures, MOST_DOUBLINGS))
