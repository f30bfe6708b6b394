"""Load one engine and say how much memory it takes: the child of ``memory.py``.

Takes a job as JSON, prints one line of JSON.
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
from pathlib import Path
from typing import Any

import decode_child
from decode_pair import decode

FIELDS = {
    "peak_rss_mib": "VmHWM",
    "rss_mib": "VmRSS",
    "rss_anonymous_mib": "RssAnon",
}


def memory() -> dict[str, float]:
    """Return this process's memory in MiB.

    The peak is the kernel's VmHWM: ``resource.ru_maxrss`` is the same number, but may
    be inherited from the process that started this one.
    """
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    values = dict(line.split(":", 1) for line in lines)
    found = {
        field: round(int(values[key].split()[0]) / 1024, 1)
        for field, key in FIELDS.items()
    }
    # The kernel counts in batches: the peak may lag behind what is resident now.
    found["peak_rss_mib"] = max(found["peak_rss_mib"], found["rss_mib"])
    return found


def main() -> None:
    """Load, look, trim, generate, and look at the peak once more."""
    results = decode_child.only_results_on_stdout()
    job: dict[str, Any] = json.loads(sys.argv[1])
    if job["plugin"]:
        decode_child.register_plugin()
    llm = decode_child.build(
        job["model"], job["options"], kv_cache_mib=job["kv_cache_mib"]
    )
    decode_child.check_threads(job["threads"])
    gc.collect()
    loaded = memory()
    # What the C library keeps of freed memory is no copy of a weight. It stays in a
    # server all the same, so both are reported.
    ctypes.CDLL(None).malloc_trim(0)
    trimmed = memory()["rss_anonymous_mib"]
    decode(llm, 4, 4)
    reports = decode_child.layers(llm) if job["plugin"] else []
    found = loaded | {
        "dtype": decode_child.dtype(llm),
        "threads": job["threads"],
        "rss_anonymous_trimmed_mib": trimmed,
        "peak_rss_load_mib": loaded["peak_rss_mib"],
        "peak_rss_mib": memory()["peak_rss_mib"],
        "extra_mib": decode_child.extra_mib(reports),
    }
    print(json.dumps(found), file=results)


if __name__ == "__main__":
    main()
