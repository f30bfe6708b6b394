"""Many cases of one target, in a child process that may crash, hang or run out.

The parent watches a shared counter. A child that stands still at one case for too long
is ended, and the next goes on behind it; so is one that dies.
"""

from __future__ import annotations

import argparse
import faulthandler
import logging
import multiprocessing
import os
import random
import resource
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

from fuzzing.case import Target, accepted
from fuzzing.targets import TARGETS, target_class

logger = logging.getLogger("fuzzing")

# Of a processor: a case takes about a millisecond.
_HANG_S = 20.0
# By the clock, for a case that waits; a busy machine may leave a process standing.
_STILL_S = 300.0
# Beyond what the process has when it starts.
_MEMORY = 2 << 30


def case(target: Target, seed: int, number: int) -> dict[str, bytes]:
    """Return the files of case ``number``."""
    return target.make(random.Random(f"{seed}/{number}"))


def main() -> int:
    """Return 0 if nothing was found."""
    parser = argparse.ArgumentParser(prog="fuzzing", description=__doc__)
    parser.add_argument("target", choices=sorted(TARGETS))
    parser.add_argument("--cases", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--keep", type=Path, help="folder for the files of findings")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    return _watch(args)


def _watch(args: argparse.Namespace) -> int:
    target_class(args.target)  # imported here, so that children start at once
    started = time.monotonic()
    end = args.first + args.cases
    shared = multiprocessing.get_context("fork").Array("q", 4)  # next, accepted, found
    shared[0] = args.first
    lost = 0
    while shared[0] < end and time.monotonic() - started < args.seconds:
        at = shared[0]
        left = args.seconds - (time.monotonic() - started)
        child = multiprocessing.get_context("fork").Process(
            target=_work, args=(args, end, left, shared)
        )
        child.start()
        why = _wait(child, shared)
        if why:
            lost += 1
            logger.error("FINDING %s: case %d of seed %d", why, shared[0], args.seed)
            shared[0] = max(shared[0], at) + 1
    seconds = time.monotonic() - started
    logger.info(
        "%s: %d cases of seed %d in %.0f s: %d accepted, %d findings, "
        "%d crashes or hangs",
        *(args.target, shared[0] - args.first, args.seed, seconds, shared[1]),
        *(shared[2], lost),
    )
    return int(bool(shared[2] or lost))


def _wait(child: Any, shared: Any) -> str:
    """Return why the child had to be ended, or how it died; empty if it finished."""
    last, since, used = -1, time.monotonic(), 0.0
    while child.is_alive():
        child.join(0.5)
        spent = _processor_seconds(child.pid)
        if shared[0] != last:
            last, since, used = shared[0], time.monotonic(), spent
        elif spent - used > _HANG_S or time.monotonic() - since > _STILL_S:
            child.kill()
            child.join()
            return "hang"
    return "" if child.exitcode == 0 else f"crash (exit status {child.exitcode})"


def _processor_seconds(process: int) -> float:
    """Return what a process has used; 0 if it has just ended."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _work(args: argparse.Namespace, end: int, seconds: float, shared: Any) -> None:
    faulthandler.enable()
    target = target_class(args.target)()
    _limit_memory()
    seen: Counter[str] = Counter()
    deadline = time.monotonic() + seconds
    while shared[0] < end and time.monotonic() < deadline:
        number = shared[0]
        files = case(target, args.seed, number)
        try:
            shared[1] += accepted(target, files)
        except Exception as error:
            shared[2] += 1
            _tell(error, number, seen, files, args.keep)
        shared[0] = number + 1


def _tell(
    error: Exception,
    number: int,
    seen: Counter[str],
    files: dict[str, bytes],
    keep: Path | None,
) -> None:
    """Print the first finding of a kind; keep its files."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    key = f"{type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}"
    seen[key] += 1
    if seen[key] > 1:
        return
    text = "".join(traceback.format_exception(error))[-3000:]
    logger.error(
        "FINDING case %d: %s\n%s", number, key, text.encode("ascii", "replace").decode()
    )
    if keep is not None:
        for name, content in files.items():
            path = keep / f"{number}" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + _MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
