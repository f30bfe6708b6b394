"""The exit status of a server whose engine died, and streams without an engine."""

from __future__ import annotations

import asyncio

import pytest

from vllm_sparse.serving.ending import Ending


class Engine:
    """What of vLLM's engine client matters when it ends."""

    def __init__(self, *, errored):
        self.errored = errored
        self.output_processor = self
        self.calls, self.told = [], []

    def shutdown(self, timeout=None):
        self.calls.append(timeout)
        self.errored = True

    def propagate_error(self, error):
        self.told.append(type(error).__name__)


@pytest.mark.parametrize("errored", [False, True])
def test_only_an_engine_that_was_dead_before_has_died(errored):
    engine, ending = Engine(errored=errored), Ending()

    async def serve():
        ending.watch(engine, lambda: engine.told.append("before"))
        # As on SIGTERM: in another thread first, then once more when vLLM cleans up.
        await asyncio.to_thread(engine.shutdown, timeout=3)
        engine.shutdown()
        await asyncio.sleep(0)

    asyncio.run(serve())
    assert ending.died is errored
    assert engine.calls == [3, None]
    assert engine.told == ["before", "EngineDeadError", "EngineDeadError"]


def test_a_closed_loop_has_no_streams():
    engine, ending = Engine(errored=False), Ending()

    async def serve():
        ending.watch(engine, lambda: engine.told.append("before"))

    asyncio.run(serve())
    engine.shutdown(timeout=0)
    assert engine.calls == [0]
    assert engine.told == []
