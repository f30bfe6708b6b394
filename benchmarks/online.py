"""Quality of online activation sparsity: settings at equal bytes, on one text.

    python benchmarks/online.py --calibration web.jsonl --text wiki.valid.raw \
        --text-name "WikiText-2 validation" --groups patterns allocators

Every setting is calibrated on one text and judged on another, in transformers with the
ops of the engine (``offline_prune.online.emulation``). Perplexity is of whole windows,
all tokens sparse; decode perplexity of the second half after a dense first half.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import online_settings
import rows
import torch

from nmsparse.parameters import read_parameters
from offline_prune.embedded import default_folder
from offline_prune.evaluation.load import load_model
from offline_prune.evaluation.policies import Forced, View, compare
from offline_prune.evaluation.texts import read_evaluation_text
from offline_prune.evaluation.windows import windows_of
from offline_prune.online.calibrate import calibrate
from offline_prune.online.config import make_calibrate_config
from offline_prune.online.emulation import attach

HALF = 2


class Study:
    """One model, one calibration text, one text to judge by."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        loaded = load_model(args.model)
        self.model = loaded.model
        text = read_evaluation_text(args.text)
        windows = list(windows_of(text, loaded.tokenizer, seq_len=args.length))
        self.judge = [Forced(w, args.length // HALF) for w in windows[: args.windows]]
        dense = compare(View(self.model), {}, sequences=self.judge)["dense"]
        self.dense = {
            "dense_perplexity": round(dense.perplexity or 0.0, 4),
            "dense_decode_perplexity": round(dense.decode_perplexity, 4),
        }

    def run(self, fields: dict[str, Any], seed: int) -> dict[str, Any]:
        """Calibrate once; return what a row says."""
        args = self.args
        text = {
            "source": str(args.calibration),
            "num_samples": args.samples,
            "seq_len": args.length,
        }
        windows = {"gradient_windows": args.samples, **fields, "seed": seed}
        config = make_calibrate_config(None, windows, calibration=text)
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as temporary:
            done = calibrate(args.model, config, output=Path(temporary) / "out")
            file = done.config.parameters
            parameters = read_parameters(done.folder, file) if file else {}
        seconds = time.perf_counter() - start
        with attach(self.model, done.config, parameters) as emulation:
            half = args.length // HALF
            off = View(self.model, lambda _: emulation.off())
            views = {
                phase: View(
                    self.model,
                    lambda _, p=phase: emulation.using(phase=p, prompt_len=half),
                )
                for phase in ("both", "decode")
            }
            found = compare(off, views, sequences=self.judge)
        both, decode = found["both"], found["decode"]
        return {
            "perplexity": round(both.perplexity or 0.0, 4),
            "decode_perplexity": round(decode.decode_perplexity, 4),
            "both_decode_perplexity": round(both.decode_perplexity, 4),
            "decode_kl": round(decode.kl, 5),
            "decode_top1_agreement": round(decode.top1_agreement, 4),
            **self.dense,
            "read_share": round(done.record.read_share, 6),
            "patterns": [layer.pattern for layer in done.record.layers],
            "seconds": round(seconds, 1),
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
    parser.add_argument("--samples", type=int, default=16, help="calibration windows")
    parser.add_argument("--windows", type=int, default=8, help="of the text")
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument(
        "--groups", nargs="+", choices=online_settings.GROUPS, default=["patterns"]
    )
    parser.add_argument("--only", nargs="+", help="settings of exactly these names")
    parser.add_argument("--results", type=Path, help="a folder")
    args = parser.parse_args()
    study = Study(args)
    print(f"dense {study.dense}", flush=True)
    for group in args.groups:
        for name, fields in online_settings.GROUPS[group]().items():
            if args.only and name not in args.only:
                continue
            for seed in args.seeds:
                measured = study.run(fields, seed)
                row = {
                    "benchmark": "online",
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
                rows.append("online", [row], folder=args.results)
                print(
                    f"{name:28s} seed {seed}  both {measured['perplexity']:10.3f}  "
                    f"decode {measured['decode_perplexity']:8.3f}  bytes "
                    f"{measured['read_share']:.4f}  {measured['seconds']:6.1f} s",
                    flush=True,
                )


if __name__ == "__main__":
    main()
