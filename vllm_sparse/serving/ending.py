"""How a server ends: its exit status, and the streams that are still open.

vLLM leaves with status 0 also if its engine has died. And on SIGTERM it ends the engine
at once and tells no open stream: clients wait for tokens, the server for clients.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from vllm.engine.protocol import EngineClient


class Ending:
    """What became of this process' engine.

    Attributes:
        always: whether dense engines are watched too, as ``vllm-sparse serve`` does.
        died: whether it was dead before anybody asked it to end.
    """

    def __init__(self) -> None:
        self.always = False
        self.died = False

    def watch(self, engine: EngineClient, before: Callable[[], None]) -> None:
        """Note the engine's state when it is asked to end, and then end its streams.

        Call it in the event loop of the server.

        Args:
            engine: to watch.
            before: called in that loop when the engine is asked to end.
        """
        loop = asyncio.get_running_loop()
        shutdown = engine.shutdown
        asked = False

        def ended(*args: Any, **options: Any) -> None:
            nonlocal asked
            if not asked:  # the second time it is down because of the first
                asked = True
                self.died = bool(engine.errored)
                _call(loop, before)
            try:
                shutdown(*args, **options)
            finally:
                _call(loop, _end_streams, engine)

        engine.shutdown = ended


def _call(
    loop: asyncio.AbstractEventLoop, function: Callable[..., None], *args: Any
) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed
        loop.call_soon_threadsafe(function, *args)


# Of the server in this process.
ENDING = Ending()


def _end_streams(engine: EngineClient) -> None:
    """Give every request that still waits for tokens the error that none will come."""
    from vllm.v1.engine.exceptions import EngineDeadError

    processor: Any = getattr(engine, "output_processor", None)
    if hasattr(processor, "propagate_error"):  # it is not part of vLLM's interface
        processor.propagate_error(EngineDeadError())
