"""Perplexity of pruned models, every method at equal budget.

    python benchmarks/pruning.py --calibration web.txt --text wiki.valid.raw \
        --text-name wikitext-2

The model is pruned block by block as ``offline-prune run`` does, nothing is written,
and the text's windows ride along through the pruned blocks. Calibration and text must
be different texts; searches use held-out windows of the calibration text only.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pruning_settings
import rows
import torch

from offline_prune.calibration.data import load_calibration, split_held_out
from offline_prune.config import make_config
from offline_prune.embedded import default_folder
from offline_prune.evaluation.texts import read_evaluation_text
from offline_prune.evaluation.windows import windows_of
from offline_prune.pipeline.capture import Capture
from offline_prune.pipeline.job import HELD_OUT_WINDOWS, Job
from offline_prune.pipeline.skeleton import Skeleton
from offline_prune.pipeline.source import open_source
from offline_prune.pipeline.stream import Stream


def dense_loss(skeleton: Skeleton, windows: list[torch.Tensor]) -> float:
    """Return the dense model's loss per token."""
    stream = Stream(Capture(skeleton), windows)
    for index in range(len(skeleton.blocks)):
        stream.advance(index, skeleton.load(index))
        skeleton.unload(index)
    total, count = stream.loss()
    return total / count


class Study:
    """One model, one calibration text, one text to judge by."""

    def __init__(self, args: argparse.Namespace) -> None:
        from transformers import AutoTokenizer

        self.args = args
        self.source = open_source(Path(args.model), tokenizer=True)
        self.skeleton = Skeleton.build(self.source)
        self.tokenizer = AutoTokenizer.from_pretrained(args.model)
        text = read_evaluation_text(args.text)
        windows = windows_of(text, self.tokenizer, seq_len=args.length)
        self.judge = list(windows)[: args.windows]
        self.dense = math.exp(dense_loss(self.skeleton, self.judge))

    def run(self, fields: dict[str, Any], seed: int) -> dict[str, Any]:
        """Prune once; return what a row says."""
        args = self.args
        calibration = {
            "source": str(args.calibration),
            "num_samples": args.samples + HELD_OUT_WINDOWS,
            "seq_len": args.length,
            "seed": seed,
        }
        config = make_config(None, {**fields, "seed": seed}, calibration=calibration)
        found = load_calibration(
            config.calibration,
            self.tokenizer,
            vocab_size=self.skeleton.model.config.vocab_size,
        )
        used, held_out = split_held_out(found, HELD_OUT_WINDOWS)
        start = time.perf_counter()
        job = Job.prepare(
            config,
            self.source,
            self.skeleton,
            windows=used.windows,
            held_out=held_out.windows,
        )
        job.plan()
        outcomes, _, loss = job.prune(judge=self.judge)
        assert loss is not None
        total = sum(layer.size for block in job.blocks for layer in block)
        return {
            "perplexity": round(math.exp(min(loss, 700.0)), 4),
            "dense_perplexity": round(self.dense, 4),
            "removed": sum(outcome.removed for outcome in outcomes),
            "total": total,
            "seconds": round(time.perf_counter() - start, 1),
            "shares": [round(share, 5) for share in job.planned()],
            "notes": job.notes,
        }


def main() -> None:
    """Measure and append rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(default_folder()))
    parser.add_argument("--name", default="gemma-3-270m", help="model name in the rows")
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--calibration-name", required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--text-name", required=True)
    parser.add_argument("--samples", type=int, default=32, help="calibration windows")
    parser.add_argument("--windows", type=int, default=16, help="of the text")
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument(
        "--groups", nargs="+", choices=pruning_settings.GROUPS, default=["scorers"]
    )
    parser.add_argument("--only", help="settings whose name contains this")
    parser.add_argument("--results", type=Path, help="a folder")
    args = parser.parse_args()
    study = Study(args)
    print(f"dense {study.dense:.3f}", flush=True)
    for group in args.groups:
        for name, fields in pruning_settings.GROUPS[group]().items():
            if args.only and args.only not in name:
                continue
            for seed in args.seeds:
                measured = study.run(fields, seed)
                row = {
                    "benchmark": "pruning",
                    "model": args.name,
                    "setting": name,
                    "config": json.dumps(fields, sort_keys=True),
                    "seed": seed,
                    "calibration": args.calibration_name,
                    "samples": args.samples,
                    "length": args.length,
                    "text": args.text_name,
                    "windows": len(study.judge),
                    **measured,
                    "torch_threads": torch.get_num_threads(),
                }
                rows.append("pruning", [row], folder=args.results)
                print(
                    f"{name:36s} seed {seed}  {measured['perplexity']:12.3f}  "
                    f"{measured['seconds']:6.1f} s",
                    flush=True,
                )


if __name__ == "__main__":
    main()
