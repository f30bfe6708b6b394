"""The model of bytes, and the tables of docs/gpu-kernels.md."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from nmsparse import PackedWeight, parse_pattern, sparsify
from nmsparse.ops.packed.group_packed import GroupPacked
from nmsparse.packed import PADDING

# Rows of weights of Llama-3.1-8B: K, O.
LLAMA = [(4096, 6144), (4096, 4096), (4096, 28672), (14336, 4096)]
HEAD = 4096 * 128256


KERNEL_ROW = {
    **{"benchmark": "gpu_kernels", "hardware": "a GPU", "dtype": "bfloat16"},
    **{"date": "2026-11-23", "shape": "4096x4096", "tokens": 1, "status": "right"},
    **{"copy_gb_per_s": 900.0, "copy_fraction": 0.75, "microseconds_p50": 12.34},
}
DECODE_ROW = {
    **{"benchmark": "gpu_decode", "hardware": "a GPU", "date": "2026-11-23"},
    **{"model": "llama-8b", "engine": "graph", "attention": "FLASH_ATTN"},
    **{f"speed_vs_stock_p{percent}": percent / 40 for percent in (20, 50, 80)},
}


@pytest.fixture
def scripts(repo_root, monkeypatch):
    folder = repo_root / "benchmarks"
    monkeypatch.syspath_prepend(str(folder))
    return folder


def run(command, **environment):
    done = subprocess.run(
        [str(part) for part in command],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def test_all_projections_at_half_give_what_the_head_leaves(scripts):
    from gpu_roofline import ceiling

    sparse = 32 * sum(k * o for k, o in LLAMA)
    share = sparse / (sparse + HEAD)
    for form in ("8:16", "2:4", "8:16 shared"):
        assert ceiling("llama-8b", form) == pytest.approx(1 / (1 - share / 2))
    assert round(ceiling("llama-8b", "8:16"), 2) == 1.87
    assert ceiling("llama-8b", "4:16") == pytest.approx(1 / (1 - share * 3 / 4))


def test_union_of_independent_tokens(scripts):
    from gpu_models import Linear
    from gpu_roofline import FORMS

    from vllm_sparse.plan.traffic import union

    layer = Linear("o", 64, 32, 1)
    for tokens in (1, 2, 3, 8, 16):
        law = 1 - 0.5**tokens
        assert union(0.5, tokens) == pytest.approx(law)
        read = FORMS["8:16"].read(layer, tokens)
        assert read == pytest.approx(law * 64 * 32 * 2)
        assert FORMS["8:16 shared"].read(layer, tokens) == 64 * 32
        assert FORMS["packed 2:4"].read(layer, tokens) == 64 * 32 * 2 * 9 / 16
    assert FORMS["4:16"].read(layer, 2) == pytest.approx(64 * 32 * 2 * 0.4375)


def test_packed_bytes_are_those_of_packed_weights(scripts):
    from gpu_models import Linear
    from gpu_roofline import FORMS

    weight = torch.randn(48, 192, dtype=torch.bfloat16)
    layer = Linear("o", 192, 48, 1)
    half = PackedWeight.pack(sparsify(weight, parse_pattern("50%")))
    assert FORMS["packed 50%"].read(layer, 3) == half.nbytes - 2 * PADDING
    grouped = GroupPacked.pack(sparsify(weight, parse_pattern("2:4")), "2:4")
    assert FORMS["packed 2:4"].read(layer, 3) == grouped.nbytes


def test_launches_lower_the_ceiling(scripts):
    from gpu_models import linears
    from gpu_roofline import layer_ceiling, step_seconds

    (layer,) = [x for x in linears("llama-8b") if x.name == "o"]
    cost = {"bandwidth": 1e12, "fixed": 3e-6}
    read = 4096 * 4096 * 2 / 1e12
    expected = (read + 3e-6) / (read / 2 + 6e-6)
    assert layer_ceiling(layer, "8:16", **cost) == pytest.approx(expected)
    dense = 2 * (32 * sum(k * o for k, o in LLAMA) + HEAD) / 1e12
    step = step_seconds("llama-8b", "dense", tokens=1, **cost)
    assert step == pytest.approx(dense + (32 * 4 + 1) * 3e-6)
    shared = step_seconds("llama-8b", "8:16 shared", tokens=4, **cost)
    packed = (dense + HEAD * 2 / 1e12) / 2 + (32 * 4 * 3 + 1) * 3e-6
    assert shared == pytest.approx(packed)


def test_shapes_are_those_of_the_real_models(scripts):
    from gpu_models import REAL, SHAPES, linears
    from transformers import AutoConfig, AutoModelForCausalLM

    for name in REAL:
        kind, shape = SHAPES[name]
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                AutoConfig.for_model(kind, **shape)
            )
        found = sum(
            x.weight.numel() for x in model.modules() if isinstance(x, torch.nn.Linear)
        )
        counted = sum(x.in_features * x.out_features * x.count for x in linears(name))
        assert found == counted, name


def test_measured_bandwidth_is_taken_from_rows(scripts, tmp_path):
    rows = tmp_path / "gpu_kernels.jsonl"
    values = (1000, None, 3000, 2000)
    rows.write_text("".join(f'{{"copy_gb_per_s": {v or 0}}}\n' for v in values))
    program = [sys.executable, scripts / "gpu_roofline.py", "--models", "llama-8b"]
    code, out, err = run(
        [
            *program,
            "--rows",
            rows,
            "--fixed-us",
            "2",
            "--tokens",
            "1",
            "2",
            "--json",
        ]
    )
    assert code == 0, err
    found = [json.loads(line) for line in out.splitlines()]
    (step,) = [
        row
        for row in found
        if (row["layer"], row["form"], row["tokens"]) == ("step", "8:16", 2)
    ]
    read = 2 * (32 * sum(k * o for k, o in LLAMA) * 0.75 + HEAD)
    assert step["bytes"] == read
    assert step["microseconds"] == pytest.approx(read / 2e12 * 1e6 + (32 * 8 + 1) * 2)
    code, _, err = run([*program, "--rows", tmp_path / "none.jsonl"])
    assert code == 1
    assert "has no row with copy_gb_per_s" in err
    code, out, _ = run(program)
    assert code == 0
    assert "a model of bytes, not a measurement" in out
    assert " us" not in out
    assert run([*program, "--fixed-us", "2"])[0] == 2


@pytest.fixture
def written(scripts, tmp_path, monkeypatch):
    import rows

    monkeypatch.setattr(rows, "RESULTS", tmp_path)

    def write(name, found):
        text = "".join(json.dumps(row) + "\n" for row in found)
        (tmp_path / f"{name}.jsonl").write_text(text, encoding="utf-8")

    return write


def test_without_rows_they_say_that_no_gpu_has_run_this(written):
    import tables

    for name in ("gpu-kernels", "gpu-decode"):
        assert "no GPU has run this" in tables.TABLES[name]()


def test_products(written):
    import tables

    speed = "speed_vs_cublas_p50"
    untimed = {"copy_gb_per_s", "copy_fraction", "microseconds_p50"}
    lacking = {k: v for k, v in KERNEL_ROW.items() if k not in untimed}
    written(
        "gpu_kernels",
        [
            KERNEL_ROW | {"mode": "8:16", speed: 9.0},
            KERNEL_ROW | {"mode": "8:16", speed: 1.5},
            KERNEL_ROW | {"mode": "cublas", speed: 1.0},
            lacking | {"mode": "4:16", "status": "wrong"},
            lacking | {"mode": "2:4", "status": "skipped"},
            KERNEL_ROW | {"mode": "8:16", speed: 1.2, "tokens": 2},
        ],
    )
    lines = tables.TABLES["gpu-kernels"]().splitlines()
    assert lines[0] == (
        "a GPU; bfloat16; measured 2026-11-23; copy 900 GB/s, read and written."
    )
    assert lines[2] == "| layer, K x O | T | cublas | 8:16 | 4:16 | 2:4 |"
    assert lines[4] == (
        "| 4096x4096 | 1 | 1.00x, 12.3 us (0.75) | 1.50x, 12.3 us (0.75) | wrong | - |"
    )
    assert lines[5] == "| 4096x4096 | 2 | - | 1.20x, 12.3 us (0.75) | - | - |"


def test_models(written):
    import tables

    written(
        "gpu_decode",
        [
            DECODE_ROW | {"mode": "stock", "batch": 1},
            DECODE_ROW | {"mode": "8:16", "batch": 1},
            DECODE_ROW | {"mode": "8:16", "batch": 64},
            DECODE_ROW | {"mode": "off", "batch": 64},
        ],
    )
    lines = tables.TABLES["gpu-decode"]().splitlines()
    cell = "1.25x (0.50 to 2.00)"
    about = "graph, FLASH_ATTN | 2026-11-23, a GPU |"
    assert lines[0].startswith("| model | mode | batch 1 | batch 64 |")
    assert lines[2:] == [
        f"| llama-8b | 8:16 | {cell} | {cell} | {about}",
        f"| llama-8b | off |  | {cell} | {about}",
    ]


def test_model_tables_call_themselves_a_model(scripts):
    import tables

    for name in ("gpu-roofline", "gpu-launches"):
        assert tables.TABLES[name]().startswith("A model, not a measurement")
    line = next(
        line
        for line in tables.TABLES["gpu-roofline"]().splitlines()
        if line.startswith("| Llama-3.1-8B |")
    )
    assert line.split(" | ")[2] == "1.87x"
