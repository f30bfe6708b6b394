"""Bytes and times of steps: numbers by hand, laws, and the benchmark's model."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nmsparse.config import SparsityConfig
from vllm_sparse.plan.estimate import make_plan
from vllm_sparse.plan.stored import Stored

# Of one block of Llama-3.1-8B: qkv, o, gate_up, down.
BLOCK = 4096 * 6144 + 4096 * 4096 + 4096 * 28672 + 14336 * 4096
HEAD = 4096 * 128256
LINEAR = 32 * BLOCK
NORMS = 65 * 4096
SEQUENCE = 1024 * 131072


def first(plan):
    return plan.steps[0]


def test_llama_by_hand(llama, ask):
    plan = make_plan(llama, ask(batches=(1, 2)))
    one, two = plan.steps
    row = 2 * 4096
    assert plan.parameters == 8_030_261_248
    assert one.dense_bytes == 2 * (LINEAR + HEAD + NORMS) + row + SEQUENCE
    assert one.sparse_bytes == one.dense_bytes - LINEAR
    assert two.dense_bytes == 2 * (LINEAR + HEAD + NORMS) + 2 * row + 2 * SEQUENCE
    assert two.sparse_bytes == two.dense_bytes - LINEAR / 2
    assert (one.share_read, two.share_read) == (0.5, 0.75)
    # 1000 GB a second.
    assert one.dense_seconds == pytest.approx(one.dense_bytes / 1e12)
    assert one.ceiling == pytest.approx(one.dense_bytes / one.sparse_bytes)
    assert two.sparse_tokens_per_second == pytest.approx(2e12 / two.sparse_bytes)
    kinds = {part.kind: part for part in one.parts}
    assert kinds["qkv"].layers == 32
    assert (kinds["qkv"].in_features, kinds["qkv"].out_features) == (4096, 6144)
    assert kinds["down"].dense_bytes == 32 * 2 * 14336 * 4096
    assert kinds["down"].sparse_bytes == 32 * 14336 * 4096
    assert kinds["head"].sparse_bytes == 2 * HEAD
    assert sum(part.share for part in one.parts) == pytest.approx(1)


@pytest.mark.parametrize("model", ["llama-8b", "llama-1b", "qwen-0.5b", "gemma-270m"])
def test_linears_are_those_of_the_roofline(model, repo_root, monkeypatch, ask):
    """Without cache, norms and biases the ceiling is the benchmark's."""
    monkeypatch.syspath_prepend(str(repo_root / "benchmarks"))
    from gpu_models import SHAPES, linears
    from gpu_roofline import ceiling

    tensors = {}
    for x in linears(model):
        where = "model.layers.{}." if not x.is_head else ""
        for i in range(x.count):
            last = "lm_head" if x.is_head else f"{x.name}_proj"
            name = where.format(i) + f"{last}.weight"
            tensors[name] = ("BF16", (x.out_features, x.in_features))
    config = SHAPES[model][1] | {"tie_word_embeddings": False}
    stored = Stored(model, config, tensors, "a test")
    for tokens in (1, 2, 4, 8, 16):
        for pattern, form in (("8:16", "8:16"), ("4:16", "4:16")):
            step = first(make_plan(stored, ask(pattern, batches=[tokens])))
            expected = ceiling(model, form, tokens=tokens)
            cached = [p.dense_bytes for p in step.parts if p.kind == "kv cache"]
            beside = sum(cached)
            assert (step.dense_bytes - beside) / (
                step.sparse_bytes - beside
            ) == pytest.approx(expected)
    pruned = first(make_plan(stored, ask(None, zeros=0.5, batches=[3])))
    beside = sum(p.dense_bytes for p in pruned.parts if p.kind == "kv cache")
    assert (pruned.dense_bytes - beside) / (
        pruned.sparse_bytes - beside
    ) == pytest.approx(ceiling(model, "packed 50%", tokens=3))


@settings(max_examples=60, deadline=None)
@given(kept=st.integers(1, 15), tokens=st.integers(1, 20), context=st.integers(1, 9000))
def test_laws(small, ask, kept, tokens, context):
    def step(pattern, count):
        question = ask(pattern, batches=[count], context=context)
        return first(make_plan(small(), question))

    found = step(f"{kept}:16", tokens)
    assert found.sparse_bytes <= found.dense_bytes
    # More channels kept, or more tokens: a step never reads less.
    assert found.sparse_bytes <= step(f"{kept + 1}:16", tokens).sparse_bytes
    more = step(f"{kept}:16", tokens + 1)
    assert found.sparse_bytes < more.sparse_bytes
    assert found.share_read <= more.share_read <= 1
    assert found.ceiling >= more.ceiling - 1e-12
    # Longer sequences: a lower ceiling.
    longer = ask(f"{kept}:16", batches=[tokens], context=context + 500)
    assert first(make_plan(small(), longer)).ceiling <= found.ceiling


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_ranks_divide_what_is_read(llama, ask, ranks):
    whole = first(make_plan(llama, ask(batches=[3])))
    mine = first(make_plan(llama, ask(batches=[3], ranks=ranks)))
    beside = 2 * NORMS + 3 * 2 * 4096  # on every rank
    assert mine.dense_bytes - beside == (whole.dense_bytes - beside) / ranks
    assert mine.sparse_bytes - beside == (whole.sparse_bytes - beside) / ranks
    assert mine.ceiling == pytest.approx(whole.ceiling, rel=1e-3)


def test_above_sixteen_tokens_a_step_is_dense(small, ask):
    sixteen, more = make_plan(small(), ask("2:16", batches=[16, 17])).steps
    assert sixteen.sparse_bytes < sixteen.dense_bytes
    assert more.sparse_bytes == more.dense_bytes
    assert more.share_read == 1


def test_a_shared_list_does_not_fade(small, ask):
    batches = [2, 3, 16]
    two, three, many = make_plan(
        small(), ask("8:16", batches=batches, shared_lists=True)
    ).steps
    assert two.share_read == 0.75
    assert three.share_read == many.share_read == 0.5
    on_cpu = ask("8:16", batches=[3], shared_lists=True, device="cpu")
    assert first(make_plan(small(), on_cpu)).share_read == 0.875


def test_packing_does_not_fade_and_a_gpu_takes_what_is_less(small, ask):
    def share(device, zeros, tokens, pattern="8:16"):
        question = ask(pattern, zeros=zeros, batches=[tokens], device=device)
        return first(make_plan(small(), question)).share_read

    assert share("gpu", 0.5, 1) == 0.5
    assert share("gpu", 0.5, 8) == share("gpu", 0.5, 16) < 0.8
    # A CPU holds one form: rows, as packed bytes are no fewer.
    assert share("cpu", 0.45, 8) == pytest.approx(1 - 0.5**8)
    assert share("cpu", 0.7, 1) == share("cpu", 0.7, 8) < 0.6
    # Too few zeros to be packed at all.
    assert share("gpu", 0.3, 8) == pytest.approx(1 - 0.5**8)
    assert share("gpu", 0.3, 1, pattern=None) is None


def test_prefill_leaves_decoding_dense(small, ask):
    config = SparsityConfig.uniform("8:16").model_dump(mode="json")
    config = SparsityConfig.parse(config | {"phase": "prefill"}, source="test")
    plan = make_plan(small(), ask(config=config))
    assert first(plan).ceiling == 1
    assert "Phase prefill" in plan.verdict[0]


def test_experts_stay_dense_and_are_chosen(small, ask):
    stored = small(num_experts=8, num_experts_per_tok=2)
    tensors = dict(stored.tensors)
    for i in range(8):
        name = f"model.layers.0.mlp.experts.{i}.up_proj.weight"
        tensors[name] = ("BF16", (32, 64))
    plan = make_plan(replace(stored, tensors=tensors), ask(batches=(1, 2)))
    read = [next(p for p in s.parts if p.kind == "experts") for s in plan.steps]
    whole = 8 * 2 * 32 * 64
    assert [part.weight_bytes for part in read] == [whole, whole]
    assert [part.sparse_bytes for part in read] == [whole / 4, whole * (1 - 0.75**2)]
    assert any("Experts stay dense" in line for line in plan.verdict)


def test_arithmetic_is_a_limit_too(small, ask):
    stored = small(num_hidden_layers=1)
    plan = make_plan(stored, ask(batches=(1, 4096), context=1))
    # One operation reads a byte in weights of 2 bytes: 100 TFLOPS / 1000 GB/s.
    assert plan.crossover == pytest.approx(100)
    few, many = plan.steps
    assert (few.bound, many.bound) == ("memory", "arithmetic")
    elements = 64 * (64 + 2 * 32) + 64 * 64 + 3 * 64 * 128 + 64 * 256
    assert many.dense_seconds == pytest.approx(2 * elements * 4096 / 100e12)


def test_launches_cost_small_layers_most(small, ask):
    cheap = first(make_plan(small(), ask()))
    dear = first(make_plan(small(), ask(fixed=1e-6)))
    # Two blocks of four layers and the head; a selection is a launch of its own.
    assert dear.dense_seconds - cheap.dense_seconds == pytest.approx(9e-6)
    assert dear.sparse_seconds - cheap.sparse_seconds == pytest.approx(17e-6)
    assert dear.ceiling < cheap.ceiling


def test_shares_of_the_bandwidth(small, ask):
    plain = first(make_plan(small(), ask()))
    same = first(make_plan(small(), ask(achieved=0.5, ours=0.5)))
    assert same.dense_seconds == pytest.approx(2 * plain.dense_seconds)
    assert same.ceiling == pytest.approx(plain.ceiling)
    better = first(make_plan(small(), ask(achieved=0.5, ours=1.0)))
    ours = sum(part.sparse_bytes for part in plain.parts if part.sparsity)
    expected = (2 * (plain.sparse_bytes - ours) + ours) / 1e12
    assert better.sparse_seconds == pytest.approx(expected)


def test_without_a_bandwidth_there_are_bytes_and_ratios(small, ask):
    from vllm_sparse.plan.machines import Machine

    unknown = Machine("a GPU", "gpu", None, None, None, "")
    plan = make_plan(small(), ask(machine=unknown))
    assert first(plan).dense_seconds is None
    timed = first(make_plan(small(), ask()))
    assert first(plan).ceiling == pytest.approx(timed.ceiling)
    assert plan.crossover is None
    assert plan.memory.tokens is None
