"""Dispatch caches: a damaged one holds nothing, and what is read is usable."""

from __future__ import annotations

import json
import math
import random

from fuzzing.case import Finding
from fuzzing.files import Folder
from fuzzing.mutate import mutate_bytes, mutate_json

from vllm_sparse.table import TableCache, choose

_TIMES = {
    "1": {"dense": 2e-5, "rows": 1e-5, "gather 64x32x4 w4 s2": 9e-6},
    "16": {"dense": 1.0},
}
_SEED = {"context": {"isa": "avx2"}, "tables": {"64x64": _TIMES, "8x8": {"2": {}}}}


class TableTarget:
    """``TableCache``, which may raise nothing."""

    name = "table"
    errors: tuple[type[Exception], ...] = ()

    def __init__(self) -> None:
        self._folder = Folder()
        self._name = TableCache(self._folder.path, {}).path.name

    def make(self, rng: random.Random) -> dict[str, bytes]:
        """Return a cache file."""
        if rng.random() < 0.75:
            content = mutate_json(rng, _SEED).encode("utf-8", "surrogatepass")
        else:
            content = mutate_bytes(rng, json.dumps(_SEED).encode())
        return {self._name: content}

    def read(self, files: dict[str, bytes]) -> None:
        """Read the cache and choose ways by what it holds."""
        cache = TableCache(self._folder.fill(files), {})
        for key in ("64x64", "8x8", ""):
            times = cache.get(key)
            if times is None:
                continue
            for found in times.values():
                for way, seconds in found.items():
                    if not (isinstance(way, str) and 0 < seconds < math.inf):
                        raise Finding(f"{way!r} takes {seconds} seconds")
            for tokens in (1, 3, 16, 17):
                if choose(times, "dense", tokens, ["rows"]) not in ("dense", "rows"):
                    raise Finding("a way was chosen that is not possible")
