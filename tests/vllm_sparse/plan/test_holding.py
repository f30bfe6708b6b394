"""Memory of a rank, against what doctor says and what layers really hold."""

from __future__ import annotations

import pytest
import torch

from nmsparse import PackedWeight, k_major, parse_pattern, sparsify
from nmsparse.packed import PADDING
from vllm_sparse.cli.memory import estimate
from vllm_sparse.plan.estimate import make_plan
from vllm_sparse.plan.stored import read_model

MIB = 1 << 20


def test_llama_on_a_gpu_by_hand(llama, ask):
    memory = make_plan(llama, ask(context=2000, utilization=0.9)).memory
    assert memory.weights == memory.total == 2 * 8_030_261_248
    assert memory.copies == memory.freed == 0
    assert memory.kv_token == 131072
    assert memory.free == pytest.approx(90e9 - 2 * 8_030_261_248)
    assert memory.sequences == int(memory.free // (2000 * 131072))
    assert memory.tokens == 2000 * memory.sequences


@pytest.mark.parametrize("fallback", ["keep", "drop"])
def test_rows_of_a_cpu_are_what_k_major_makes(small, ask, fallback):
    question = ask(device="cpu", dense_fallback=fallback)
    memory = make_plan(small(), question).memory
    shapes = [(128, 64), (64, 64), (256, 64), (64, 128)]  # O, K of one block
    held = 0
    for size in shapes:
        rows = k_major(torch.zeros(size, dtype=torch.bfloat16))
        held += size[1] * rows.stride(0) * 2
    dense = sum(2 * o * k for o, k in shapes)
    assert memory.copies == 2 * held
    assert memory.freed == (2 * dense if fallback == "drop" else 0)
    assert memory.total == memory.weights + memory.copies - memory.freed


def test_packed_copies_are_what_packing_makes(small, ask):
    memory = make_plan(small(), ask(None, zeros=0.5)).memory
    held = 0
    for size in [(128, 64), (64, 64), (256, 64), (64, 128)]:
        weight = sparsify(torch.randn(size, dtype=torch.bfloat16), parse_pattern("50%"))
        held += PackedWeight.pack(weight).nbytes - 2 * PADDING
    assert memory.copies == 2 * held


@pytest.mark.demo
def test_doctor_says_the_same_about_the_embedded_model(demo_model, ask):
    said = dict(estimate(str(demo_model)))
    stored = read_model(str(demo_model))
    for fallback in ("keep", "drop"):
        question = ask(device="cpu", dense_fallback=fallback)
        memory = make_plan(stored, question).memory
        layers = sum(
            part.weight_bytes
            for part in make_plan(stored, question).steps[0].parts
            if part.sparsity
        )
        mine = layers + memory.copies - memory.freed
        theirs = float(said[fallback].split(" MiB")[0].replace(",", ""))
        assert round(mine / MIB, 1) == theirs


@pytest.mark.demo
def test_the_embedded_model_is_as_large_as_its_file(demo_model, ask):
    plan = make_plan(read_model(str(demo_model)), ask(context=1024))
    file = (demo_model / "model.safetensors").stat().st_size
    # The file has its header too; the head is the embedding.
    assert 0 < file - plan.memory.weights < 64 * 1024
    assert plan.parameters == 268_098_176
    # 15 layers look back 512 tokens, 3 all the way; one head of 256 for each.
    row = 2 * 256 * 2
    assert plan.memory.kv_sequence == row * (15 * 512 + 3 * 1024)


def test_what_does_not_fit_is_said(llama, ask):
    from vllm_sparse.plan.machines import Machine

    tiny = Machine("tiny", "gpu", 10e9, 1e12, None, "")
    plan = make_plan(llama, ask(machine=tiny))
    assert plan.memory.sequences == 0
    assert "The weights do not fit: 6.9 GB are missing" in plan.verdict[-1]
