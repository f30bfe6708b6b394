"""``CpuLinear``: every way gives the same product, and counts what the op counts."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from support.cpu_kernels import DTYPES, kernels, random

from nmsparse import sparsify
from nmsparse.config import ActivationSparsity
from nmsparse.ops.online import online_linear
from nmsparse.pattern import NMPattern
from vllm_sparse.cpu.linear import CpuLinear
from vllm_sparse.cpu.weights import take_weight
from vllm_sparse.custom_ops import _sparsify_tokens_cpu
from vllm_sparse.execution import Execution
from vllm_sparse.owned import Selection
from vllm_sparse.phases import (
    BUT_FIRST,
    DECODE,
    PREFILL,
    TokenPhases,
    selected_tokens,
)
from vllm_sparse.table import TOKENS
from vllm_sparse.treatment.layer import make_treatment
from vllm_sparse.work import Outcome, Work

K, OUT, SLOTS = 64, 96, 24
BOTH = 0
PATTERN = NMPattern(8, 16)
# The ways of a layer, by the copy it has and whether vLLM's is kept.
WAYS = {
    ("rows", "keep"): ("stock", "stream"),
    ("rows", "drop"): ("matmul", "stream"),
    ("packed", "keep"): ("stock", "packed"),
    ("packed", "drop"): ("unpack", "packed"),
}


@pytest.fixture(autouse=True, scope="module")
def _kernels():
    with kernels():
        yield


def weight_of(form, dtype=torch.float32, seed=1):
    weight = random(OUT, K, dtype=dtype, seed=seed)
    return weight if form == "rows" else sparsify(weight, NMPattern(1, 4))


def make(
    form="rows",
    fallback="keep",
    dtype=torch.float32,
    phase=BOTH,
    treatment=None,
    **options,
):
    weight = weight_of(form, dtype)
    phases = TokenPhases(SLOTS, torch.device("cpu"), mark_first=phase == BUT_FIRST)
    selection = None if phase is None else Selection(PATTERN, phase, treatment)
    order = None
    if treatment is not None:
        treatment.read(None, weight)
        order = treatment.parameters.channel_groups
    linear = CpuLinear(
        take_weight(weight, density=0.5, execution=Execution(), order=order),
        stock_of(weight) if fallback == "keep" else None,
        in_features=K,
        selection=selection,
        phases=phases,
        **options,
    )
    return linear, weight, phases


def stock_of(weight):
    return lambda x, bias: torch.nn.functional.linear(
        x, weight, None if bias is None else bias.to(x.dtype)
    )


def step(phases, tokens):
    """Publish a step: a letter a token, p of a prompt and d generated."""
    positions = torch.tensor([int(token == "d") for token in tokens])
    phases.publish(positions, torch.ones(len(tokens), dtype=torch.int32))


def prefer(linear, *ways):
    """Make these ways look fast, and all others slow."""
    names = linear.timed(random(2, K, dtype=linear.dtype))
    seconds = {name: 1.0 if name in ways else 2.0 for name in names}
    linear.set_times(dict.fromkeys(TOKENS, seconds))


def close(found, x, weight, bias=None):
    """Check a product of any dtype against float64."""
    exact, eps = x.double() @ weight.double().t(), torch.finfo(found.dtype).eps
    bias = torch.zeros(len(weight)) if bias is None else bias
    size = x.double().abs() @ weight.double().abs().t() + bias.double().abs()
    assert found.dtype is x.dtype
    error = (found.double() - exact - bias.double()).abs()
    assert (error <= 2 * eps * size + 1e-30).all(), float((error / size).max())


def counters():
    return torch.tensor([100, 10])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("form", "fallback"), WAYS, ids="-".join)
def test_every_way_gives_the_product(form, fallback, dtype):
    for first in WAYS[form, fallback]:
        linear, weight, phases = make(form, fallback, dtype)
        rows = ("gather", "per_token") if form == "rows" else ()
        for way in (f"masked+{first}", *rows):
            prefer(linear, first, way)
            for tokens in (2, 3, 16):
                step(phases, "d" * tokens)
                x = random(tokens, K, dtype=dtype, seed=tokens)
                bias = random(OUT, seed=9)  # vLLM's may be float32 whatever x is
                counts = counters()
                found = linear.run(x, bias, counts)
                close(found, sparsify(x, PATTERN), weight, bias.to(dtype))
                assert counts.tolist() == [100 + tokens * K, 10 + tokens * K // 2]
                assert linear.way(tokens, sparse=True) == way
            assert linear.calls[way] == 3
            assert linear.timed(x).keys() >= {first, way}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("form", "fallback"), WAYS, ids="-".join)
def test_dense_tokens_are_not_sparsified(form, fallback, dtype):
    for way in WAYS[form, fallback]:
        for phase in (None, DECODE):
            linear, weight, phases = make(form, fallback, dtype, phase)
            prefer(linear, way)
            step(phases, "ppp")
            x, counts = random(3, K, dtype=dtype), counters()
            close(linear.run(x, None, counts), x, weight)
            assert counts.tolist() == [100, 10]
            assert dict(linear.calls) == {way: 1}


STEPS = {
    "decode": ("ddddd", 5),
    "prefill": ("ppppp", 5),
    "mixed": ("pdpdd", 5),
    "padding": ("ddd", 8),
    "mixed and padding": ("dpd", 8),
    "the last tokens only": ("dddpp", 2),
    "the first are alike": ("ddpp", 2),
    "many": ("d" * 9 + "p" * 11, 20),
    "no tokens of the step": ("ddd", SLOTS + 1),
    "dummy": ("", 4),
    "one": ("d", 1),
}


@pytest.mark.parametrize("form", ["rows", "packed"])
@pytest.mark.parametrize("phase", [BOTH, PREFILL, DECODE])
@pytest.mark.parametrize(("tokens", "rows"), STEPS.values(), ids=STEPS)
def test_results_and_counts_are_those_of_the_op(tokens, rows, phase, form):
    linear, weight, phases = make(form, phase=phase, always=True)
    step(phases, "p" * 7)  # a smaller step leaves nothing behind
    step(phases, tokens) if tokens else phases.clear()
    x = random(rows, K)
    x[0, :40] = 0.0  # zeros that are kept are no non-zeros
    before, ours, theirs = x.clone(), counters(), counters()
    found = linear.run(x, None, ours)
    sparse = _sparsify_tokens_cpu(x, phases.codes, theirs, 8, 16, phase, "magnitude")
    assert ours.tolist() == theirs.tolist()
    # Padding is nobody's token: any treatment is right.
    real = rows if rows > SLOTS else len(tokens)
    close(found[:real], sparse[:real], weight)
    assert found.shape == (rows, OUT)
    assert torch.equal(x, before)


def test_no_rows_in_any_step():
    for phase in (None, BOTH, DECODE):
        linear, _, phases = make(phase=phase, always=True)
        for tokens in ("dd", "dp"):
            step(phases, tokens)
            counts = counters()
            found = linear.run(torch.empty(0, K, dtype=torch.bfloat16), None, counts)
            assert (found.shape, found.dtype) == ((0, OUT), torch.bfloat16)
            assert counts.tolist() == [100, 10]


@pytest.mark.parametrize("tokens", ["dd", "dp"])
@pytest.mark.parametrize("form", ["rows", "packed"])
def test_another_dtype_is_left_to_vllm(form, tokens):
    """Our kernels would read the weight as if it had the dtype of the activation."""
    linear, weight, phases = make(form, dtype=torch.bfloat16, phase=DECODE, always=True)
    linear.set_weights(linear.weights, stock_of(weight.float()))
    step(phases, tokens)
    found = linear.run(random(2, K), None, counters())
    assert found.dtype is torch.float32
    assert set(linear.calls) == {"masked+stock"}
    linear.set_weights(linear.weights, None)
    with pytest.raises(RuntimeError, match="dtype"):
        linear.run(random(2, K), None, counters())


@pytest.mark.parametrize("form", ["rows", "packed"])
def test_strided_and_repeated_rows(form):
    linear, weight, phases = make(form, always=True)
    step(phases, "ddd")
    wide = random(3, 2 * K)
    for x in (wide[:, :K], wide[:, ::2], wide[:1, :K].expand(3, K), wide.t()[:K].t()):
        close(linear.run(x, None, counters()), sparsify(x, PATTERN), weight)


def test_always_uses_our_kernels_for_few_tokens():
    rows, packed = make(always=True)[0], make("packed", always=True)[0]
    assert rows.way(16, sparse=True) == "gather"
    assert rows.way(17, sparse=True) == "masked+stock"
    assert (rows.way(1, sparse=False), rows.way(17, sparse=False)) == (
        "stream",
        "stock",
    )
    assert packed.way(16, sparse=True) == "masked+packed"
    assert packed.way(17, sparse=True) == "masked+stock"
    assert make("packed", "drop", always=True)[0].way(17, sparse=False) == "unpack"


def test_without_a_table_nothing_is_left_for_ours():
    linear = make()[0]
    assert {linear.way(t, sparse=True) for t in range(1, 99)} == {"masked+stock"}
    prefer(linear, "gather")
    assert linear.way(16, sparse=True) == "gather"
    assert linear.way(17, sparse=True) == "masked+stock"
    assert linear.explain() == dict.fromkeys(map(str, TOKENS), "gather 2.00x")


def test_fast_runs_dense_what_no_sparse_kernel_wins_at():
    linear, weight, phases = make(fast=True)
    assert {linear.way(t, sparse=True) for t in range(1, 99)} == {"stock"}
    prefer(linear, "gather")
    assert linear.way(16, sparse=True) == "gather"
    assert linear.way(17, sparse=True) == "stock"
    assert linear.explain() == dict.fromkeys(map(str, TOKENS), "gather 2.00x")
    prefer(linear, "stock", "gather")
    x, counts = random(3, K), counters()
    step(phases, "ddd")
    close(linear.run(x, None, counts), x, weight)
    assert counts.tolist() == [100, 10], "dense tokens are not counted"
    assert dict(linear.calls) == {"stock": 1}
    assert make(fast=True, always=True)[0].way(16, sparse=True) == "gather"


@pytest.mark.parametrize("form", ["rows", "packed"])
def test_fast_does_not_select_in_mixed_steps(form):
    linear, weight, phases = make(form, phase=DECODE, always=True, fast=True)
    step(phases, "dpd")
    x, counts = random(3, K), counters()
    close(linear.run(x, None, counts), x, weight)
    assert counts.tolist() == [100, 10]
    assert all(not way.startswith("masked") for way in linear.calls)


def test_layers_of_one_key_have_the_same_ways():
    made = [make(*way, dtype) for way in WAYS for dtype in DTYPES]
    made += [make(phase=None), make("packed", phase=None)]
    keys = [linear.key for linear, _, _ in made]
    assert len(set(keys)) == len(keys)
    assert make()[0].key == make()[0].key
    assert keys[0] == "64x96 torch.float32 rows 8:16 stock+stream"


def test_weights_that_are_loaded_again():
    linear, _, phases = make(always=True)
    step(phases, "dd")
    x = random(2, K)
    for form in ("rows", "packed", "rows"):
        for seed in (5, 6):
            weight = weight_of(form, seed=seed)
            taken = take_weight(weight, density=0.5, execution=Execution())
            linear.set_weights(taken, stock_of(weight))
            close(linear.run(x, None, counters()), sparsify(x, PATTERN), weight)


def test_a_layer_leaves_no_memory_behind():
    linear, _, phases = make(always=True)
    step(phases, "dd")
    linear.run(random(2, K), None, counters())
    rows = weakref.ref(linear.weights.rows)
    del linear
    gc.collect()
    assert rows() is None


# -- with a treatment -----------------------------------------------------------------

TREATMENTS = {
    "wina": ("wina", (), ()),
    "mean": ("wina", ("d_pts", "var"), ()),
    "learned": (
        "second_order",
        ("l_pts", "var", "ls", "output_shift", "r_sparse"),
        ("factor", "channel_shift", "output_scale", "output_shift", "low_rank"),
    ),
    "groups": ("magnitude", ("d_pts_median", "ls"), ("output_scale", "groups")),
}


class Bare(torch.nn.Module):
    """What a treatment reads of a layer of vLLM."""

    def __init__(self, dtype):
        super().__init__()
        self.prefix, self.params_dtype = "x.y_proj", dtype
        self.input_size, self.output_size = K, OUT

    def weight_loader(self, parameter, loaded):
        parameter.data.copy_(loaded)


def treatment_of(name, dtype=torch.float32):
    criterion, mitigation, names = TREATMENTS[name]
    known = {
        "factor": {"factor": random(K, seed=21).abs()},
        "channel_shift": {"channel_shift": random(K, seed=22) * 0.2},
        "output_scale": {"output_scale": random(OUT, seed=23) * 0.2},
        "output_shift": {"output_shift": random(OUT, seed=24)},
        "low_rank": {
            "low_rank_in": random(3, K, seed=25),
            "low_rank_out": random(OUT, 3, seed=26),
        },
        "groups": {"channel_groups": torch.randperm(K)},
    }
    given = {k: v for name in names for k, v in known[name].items()}
    activation = ActivationSparsity(
        pattern=str(PATTERN), criterion=criterion, mitigation=mitigation
    )
    parts = {"x.y_proj": given} if given else {}
    return make_treatment(Bare(dtype), activation, parts, device=torch.device("cpu"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("form", "fallback"), WAYS, ids="-".join)
@pytest.mark.parametrize("name", TREATMENTS)
def test_every_way_treats_alike(name, form, fallback, dtype):
    treatment = treatment_of(name, dtype)
    linear, weight, phases = make(form, fallback, dtype, treatment=treatment)
    rows = ("gather", "per_token") if form == "rows" else ()
    bound = 1e-5 if dtype is torch.float32 else 0.02
    for way in (*(f"masked+{w}" for w in WAYS[form, fallback]), *rows):
        prefer(linear, way.partition("+")[2] or WAYS[form, fallback][0], way)
        for tokens in (2, 5):
            step(phases, "d" * tokens)
            x = random(tokens, K, dtype=dtype, seed=tokens)
            bias, counts = random(OUT, seed=9, dtype=dtype), counters()
            found = linear.run(x, bias, counts)
            assert linear.calls[way] > 0
            expected = online_linear(
                x.float(), weight.float(), bias.float(), treatment.online
            )
            error = (found.float() - expected).abs().max() / expected.abs().max()
            assert error < bound, way
            assert counts.tolist() == [100 + tokens * K, 10 + tokens * K // 2]


@pytest.mark.parametrize("form", ["rows", "packed"])
@pytest.mark.parametrize("phase", [BOTH, PREFILL, DECODE, BUT_FIRST])
@pytest.mark.parametrize("name", TREATMENTS)
def test_only_the_tokens_of_the_phase_are_treated(name, phase, form):
    treatment = treatment_of(name)
    linear, weight, phases = make(form, phase=phase, treatment=treatment, always=True)
    for tokens, rows in (("pdpdd", 5), ("ddd", 8), ("dpd", 8), ("ppp", 3), ("", 4)):
        step(phases, tokens) if tokens else phases.clear()
        x, counts, bias = random(rows, K), counters(), random(OUT, seed=9)
        found = linear.run(x, bias, counts)
        chosen = selected_tokens(phases.codes[:rows], phase)
        real = len(tokens)
        dense = torch.nn.functional.linear(x, weight, bias)
        others = ~chosen
        others[real:] = False
        torch.testing.assert_close(found[others], dense[others])
        expected = online_linear(x[chosen], weight, bias, treatment.online)
        torch.testing.assert_close(found[chosen], expected, rtol=1e-4, atol=1e-4)
        count = int(chosen.sum())
        assert counts.tolist() == [100 + count * K, 10 + count * K // 2]


@pytest.mark.parametrize("name", TREATMENTS)
def test_treated_ways_are_measured(name):
    linear, weight, phases = make(treatment=treatment_of(name))
    step(phases, "ddd")
    x = random(3, K)
    ways = linear.timed(x)
    assert {"gather", "per_token", "masked+stock", "masked+stream"} <= ways.keys()
    expected = online_linear(x, weight, None, linear.selection.treatment.online)
    for way, call in ways.items():
        if "stock" not in way[:5] and way != "stream":
            torch.testing.assert_close(call(), expected, rtol=1e-4, atol=1e-4)


def test_a_table_belongs_to_a_treatment():
    keys = {make(treatment=treatment_of(name))[0].key for name in TREATMENTS}
    assert len(keys) == len(TREATMENTS)
    assert make(treatment=treatment_of("learned"))[0].key == (
        "64x96 torch.float32 rows 8:16 second_order l_pts var ls output_shift r_sparse "
        "rank 3 stock+stream"
    )


def test_treated_weights_that_are_loaded_again():
    treatment = treatment_of("groups")
    linear, _, phases = make(treatment=treatment, always=True)
    step(phases, "dd")
    x = random(2, K)
    for seed in (5, 6):
        weight = weight_of("rows", seed=seed)
        treatment.read(None, weight)
        order = treatment.parameters.channel_groups
        taken = take_weight(weight, density=0.5, execution=Execution(), order=order)
        linear.set_weights(taken, stock_of(weight))
        found = linear.run(x, None, counters())
        expected = online_linear(x, weight, None, treatment.online)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


DENSE = K * OUT * 4
KEPT = DENSE // 2


def work_of(linear, phases, tokens, rows=None):
    """Run one step, and return what it did beyond the steps before it."""
    before = linear.work()
    step(phases, tokens) if tokens else phases.clear()
    linear.run(random(rows or len(tokens), K, dtype=linear.dtype), None, counters())
    after = linear.work()
    calls = after.calls - before.calls
    fallbacks = after.fallbacks - before.fallbacks
    read, skipped = after.read - before.read, after.skipped - before.skipped
    return dict(calls), dict(fallbacks), read, skipped


def test_bytes_of_the_ways_of_sparse_tokens():
    linear, _, phases = make(phase=DECODE)
    prefer(linear, "gather")
    assert work_of(linear, phases, "d") == ({"gather": 1}, {}, KEPT, DENSE - KEPT)
    calls, fallbacks, read, skipped = work_of(linear, phases, "ddd")
    union = (sparsify(random(3, K), PATTERN) != 0).any(dim=0).sum().item()
    assert (calls, fallbacks) == ({"gather": 1}, {})
    assert (read, skipped) == (union * OUT * 4, (K - union) * OUT * 4)
    prefer(linear, "per_token")
    found = work_of(linear, phases, "ddd")
    assert found == ({"per_token": 1}, {}, DENSE, 0), "at most the whole weight"


def test_low_rank_terms_are_read_beside_the_weight():
    linear, _, phases = make(phase=DECODE, treatment=treatment_of("learned"))
    low_rank = 3 * (K + OUT) * 4
    prefer(linear, "gather")
    found = work_of(linear, phases, "d")
    assert found == ({"gather": 1}, {}, KEPT + low_rank, DENSE - KEPT - low_rank)
    found = work_of(linear, phases, "p")
    assert found[2:] == (DENSE, 0), "a dense token needs none"


@pytest.mark.parametrize(
    ("tokens", "way", "reason"),
    [
        ("d" * 17, "masked+stock", "many_tokens"),
        ("dd", "masked+stock", "dense_faster"),
        ("dp", "masked+stock", "mixed_step"),
        ("pp", "stock", None),
    ],
)
@pytest.mark.parametrize("fast", [False, True])
def test_why_a_call_reads_the_whole_weight(tokens, way, reason, fast):
    linear, _, phases = make(phase=DECODE, fast=fast)
    expected = {reason: 1} if reason else {}
    way = "stock" if fast else way
    assert work_of(linear, phases, tokens) == ({way: 1}, expected, DENSE, 0)


def test_a_packed_weight_is_to_be_read_packed():
    linear, _, phases = make("packed", phase=DECODE)
    size = linear.weights.packed.nbytes
    prefer(linear, "packed", "masked+packed")
    found = work_of(linear, phases, "dd")
    assert found == ({"masked+packed": 1}, {}, size, DENSE - size)
    found = work_of(linear, phases, "p")
    assert found == ({"packed": 1}, {}, size, DENSE - size)
    found = work_of(linear, phases, "p" * 17)
    assert found == ({"stock": 1}, {"many_tokens": 1}, DENSE, 0)


def test_another_dtype_is_a_reason():
    linear, weight, phases = make(dtype=torch.bfloat16, phase=DECODE, always=True)
    linear.set_weights(linear.weights, stock_of(weight.float()))
    step(phases, "d")
    linear.run(random(1, K), None, counters())
    work = linear.work()
    assert (work.fallbacks, work.read, work.skipped) == ({"dtype": 1}, DENSE // 2, 0)


def test_dummy_steps_are_not_counted():
    linear, _, phases = make(phase=DECODE, always=True)
    assert work_of(linear, phases, "", rows=3) == ({}, {}, 0, 0)
    linear, _, phases = make(phase=BOTH, always=True)  # where padding is sparse too
    assert work_of(linear, phases, "", rows=3) == ({}, {}, 0, 0)
    assert work_of(linear, phases, "d") == ({"gather": 1}, {}, KEPT, DENSE - KEPT)


def test_counts_outlive_tables_and_weights_until_they_are_reset():
    linear, _, phases = make(phase=DECODE, always=True)
    work_of(linear, phases, "dd")
    before = linear.work()
    prefer(linear, "stock")
    linear.set_weights(linear.weights, None)
    assert linear.work() == before
    assert before.calls == {"gather": 1}
    linear.reset()
    assert linear.work().read == linear.work().skipped == 0
    assert not linear.calls


def test_a_layer_does_not_grow_when_its_weights_are_loaded_again_and_again():
    linear, _, phases = make(phase=DECODE, always=True)

    def reload(times):
        for _ in range(times):
            for tokens in ("d", "dp", "pp"):
                step(phases, tokens)
                linear.run(random(len(tokens), K), None, counters())
            linear.set_weights(linear.weights, None)
        gc.collect()
        return sum(type(x) in (Outcome, Work) for x in gc.get_objects())

    few = reload(2)
    once = linear.work()
    assert reload(200) == few + 1, "that is `once`"
    work = linear.work()
    assert work.calls == {way: 101 * n for way, n in once.calls.items()}
    assert work.fallbacks == {why: 101 * n for why, n in once.fallbacks.items()}
    assert (work.read, work.skipped) == (101 * once.read, 101 * once.skipped)
    work.add(1, dense=1, read=1, way="x", reason="y")
    assert linear.work() != work, "what is returned is a copy"
