"""The processes of a server, and whether they are gone."""

from __future__ import annotations

import psutil
from support.server import Server


def tree(server: Server) -> list[psutil.Process]:
    """Return the processes of a server, the API server first."""
    root = psutil.Process(server.process.pid)
    return [root, *root.children(recursive=True)]


def named(server: Server, title: str) -> list[psutil.Process]:
    """Return the processes that call themselves ``VLLM::<title>...``."""
    return [x for x in tree(server) if f"VLLM::{title}" in " ".join(x.cmdline())]


def outlived(processes: list[psutil.Process], seconds: float) -> list[str]:
    """Wait for processes to end; return what is left after that time."""
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    return [f"{x.pid} {' '.join(x.cmdline())[:80]}" for x in alive if _lives(x)]


def _lives(process: psutil.Process) -> bool:
    """A zombie is gone: only its parent, or init, has not noticed yet."""
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
