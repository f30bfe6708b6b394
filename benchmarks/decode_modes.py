"""What ``decode.py`` and ``memory.py`` compare, and the child processes they run.

Every mode has its own child process, with the environment that vLLM gives its CPU
worker. Threads are set there and nowhere else: vLLM's oneDNN, torch and our kernels
share one OpenMP runtime, which takes OMP_NUM_THREADS when it is loaded. In the
in-process layout vLLM reads no VLLM_CPU_OMP_THREADS_BIND, logs "Reducing Torch threads
to 1" and then keeps them, because its worker has made ``torch.set_num_threads`` do
nothing; only with OMP_NUM_THREADS set does it leave the number alone.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

STOCK, CONTROL = "stock", "stock again"


@dataclass(frozen=True, slots=True)
class Mode:
    """One way to run a model.

    Attributes:
        options: ``additional_config["vllm_sparse"]``; None for none.
        plugin: whether the plugin is registered.
        pruned: share of zeros in the weights, in percent; 0 for the folder as it is.
    """

    options: dict[str, Any] | None = None
    plugin: bool = True
    pruned: int = 0

    @property
    def phase(self) -> str | None:
        """Phase whose tokens are sparsified; None if the input stays dense."""
        return "decode" if "activation_sparsity" in (self.options or {}) else None


def _pattern(pattern: str, **options: str) -> Mode:
    return Mode({"activation_sparsity": pattern, "phase": "decode", **options})


def _packed(percent: int) -> Mode:
    return Mode({"sparse_weights": "auto"}, pruned=percent)


MODES: dict[str, Mode] = {
    STOCK: Mode(plugin=False),
    CONTROL: Mode(plugin=False),
    "off": Mode(),
    "8:16": _pattern("8:16"),
    "4:16": _pattern("4:16"),
    "2:4": _pattern("2:4"),
    "pruned 50%": _packed(50),
    "pruned 70%": _packed(70),
    "8:16 kernels off": _pattern("8:16", kernels="off"),
    "8:16 drop": _pattern("8:16", dense_fallback="drop"),
}


def cores() -> list[int]:
    """Return the cores this process may use."""
    return sorted(os.sched_getaffinity(0))


def default_threads() -> int:
    """Return all cores but one: what vLLM takes on one socket without SMT."""
    return max(1, len(cores()) - 1)


def environment(threads: int) -> dict[str, str]:
    """Return the environment of a child, on as many cores as it has threads.

    Raises:
        SystemExit: if there are fewer cores.
    """
    free = cores()
    if not 1 <= threads <= len(free):
        raise SystemExit(f"--threads is {threads}. Expected 1 to {len(free)} (cores).")
    bound = " ".join(str(core) for core in free[:threads])
    ours = {"OMP_NUM_THREADS": str(threads)}
    found = {"GOMP_CPU_AFFINITY": bound, **engine_environment(), **ours}
    found.pop("VLLM_CPU_KVCACHE_SPACE", None)  # it would win over the job's own
    return found


def engine_environment() -> dict[str, str]:
    """Return the environment of a child with engines, on any device."""
    ours = {
        "VLLM_PLUGINS": "",  # the children register the plugin by hand
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "HF_HUB_OFFLINE": "1",
    }
    return {"VLLM_LOGGING_LEVEL": "ERROR", **os.environ, **ours}


def run_child(
    script: Path,
    job: dict[str, Any],
    *,
    received: Callable[[dict[str, Any]], None],
    threads: int | None = None,
) -> None:
    """Run ``script`` and hand over every line of JSON it prints, as it comes.

    The child's standard error, tracebacks included, is ours. It never outlives us.

    Args:
        script: what the child runs.
        job: its argument.
        received: takes a line.
        threads: of a child that runs on the CPU; None leaves threads alone.

    Raises:
        SystemExit: if it fails.
    """
    command = [sys.executable, str(script), json.dumps(job)]
    environ = engine_environment() if threads is None else environment(threads)
    with subprocess.Popen(
        command, env=environ, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        try:
            for line in child.stdout:
                received(json.loads(line))
        except BaseException:  # Ctrl-C too
            child.kill()
            child.wait()
            raise
    if child.returncode:
        raise SystemExit(
            f"{script.name} failed with status {child.returncode}: see above"
        )


def kill_child_on_sigterm() -> None:
    """Let SIGTERM end this process as Ctrl-C does: the child ends first."""

    def stop(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
