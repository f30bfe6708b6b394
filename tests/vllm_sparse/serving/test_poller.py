"""The poller: asks, counts errors, goes on."""

from __future__ import annotations

import asyncio
import inspect
from types import SimpleNamespace

import pytest

from vllm_sparse.serving import poller as module
from vllm_sparse.serving.poller import StatsPoller


async def until(condition):
    """Wait for a condition; fail after some seconds."""
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("the condition never came true")


def test_fetch_merges_ranks(fakes):
    ranks = [fakes.stats(fakes.layer(k_sharded=True), rank=rank) for rank in range(2)]
    engine = fakes.engine(ranks)
    stats = asyncio.run(StatsPoller(engine, 60.0).fetch())
    assert stats["layers"][0]["elements"] == 1280
    assert engine.methods == ["vllm_sparse_stats"]


@pytest.mark.parametrize("answers", [[], [None], [None, None]])
def test_a_dense_engine(fakes, answers):
    assert asyncio.run(StatsPoller(fakes.engine(answers), 60.0).fetch()) is None


def test_ranks_without_an_answer_are_left_out(fakes):
    engine = fakes.engine([None, fakes.stats(fakes.layer(), rank=1)])
    assert asyncio.run(StatsPoller(engine, 60.0).fetch())["rank"] == 1


def test_fetch_passes_the_engines_error_on(fakes):
    with pytest.raises(ConnectionError, match="engine is gone"):
        asyncio.run(
            StatsPoller(fakes.engine(ConnectionError("engine is gone")), 60.0).fetch()
        )


def test_metrics_follow_the_engine(fakes, metrics):
    async def scenario():
        engine = fakes.engine([fakes.stats(fakes.layer(elements=100))])
        poller = StatsPoller(engine, 0.001)
        poller.start(lambda stats: metrics.objects)
        await until(lambda: metrics.value("elements_total", kind="up") == 100)
        engine.answers = [fakes.stats(fakes.layer(elements=250))]
        await until(lambda: metrics.value("elements_total", kind="up") == 250)
        poller._task.cancel()

    asyncio.run(scenario())
    assert metrics.value("poll_errors_total") == 0


def test_fetch_on_request_also_advances_the_metrics(fakes, metrics):
    async def scenario():
        poller = StatsPoller(fakes.engine([fakes.stats(fakes.layer())]), 60.0)
        poller.start(lambda stats: metrics.objects, fakes.stats())
        await poller.fetch()
        poller._task.cancel()

    asyncio.run(scenario())
    assert metrics.value("elements_total", kind="up") == 640


def test_errors_are_counted_logged_once_and_survived(fakes, metrics, monkeypatch):
    warnings = []
    monkeypatch.setattr(
        module.logger, "warning", lambda text, *args: warnings.append(text % args)
    )

    async def scenario():
        engine = fakes.engine(ConnectionError("engine is gone"))
        poller = StatsPoller(engine, 0.001)
        poller.start(lambda stats: metrics.objects, fakes.stats())
        await until(lambda: metrics.value("poll_errors_total") >= 3)
        assert len(warnings) == 1
        engine.answers = [fakes.stats(fakes.layer())]
        await until(lambda: metrics.value("elements_total", kind="up") == 640)
        errors = metrics.value("poll_errors_total")
        asked = len(engine.methods)
        await until(lambda: len(engine.methods) > asked + 2)
        assert metrics.value("poll_errors_total") == errors
        # The next trouble is a new one.
        engine.answers = ConnectionError("engine is gone again")
        await until(lambda: metrics.value("poll_errors_total") >= errors + 3)
        poller._task.cancel()

    asyncio.run(scenario())
    assert warnings == [
        "vllm-sparse: statistics poll failed: ConnectionError('engine is gone')",
        "vllm-sparse: statistics poll failed: ConnectionError('engine is gone again')",
    ]


def test_it_ends_when_stopped(fakes, metrics):
    async def scenario():
        poller = StatsPoller(fakes.engine([fakes.stats(fakes.layer())]), 0.001)
        poller.stop()  # it has not started
        poller.start(lambda stats: metrics.objects)
        await until(lambda: len(poller._engine.methods) > 1)
        poller.stop()
        with pytest.raises(asyncio.CancelledError):
            await poller._task

    asyncio.run(scenario())
    assert metrics.value("poll_errors_total") == 0


def test_requests_do_not_overlap(fakes):
    class Slow:
        running = most = 0

        async def collective_rpc(self, method):
            self.running += 1
            self.most = max(self.most, self.running)
            await asyncio.sleep(0.01)
            self.running -= 1
            return [None]

    async def scenario(engine):
        poller = StatsPoller(engine, 60.0)
        await asyncio.gather(*(poller.fetch() for _ in range(5)))

    engine = Slow()
    asyncio.run(scenario(engine))
    assert engine.most == 1


def test_every_data_parallel_engine_is_asked(fakes, metrics):
    """Of a plain ``collective_rpc`` vLLM returns the first engine's answer alone."""
    asked = []

    async def ask_all(*question):
        asked.append(question)
        return [
            [fakes.stats(fakes.layer(elements=100, k_sharded=True), rank=rank)]
            for rank in range(2)
        ]

    engine = fakes.engine([])
    engine.engine_core = SimpleNamespace(
        core_engines=[b"0", b"1"], call_utility_all_async=ask_all
    )
    poller = StatsPoller(engine, 60.0)
    poller._metrics = metrics.objects
    stats = asyncio.run(poller.fetch())
    assert stats["layers"][0]["elements"] == 200
    assert metrics.value("elements_total", kind="up") == 200
    assert asked == [("collective_rpc", "vllm_sparse_stats", None, (), None)]
    assert engine.methods == []


def test_one_engine_is_asked_as_vllm_documents(fakes):
    engine = fakes.engine([fakes.stats(fakes.layer())])
    engine.engine_core = SimpleNamespace(
        core_engines=[b"0"], call_utility_all_async=None
    )
    assert asyncio.run(StatsPoller(engine, 60.0).fetch())["rank"] == 0


def test_vllm_still_asks_all_engines_that_way():
    from vllm.v1.engine.core import EngineCore
    from vllm.v1.engine.core_client import AsyncMPClient

    every = inspect.signature(AsyncMPClient.call_utility_all_async)
    assert list(every.parameters) == ["self", "method", "args"]
    names = list(inspect.signature(EngineCore.collective_rpc).parameters)
    assert names == ["self", "method", "timeout", "args", "kwargs"]


def test_an_engine_that_does_not_answer_is_asked_less_and_less(
    fakes, metrics, monkeypatch
):
    waited = []

    async def sleep(seconds):
        waited.append(seconds)
        if len(waited) == 1:
            engine.answers = ConnectionError("draining")
        if len(waited) == 5:
            engine.answers = [fakes.stats(fakes.layer())]
        if len(waited) == 7:
            raise asyncio.CancelledError

    engine = fakes.engine([fakes.stats(fakes.layer())])
    poller = StatsPoller(engine, 2.0)
    monkeypatch.setattr(module.asyncio, "sleep", sleep)
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(poller._run(lambda stats: metrics.objects))
    assert waited == [2, 4, 8, 16, 16, 2, 2]
    assert metrics.value("poll_errors_total") == 4


class Busy:
    """Answer when told to, as an engine in a long step does."""

    def __init__(self, stats):
        self.stats, self.asked = stats, 0
        self.free = asyncio.Event()

    async def collective_rpc(self, method):
        self.asked += 1
        await self.free.wait()
        return [self.stats]


def test_a_long_step_is_no_error_and_is_asked_once(fakes, metrics, monkeypatch):
    monkeypatch.setattr(module, "TIMEOUT_SECONDS", 0.01)

    async def scenario():
        engine = Busy(fakes.stats(fakes.layer()))
        poller = StatsPoller(engine, 0.001)
        poller.start(lambda stats: metrics.objects)
        for _ in range(3):
            with pytest.raises(TimeoutError, match="no answer"):
                await poller.fetch()
        assert engine.asked == 1
        engine.free.set()
        await until(lambda: metrics.value("elements_total", kind="up") == 640)
        poller.stop()

    asyncio.run(scenario())
    assert metrics.value("poll_errors_total") == 0


def test_patience_ends(fakes, metrics, monkeypatch):
    monkeypatch.setattr(module, "TIMEOUT_SECONDS", 0.01)
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.03)

    async def scenario():
        engine = Busy(fakes.stats(fakes.layer()))
        poller = StatsPoller(engine, 0.001)
        poller._metrics = metrics.objects
        poller.start(lambda stats: metrics.objects)
        await until(lambda: metrics.value("poll_errors_total") == 2)
        assert engine.asked >= 2
        poller.stop()

    asyncio.run(scenario())


def test_an_error_is_not_shared_as_an_answer(fakes):
    class Fails:
        asked = 0

        async def collective_rpc(self, method):
            self.asked += 1
            await asyncio.sleep(0.01)
            if self.asked == 1:
                raise ConnectionError("once")
            return [fakes.stats(fakes.layer())]

    async def scenario():
        poller = StatsPoller(Fails(), 60.0)
        calls = [poller.fetch() for _ in range(3)]
        return await asyncio.gather(*calls, return_exceptions=True)

    first, *others = asyncio.run(scenario())
    assert isinstance(first, ConnectionError)
    assert [x["rank"] for x in others] == [0, 0]


def test_an_engine_that_turns_out_dense_is_left_alone(fakes):
    async def scenario():
        poller = StatsPoller(fakes.engine([None]), 0.001)
        poller.start(lambda stats: pytest.fail("it has no metrics"))
        await poller._task
        assert len(poller._engine.methods) == 1

    asyncio.run(scenario())
