"""Start a real ``vllm-sparse serve`` process and talk to it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from openai import OpenAI

READY_SECONDS = 600


@dataclass(frozen=True)
class Server:
    """A running server."""

    url: str
    log: Path
    model: str
    key: str | None
    process: subprocess.Popen[bytes]

    def client(self, **options: Any) -> OpenAI:
        """Return an ``openai`` client."""
        key = self.key or "none"
        return OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, **options)

    def get(self, path: str, **options: Any) -> httpx.Response:
        """Send a GET request."""
        return httpx.get(self.url + path, timeout=30, **options)

    def metrics(self) -> dict[str, float]:
        """Return every sample of ``/metrics``, by name with labels."""
        text = self.get("/metrics").text
        samples = re.findall(r"^([a-z_:]+(?:\{.*\})?) (\S+)$", text, re.MULTILINE)
        return {name: float(value) for name, value in samples}

    def metric(self, name: str, **labels: str) -> float:
        """Return the sum of the samples of one metric that have these labels."""
        return sum(
            value
            for sample, value in self.metrics().items()
            if sample.partition("{")[0] == name
            and all(f'{k}="{v}"' in sample for k, v in labels.items())
        )


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextlib.contextmanager
def serve(
    model: str,
    *flags: str,
    key: str | None = None,
    prefix: tuple[str, ...] = (),
    **environment: str,
) -> Iterator[Server]:
    """Serve ``model`` as ``m`` until the block ends.

    Args:
        model: a model folder.
        *flags: of the command.
        key: the API key.
        prefix: a command that runs another one in its own process, such as ``nice``.
        **environment: variables of the server.

    Raises:
        AssertionError: with the end of the log, if it does not become ready.
    """
    port = _free_port()
    command = [
        *(*prefix, sys.executable, "-m", "vllm_sparse", "serve", model),
        *("--served-model-name", "m", "--host", "127.0.0.1", "--port", str(port)),
        *("--enforce-eager", "--max-model-len", "256"),
        *("--gpu-memory-utilization", "0.3", *flags),
        *(("--api-key", key) if key else ()),
    ]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "server.log"
        with log.open("w") as output:
            process = subprocess.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", **environment},
                start_new_session=True,
            )
        try:
            url = f"http://127.0.0.1:{port}"
            _wait(url, process, log)
            yield Server(url, log, "m", key, process)
        finally:
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(60)
            # Whatever of its children is left, so that no test inherits them.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def eventually(check: Callable[[], bool], seconds: float = 15.0) -> None:
    """Metrics follow the engine within a poll interval."""
    deadline = time.monotonic() + seconds
    while not check() and time.monotonic() < deadline:
        time.sleep(0.5)
    assert check()


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()[-6000:]
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                return
        time.sleep(0.5)
    raise AssertionError(
        f"not ready after {READY_SECONDS} s\n{log.read_text()[-6000:]}"
    )
