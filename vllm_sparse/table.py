"""The measured table: which way is fastest for a shape and a number of tokens.

Ways are timed once per shape on the model's own weights, interleaved, and remembered in
a cache file of the machine. The first way, vLLM's own, is left only for a clear win.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from vllm.logger import init_logger

from nmsparse.json_text import parse_json

logger = init_logger("vllm." + __name__)

# Where measured tables are kept, instead of the user's cache folder.
CACHE_ENV = "NMSPARSE_CACHE"

# Token counts that are measured; others take the next larger one's decision, because
# every sparse way loses with more tokens. Beyond the last, the first way is taken.
TOKENS = (1, 2, 4, 8, 16)
# Below this gain the first way stays: timing noise must not cost speed.
MIN_GAIN = 1.05
_ROUNDS = 7
# Of a cache file; one of a hundred models has less.
_MAX_BYTES = 64 << 20

# Seconds by way, by number of tokens.
Times = dict[int, dict[str, float]]
Timed = Callable[[], Any]


def measure(ways: Mapping[str, Sequence[Timed]]) -> dict[str, float]:
    """Time every way in turns; return the least seconds of each.

    The least, not the median: other work on the machine only ever adds time, and a
    decision taken while it is busy is remembered.

    Args:
        ways: for every name, the same call on several weights: they are rotated, so
            that a weight is not in the cache because the last call read it.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(_ROUNDS + 1):
        for name, calls in ways.items():
            call = calls[turn % len(calls)]
            start = time.perf_counter()
            call()
            if turn:  # the first warms up
                seconds[name].append(time.perf_counter() - start)
    return {name: min(found) for name, found in seconds.items()}


def choose(times: Times, first: str, tokens: int, among: Sequence[str]) -> str:
    """Return the way for a number of tokens.

    Args:
        times: measurements; a missing number of tokens means not to leave ``first``.
        first: the way to leave only for a clear win.
        tokens: of the step.
        among: ways that are possible.
    """
    step = next((t for t in TOKENS if tokens <= t), None)
    found = times.get(step, {}) if step is not None else {}
    if first not in found:
        return first
    best = min((w for w in among if w in found), key=found.__getitem__, default=first)
    return best if found[first] >= MIN_GAIN * found[best] else first


def gain(times: Times, tokens: int, way: str, first: str) -> str:
    """Return what a way gains over the first, behind its name; empty if not known."""
    seconds = times.get(tokens, {})
    if way not in seconds or first not in seconds:
        return ""
    return f" {seconds[first] / seconds[way]:.2f}x"


class TableCache:
    """Measured tables of this machine, by a key that names everything they depend on.

    Args:
        folder: where the file lies.
        context: versions, instruction set, threads: other values, another file.
    """

    def __init__(self, folder: Path, context: Mapping[str, Any]) -> None:
        text = json.dumps(context, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        self.path = folder / f"dispatch-{digest}.json"
        self._context = dict(context)
        self._tables = self._read()

    def get(self, key: str) -> Times | None:
        """Return a table, None if it was not measured yet."""
        return self._tables.get(key)

    def put(self, key: str, times: Times) -> None:
        """Remember a table; a cache that cannot be written is only said once."""
        self._tables = self._read() | self._tables | {key: times}
        data = {"context": self._context, "tables": self._tables}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self.path.parent, suffix=".tmp")
            try:
                with os.fdopen(handle, "w", encoding="utf-8") as file:
                    json.dump(data, file, indent=1)
                Path(name).replace(self.path)
            except OSError:
                Path(name).unlink(missing_ok=True)
                raise
        except OSError as error:
            # Not the error itself: the random name in it would make every one new.
            why = error.strerror
            logger.warning_once("vllm-sparse: %s not written: %s", self.path, why)

    def _read(self) -> dict[str, Times]:
        """Return what is in the file; a damaged file holds nothing."""
        try:
            with self.path.open("rb") as file:
                content = file.read(_MAX_BYTES + 1)
            if len(content) > _MAX_BYTES:
                return {}
            data = parse_json(content, strict=True)
            return {
                str(key): {
                    int(tokens): {str(w): _seconds(s) for w, s in found.items()}
                    for tokens, found in times.items()
                }
                for key, times in data["tables"].items()
            }
        except (OSError, ValueError, ArithmeticError, LookupError):
            return {}
        except (TypeError, AttributeError):  # of another form
            return {}


def cache_folder() -> Path:
    """Return the folder of machine-wide caches."""
    ours = os.environ.get(CACHE_ENV)
    if ours:
        return Path(ours)
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        folder = Path(base) if base else Path.home() / ".cache"
    except RuntimeError:  # no home folder, as of a container's arbitrary user
        return _temporary_folder()
    return folder / "vllm-sparse"


@lru_cache(maxsize=1)
def _temporary_folder() -> Path:
    """Return a folder that only this user can write to, where everybody can."""
    folder = Path(tempfile.gettempdir()) / f"vllm-sparse-{os.geteuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        private = stat.S_ISDIR(found.st_mode) and not found.st_mode & 0o077
        if private and found.st_uid == os.geteuid():
            return folder
    except OSError:  # a file of that name, or nothing can be written at all
        pass
    logger.warning("vllm-sparse: %s is not private to this user: not used", folder)
    # Never made: nothing is found there, and writing says that it cannot.
    return Path(os.devnull) / "vllm-sparse"


def _seconds(value: Any) -> float:
    """Return a measured time.

    Raises:
        ValueError: if it cannot be one.
    """
    seconds = float(value)
    if not 0 < seconds < math.inf:
        raise ValueError(f"{seconds} seconds")
    return seconds
