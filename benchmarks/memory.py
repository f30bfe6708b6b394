"""Memory of one engine in vLLM: stock, with our copies of weights, and without vLLM's.

    python benchmarks/memory.py --model llama-1b

Every mode loads the model in a process of its own and generates a few tokens. A row
holds what is resident once the model is loaded (with mapped files, without them, and
without what malloc keeps of freed memory either), the peak until then, and the peak
with generation. All of it contains Python, torch and vLLM, and the KV cache: compare
rows, do not read one alone.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import rows
from decode_modes import MODES, STOCK, default_threads, kill_child_on_sigterm, run_child
from models import EMBEDDED, SHAPES, find, pruned_folder

LOAD = Path(__file__).with_name("decode_load.py")
KV_CACHE_MIB = 256
# Where the layers keep vLLM's weight beside ours, and where they do not.
DEFAULT_MODES = (STOCK, "8:16", "8:16 drop", "pruned 50%")


def parse() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--model",
        default=EMBEDDED,
        help=f"{EMBEDDED} (the embedded model), {', '.join(SHAPES)} (random weights, "
        "made once) or a folder",
    )
    parser.add_argument("--name", help="model name in the rows; else the folder's")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=DEFAULT_MODES)
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--results", type=Path, default=rows.RESULTS, help="a folder")
    return parser.parse_args()


def main() -> int:
    """Measure and append rows."""
    args = parse()
    kill_child_on_sigterm()
    model = find(args.model)

    def received(found: dict[str, Any]) -> None:
        row = about | found
        print(
            f"{row['mode']:>16}  {row['rss_mib']:8.1f} MiB loaded "
            f"({row['rss_anonymous_mib']:.1f} without mapped files, "
            f"{row['rss_anonymous_trimmed_mib']:.1f} trimmed)  "
            f"{row['peak_rss_mib']:8.1f} MiB peak  {row['extra_mib']:.1f} MiB ours",
            flush=True,
        )
        rows.append("memory", [row], folder=args.results)

    for name in args.modes:
        mode = MODES[name]
        folder = model.folder
        if mode.pruned:
            folder = pruned_folder(folder, mode.pruned)
        about = {
            "benchmark": "memory",
            "model": args.name or model.name,
            "mode": name,
            "kv_cache_mib": KV_CACHE_MIB,
        }
        job = {
            "model": str(folder),
            "options": mode.options,
            "plugin": mode.plugin,
            "kv_cache_mib": KV_CACHE_MIB,
            "threads": args.threads,
        }
        run_child(LOAD, job, threads=args.threads, received=received)
    print(f"rows appended to {args.results / 'memory.jsonl'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
