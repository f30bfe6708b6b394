"""Results of a pruning run that never was: realistic numbers, any number of blocks."""

from __future__ import annotations

import math
import random
from typing import Any

from offline_prune.report.layers import BlockResult, LayerResult
from offline_prune.report.measurements import (
    FidelityResult,
    GenerationResult,
    PerplexityResult,
    Sizes,
    TaskScore,
    ZeroShotResult,
)
from offline_prune.report.results import (
    BudgetResult,
    CalibrationResult,
    ModelResult,
    Results,
)

KINDS = {
    "self_attn.q_proj": (64, 64),
    "self_attn.k_proj": (16, 64),
    "self_attn.v_proj": (16, 64),
    "self_attn.o_proj": (64, 64),
    "mlp.gate_proj": (176, 64),
    "mlp.up_proj": (176, 64),
    "mlp.down_proj": (64, 176),
}
SHA = "0123456789abcdef" * 4


def layer(name: str, block: int, removed: int, **changes: Any) -> LayerResult:
    """Return a layer with ``removed`` of 16 x 64 weights removed."""
    rows, columns = changes.pop("shape", (16, 64))
    fields = {
        "name": name,
        "block": block,
        "out_features": rows,
        "in_features": columns,
        "target": removed / (rows * columns),
        "removed": removed,
        "sparsity": removed / (rows * columns),
        "zeros": removed,
    }
    return LayerResult(**{**fields, **changes})


def results_of(layers: list[LayerResult], **changes: Any) -> Results:
    """Return results with budget and blocks computed from the layers."""
    removed = sum(x.removed for x in layers)
    total = sum(x.size for x in layers)
    blocks = []
    for index in sorted({x.block for x in layers}):
        found = [x for x in layers if x.block == index]
        share = sum(x.removed for x in found) / sum(x.size for x in found)
        blocks.append(BlockResult(index=index, sparsity=share))
    budget = BudgetResult(
        target=removed / total, achieved=removed / total, removed=removed, total=total
    )
    fields = {
        "date": "2026-11-23T10:00:00+00:00",
        "model": ModelResult(
            name="example/Tiny-1B",
            hub_id="example/Tiny-1B",
            architecture="LlamaForCausalLM",
            parameters=1_234_567,
            dtype="bfloat16",
            files={"model.safetensors": SHA},
        ),
        "config": {"scorer": "wanda", "allocator": "uniform", "sparsity": 0.5},
        "budget": budget,
        "layers": layers,
        "blocks": blocks,
    }
    return Results(**{**fields, **changes})


def run(blocks: int, *, sparsity: float = 0.7, uneven: bool = False) -> Results:
    """Return a run at ``sparsity``, its shares rising with depth."""
    dice = random.Random(7)
    middle = (blocks - 1) / 2
    curves = {
        "owl": [
            sparsity - 0.1 * math.exp(-i / 3) + 0.1 * 3 / blocks + dice.gauss(0, 0.004)
            for i in range(blocks)
        ],
        "alpha_pruning": [
            sparsity + 0.12 * math.sin(3.1 * (i - middle) / blocks)
            for i in range(blocks)
        ],
        "dlp": [sparsity - 0.06 + 0.12 * i / blocks for i in range(blocks)],
        "atp": [sparsity + 0.2 * (i - middle) / blocks for i in range(blocks)],
        "uniform": [sparsity] * blocks,
    }
    layers = []
    for i in range(blocks):
        for kind, (rows, columns) in KINDS.items():
            share = curves["owl"][i]
            if uneven:
                share += dice.uniform(-0.05, 0.05)
            size = rows * columns
            error = 0.18 + 0.25 * math.exp(-i / 4) + dice.uniform(0, 0.08)
            layers.append(
                layer(
                    f"model.layers.{i}.{kind}",
                    i,
                    round(size * share),
                    shape=(rows, columns),
                    relative_error=error * (2.0 if "down" in kind else 1.0),
                    seconds=0.4,
                )
            )
    tasks = ("arc_challenge", "arc_easy", "boolq", "hellaswag", "openbookqa", "piqa")
    scores = [
        TaskScore(
            task=task,
            metric="acc_norm",
            dense=0.42 + 0.06 * i,
            pruned=0.42 + 0.06 * i - dice.uniform(0.0, 0.09),
            dense_stderr=0.011,
            pruned_stderr=0.012,
            examples=1000,
        )
        for i, task in enumerate(tasks)
    ]
    text = {"text": "WikiText-2 test", "sha256": SHA, "seq_len": 2048}
    return results_of(
        layers,
        command="offline-prune prune example/Tiny-1B --recipe owl-70 --output out",
        versions={"vllm-sparse": "0.1.0", "torch": "2.13.0", "transformers": "5.19.0"},
        hardware="NVIDIA H200",
        config={
            "scorer": "wanda",
            "allocator": "owl",
            "allocator_options": {"lam": 0.08, "m": 5},
            "sparsity": sparsity,
        },
        calibration=CalibrationResult(
            source="allenai/c4", sha256=SHA, windows=128, tokens=128 * 2048
        ),
        allocations=curves,
        profiles={
            "owl": [
                1.2 + 3 * math.exp(-i / 3) + dice.uniform(0, 0.3) for i in range(blocks)
            ],
            "alpha_pruning": [
                3.4 + math.sin(i / 4) + dice.uniform(0, 0.2) for i in range(blocks)
            ],
            "amplification": [
                3.5 * math.exp(-3 * i / blocks) + 0.5 for i in range(blocks)
            ],
        },
        evaluation=[
            PerplexityResult(
                **text, windows=141, tokens=288_768, dense=9.7612, pruned=24.5513
            ),
            FidelityResult(
                **text, windows=141, tokens=288_768, kl=0.4213, top1_agreement=0.6712
            ),
            ZeroShotResult(backend="lm-eval 0.4.13 (transformers)", scores=scores),
            GenerationResult(
                prompts=100,
                max_new_tokens=1024,
                dense_mean_tokens=212.4,
                pruned_mean_tokens=301.9,
            ),
        ],
        sizes=Sizes(
            dense_bytes=2_471_645_608,
            saved_bytes=2_471_645_608,
            packed_bytes=1_312_000_000,
        ),
        time={"load": 12.3, "calibrate": 95.0, "prune": 4021.0, "save": 9.1},
        peak_memory_bytes=7_812_345_678,
        files={"model.safetensors": SHA},
    )
