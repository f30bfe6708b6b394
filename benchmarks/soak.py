"""Soak: mixed load on a real server for a while; memory, errors, counters, latency.

    python benchmarks/soak.py --minutes 20

Passes (status 0) if the memory of the process tree is flat after a warm-up, every
request got what it should, our counters never fell, nothing was left running or
waiting, and SIGTERM ended every process. Latency drift is written down and not judged:
it follows whatever else the machine does. The KV cache is small and soon full, because
a CPU server touches its pages only as it uses them, which looks like a leak.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
import statistics
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import models
import psutil
import rows
import serving
import soak_load

# A slope below this is flat: MiB a minute, of all processes together.
FLAT_MIB_PER_MINUTE = 1.0
WARM_UP_SHARE = 0.3
# The plugin asks the workers every 2 s; a step may take longer than its patience.
POLL_SECONDS, MAX_POLL_ERRORS = 2.0, 0.01
SAMPLE_SECONDS = 5.0
_MIB = float(1 << 20)
_COUNTER = re.compile(
    r"^(vllm_sparse_\w+_(?:total|count|sum|bucket)(?:\{.*\})?) (\S+)$", re.MULTILINE
)
_QUEUES = re.compile(
    r"^vllm:num_requests_(?:running|waiting)\{.*\} (\S+)$", re.MULTILINE
)
_CHAT_TEMPLATE = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"


class Watch(threading.Thread):
    """Samples memory and counters of a server until it is told to stop.

    Attributes:
        memory: by process id: seconds since the start, MiB.
        names: what each process is.
        problems: counters that fell, processes that ended.
        final: the newest counters.
    """

    def __init__(self, server: serving.Server) -> None:
        super().__init__(daemon=True)
        self._server = server
        self._start = time.monotonic()
        self.ended = threading.Event()
        self.memory: dict[int, list[tuple[float, float]]] = {}
        self.names: dict[int, str] = {}
        self.problems: list[str] = []
        self.final: dict[str, float] = {}

    def run(self) -> None:
        """Sample until ``ended`` is set."""
        while not self.ended.wait(SAMPLE_SECONDS):
            self._memory()
            self.counters()

    def _memory(self) -> None:
        seconds = time.monotonic() - self._start
        alive = set()
        for process in self._server.tree():
            with contextlib.suppress(psutil.NoSuchProcess):
                mib = process.memory_info().rss / _MIB
                alive.add(process.pid)
                self.memory.setdefault(process.pid, []).append((seconds, mib))
                self.names.setdefault(process.pid, _what(process))
        for pid in self.memory.keys() - alive:
            self.problems.append(f"process {pid} ({self.names[pid]}) ended")

    def counters(self) -> str:
        """Read ``/metrics``, note counters that fell; return the text."""
        try:
            with urllib.request.urlopen(f"{self._server.url}/metrics", timeout=60) as x:
                text = str(x.read().decode())
        except OSError as error:
            self.problems.append(f"/metrics: {error!r}")
            return ""
        found = {name: float(value) for name, value in _COUNTER.findall(text)}
        for name, before in self.final.items():
            if found.get(name, -1.0) < before:
                self.problems.append(f"{name} fell from {before} to {found.get(name)}")
        self.final = found
        return text


def _what(process: psutil.Process) -> str:
    """Return what a process calls itself: vLLM sets titles of engine and workers."""
    title = " ".join(process.cmdline())
    named = re.search(r"VLLM::(\w+)", title)
    if named:
        return named[1]
    if "resource_tracker" in title:
        return "resource_tracker"
    return "APIServer" if " serve " in title else process.name()


def slope(points: list[tuple[float, float]]) -> float:
    """Return the Theil-Sen slope of memory, MiB a minute: outliers do not move it."""
    found = [
        60 * (y2 - y1) / (x2 - x1)
        for i, (x1, y1) in enumerate(points)
        for x2, y2 in points[i + 1 :]
    ]
    return statistics.median(found) if found else 0.0


def drift(gaps: list[tuple[float, float]]) -> dict[str, float]:
    """Return the time between chunks in the first and the last third, ms."""
    if len(gaps) < 30:
        return {}
    gaps = sorted(gaps)
    third = len(gaps) // 3
    first, last = (
        1000 * statistics.median(gap for _, gap in part)
        for part in (gaps[:third], gaps[-third:])
    )
    return {
        "itl_first_third_ms": round(first, 2),
        "itl_last_third_ms": round(last, 2),
        "itl_drift": round(last / first, 3),
    }


def verdict(
    watch: Watch, results: soak_load.Results, seconds: float
) -> tuple[dict[str, Any], list[str]]:
    """Return fields of the row, and why the run failed (empty: it passed)."""
    warm = WARM_UP_SHARE * seconds
    after = {
        pid: [point for point in points if point[0] >= warm]
        for pid, points in watch.memory.items()
    }
    processes = [
        {
            "process": watch.names[pid],
            "rss_start_mib": round(points[0][1], 1),
            "rss_warm_mib": round(after[pid][0][1], 1),
            "rss_end_mib": round(points[-1][1], 1),
            "slope_mib_per_minute": round(slope(after[pid]), 3),
        }
        for pid, points in watch.memory.items()
        if after[pid]
    ]
    counts = zip(*after.values(), strict=False)
    total = [(same[0][0], sum(mib for _, mib in same)) for same in counts]
    whole = slope(total)
    why = [*results.errors, *watch.problems]
    if whole > FLAT_MIB_PER_MINUTE:
        why.append(
            f"memory grows by {whole:.2f} MiB a minute after {warm / 60:.1f} minutes. "
            f"Expected at most {FLAT_MIB_PER_MINUTE}."
        )
    errors = sum(v for k, v in watch.final.items() if k.endswith("poll_errors_total"))
    if errors > MAX_POLL_ERRORS * seconds / POLL_SECONDS:
        why.append(f"{errors:.0f} polls of the workers failed")
    if not any("linear_tokens_total" in name for name in watch.final):
        why.append("no counter of ours was seen")
    fields = {
        "requests": dict(results.sent),
        "errors": len(results.errors),
        "problems": len(watch.problems),
        "poll_errors": errors,
        "counters": len(watch.final),
        "warm_up_minutes": round(warm / 60, 1),
        "slope_mib_per_minute": round(whole, 3),
        "flat_mib_per_minute": FLAT_MIB_PER_MINUTE,
        "processes": processes,
        **drift(results.gaps),
    }
    return fields, why


def soak(options: argparse.Namespace, log: Path) -> tuple[dict[str, Any], list[str]]:
    """Run one soak; return the row and why it failed."""
    model = models.find(options.model)
    flags = [
        *("--activation-sparsity", options.sparsity, "--enforce-eager"),
        *("--max-model-len", "1024", "--kv-cache-memory-bytes", str(64 << 20)),
        *("--gpu-memory-utilization", "0.4", "--chat-template", _CHAT_TEMPLATE),
    ]
    server = serving.start(model.folder, flags, log)
    try:
        serving.wait_ready(server)
        soak_load.warm_up(server.url, concurrency=options.concurrency)
        watch = Watch(server)
        watch.start()
        seconds = 60 * options.minutes
        until = time.monotonic() + seconds
        results = asyncio.run(
            soak_load.load(server.url, until, concurrency=options.concurrency)
        )
        watch.ended.set()
        watch.join()
        if options.log:  # for a closer look: seconds and MiB of every process
            named = {f"{watch.names[i]} {i}": x for i, x in watch.memory.items()}
            options.log.with_suffix(".json").write_text(json.dumps(named))
        fields, why = verdict(watch, results, seconds)
        time.sleep(6)  # longer than a poll: the counters catch up
        left = [float(x) for x in _QUEUES.findall(watch.counters())]
        if not left or any(left):
            why.append(f"requests running and waiting after the load: {left}")
    finally:
        status, orphans = serving.stop(server)
    if orphans:
        why.append(f"{len(orphans)} processes outlived SIGTERM")
    row = {
        "benchmark": "soak",
        "model": model.name,
        "mode": options.sparsity,
        "minutes": options.minutes,
        "concurrency": options.concurrency,
        **fields,
        "exit_status": status,
        "orphans": len(orphans),
        "passed": not why,
        "threads": "vLLM's default",
        **({"note": options.note} if options.note else {}),
    }
    return row, why


def main() -> int:
    """Run, append a row, print the verdict."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--model", default=models.EMBEDDED)
    parser.add_argument("--sparsity", default="8:16", metavar="N:M")
    parser.add_argument("--concurrency", type=int, default=4)
    parser.add_argument("--note", help="what else the machine did; goes into the row")
    parser.add_argument("--results", type=Path, help="another folder for the row")
    parser.add_argument("--log", type=Path, help="keep the log, and samples beside it")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        row, why = soak(options, options.log or Path(folder) / "server.log")
    rows.append("soak", [row], folder=options.results)
    print("\n".join([f"{key}: {value}" for key, value in row.items()]))
    print("\n".join(["FAILED", *why[:20]] if why else ["passed"]))
    return int(bool(why))


if __name__ == "__main__":
    raise SystemExit(main())
