"""``prepare_tokens`` and ``finish_tokens`` around a product: the reference."""

from __future__ import annotations

import pytest
import torch

from nmsparse.ops.online import Constants, Online, online_linear
from nmsparse.parameters import Parameters
from nmsparse.pattern import NMPattern
from vllm_sparse.phases import ALL, BUT_FIRST, DECODE, FIRST, PADDING, PREFILL
from vllm_sparse.treatment import ops

PREPARE = torch.ops.vllm_sparse.prepare_tokens.default
FINISH = torch.ops.vllm_sparse.finish_tokens.default
IMPLEMENTATIONS = {
    "cpu": (ops._prepare_cpu, ops._finish_cpu),
    "cuda": (ops._prepare_cuda, ops._finish_cuda),
    "dispatcher": (PREPARE, FINISH),
}
K, OUT, RANK = 32, 12, 3
CODES = [FIRST, PREFILL, DECODE, DECODE, PREFILL, DECODE, PADDING, PADDING]
TREATMENTS = {
    "wina": ("wina", ()),
    "groups": ("magnitude", ()),
    "d_pts var": ("magnitude", ("d_pts", "var")),
    "median ls": ("wina", ("d_pts_median", "ls")),
    "l_pts r_sparse": ("second_order", ("l_pts", "r_sparse")),
    "everything": (
        "second_order",
        ("l_pts", "var", "ls", "output_shift", "r_sparse"),
    ),
    "shift alone": ("magnitude", ("output_shift",)),
    "clact": ("clact", ("d_pts", "var")),
}
every_implementation = pytest.mark.parametrize(
    ("prepare", "finish"), IMPLEMENTATIONS.values(), ids=IMPLEMENTATIONS
)


def random(*shape, seed=0, scale=1.0):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make(name):
    """Return a rule with all the tensors it needs, a weight, and its constants."""
    criterion, mitigation = TREATMENTS[name]
    given = {}
    if criterion in ("wina", "second_order"):
        given["factor"] = random(K, seed=1).abs()
    if {"l_pts", "s_pts"} & set(mitigation):
        given["channel_shift"] = random(K, seed=2, scale=0.3)
    if "ls" in mitigation:
        given["output_scale"] = random(OUT, seed=3, scale=0.2)
    if "output_shift" in mitigation:
        given["output_shift"] = random(OUT, seed=4)
    if "r_sparse" in mitigation:
        given["low_rank_in"] = random(RANK, K, seed=5)
        given["low_rank_out"] = random(OUT, RANK, seed=6)
    if name == "groups":
        order = torch.randperm(K, generator=torch.Generator().manual_seed(7))
        given["channel_groups"] = order
    online = Online(NMPattern(2, 8), criterion, mitigation, Parameters(**given))
    online.check(K, OUT)
    weight = random(OUT, K, seed=8)
    return online, weight, Constants.of(weight, online)


def arguments(online, x, codes, counters, phase):
    given, pattern = online.parameters, online.pattern
    return (
        x,
        codes,
        counters,
        given.factor,
        given.channel_shift,
        given.output_scale,
        given.channel_groups,
        pattern.n,
        pattern.m,
        phase,
        online.criterion,
        ",".join(online.mitigation),
    )


def run(prepare, finish, name, x, *, phase, codes=CODES, bias=None, counters=None):
    """Return what the two ops make of vLLM's product, and that product."""
    online, weight, constants = make(name)
    codes = torch.tensor(codes, dtype=torch.uint8)
    counters = torch.zeros(2, dtype=torch.int64) if counters is None else counters
    values, *state = prepare(*arguments(online, x, codes, counters, phase))
    product = torch.nn.functional.linear(values, weight, bias)
    given = online.parameters
    y = finish(
        product,
        bias,
        codes,
        *state,
        constants.row_sum,
        constants.constant,
        given.output_scale,
        given.low_rank_in,
        given.low_rank_out,
        phase,
    )
    return y, values


def chosen(phase, codes=CODES):
    known = {ALL: (FIRST, PREFILL, DECODE), BUT_FIRST: (PREFILL, DECODE)}
    return [code in known.get(phase, (phase,)) for code in codes]


@every_implementation
@pytest.mark.parametrize("with_bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("phase", [ALL, PREFILL, DECODE, BUT_FIRST])
@pytest.mark.parametrize("name", TREATMENTS)
def test_agrees_with_the_reference(prepare, finish, name, phase, with_bias):
    online, weight, _ = make(name)
    x = random(len(CODES), K, seed=9)
    bias = random(OUT, seed=10, scale=5.0) if with_bias else None
    counters = torch.tensor([100, 10])
    y, values = run(prepare, finish, name, x, phase=phase, bias=bias, counters=counters)
    rows = torch.tensor(chosen(phase))
    expected = online_linear(x[rows], weight, bias, online)
    torch.testing.assert_close(y[rows], expected, rtol=1e-4, atol=1e-4)
    # Others are vLLM's dense tokens, to the bit.
    dense = torch.nn.functional.linear(x, weight, bias)
    real = torch.tensor(CODES) != PADDING
    others = ~rows & real
    assert torch.equal(values[others], x[others])
    assert torch.equal(y[others], dense[others])
    count = int(rows.sum())
    assert counters.tolist() == [100 + count * K, 10 + count * K // 4]


@every_implementation
@pytest.mark.parametrize("name", set(TREATMENTS) - {"clact"})
def test_a_token_does_not_depend_on_its_neighbours(prepare, finish, name):
    x = random(len(CODES), K, seed=9)
    together, _ = run(prepare, finish, name, x, phase=ALL)
    for t in range(6):
        alone, _ = run(
            prepare, finish, name, x[t : t + 1], phase=ALL, codes=CODES[t : t + 1]
        )
        torch.testing.assert_close(alone[0], together[t], rtol=1e-5, atol=1e-5)


@every_implementation
def test_clact_looks_at_the_tokens_that_are_sparsified_alone(prepare, finish):
    x = random(len(CODES), K, seed=9)
    _, first = run(prepare, finish, "clact", x, phase=DECODE)
    x[1], x[6] = 100.0 * random(K, seed=11), 100.0 * random(K, seed=12)
    _, second = run(prepare, finish, "clact", x, phase=DECODE)
    rows = torch.tensor(chosen(DECODE))
    assert torch.equal(first[rows], second[rows])
    x[2] *= 100.0
    _, third = run(prepare, finish, "clact", x, phase=DECODE)
    assert not torch.equal(first[3], third[3])


@every_implementation
@pytest.mark.parametrize("shape", [(1, 5, K), (0, K), (1, K), (2, 3, K)], ids=str)
def test_shapes(prepare, finish, shape):
    y, values = run(prepare, finish, "everything", random(*shape), phase=ALL)
    assert values.shape == shape
    assert y.shape == (*shape[:-1], OUT)


@every_implementation
def test_the_result_never_aliases_the_input(prepare, finish):
    x = random(len(CODES), K)
    before = x.clone()
    for codes in (CODES, [PADDING] * 8, [DECODE] * 8):
        y, values = run(prepare, finish, "everything", x, phase=DECODE, codes=codes)
        y.fill_(7.0)
        values.fill_(7.0)
        assert torch.equal(x, before)


@pytest.mark.parametrize("name", TREATMENTS)
def test_opcheck(name):
    online, weight, constants = make(name)
    codes, counters = torch.tensor(CODES, dtype=torch.uint8), torch.zeros(2).long()
    for x in (random(8, K), random(1, 5, K), random(0, K), random(8, 2 * K)[:, ::2]):
        given = arguments(online, x, codes, counters, DECODE)
        torch.library.opcheck(PREPARE, given)
        values, *state = PREPARE(*given)
        p = online.parameters
        tensors = (p.output_scale, p.low_rank_in, p.low_rank_out)
        torch.library.opcheck(
            FINISH,
            (
                values @ weight.t(),
                random(OUT),
                codes,
                *state,
                constants.row_sum,
                constants.constant,
                *tensors,
                DECODE,
            ),
        )


def test_bfloat16_is_rounded_twice_at_most():
    online, weight, constants = make("everything")
    x, bias = random(8, K, seed=9).bfloat16(), random(OUT, seed=10).bfloat16()
    weight = weight.bfloat16()
    constants = Constants.of(weight, online)
    codes, counters = torch.tensor([DECODE] * 8).byte(), torch.zeros(2).long()
    values, *state = PREPARE(*arguments(online, x, codes, counters, ALL))
    product = torch.nn.functional.linear(values, weight, bias)
    given = online.parameters.to("cpu", dtype=torch.bfloat16)
    y = FINISH(
        product,
        bias,
        codes,
        *state,
        constants.row_sum,
        constants.constant,
        given.output_scale,
        given.low_rank_in,
        given.low_rank_out,
        ALL,
    )
    assert y.dtype is torch.bfloat16
    expected = online_linear(x.float(), weight.float(), bias.float(), online)
    error = (y.float() - expected).abs().max() / expected.abs().max()
    assert error < 0.02
