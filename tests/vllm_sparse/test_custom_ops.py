"""``sparsify_tokens``: the phase selects tokens, everything else is untouched.

``linear_tokens``: finds the layer that owns its weight, and counts where it is told.
"""

from __future__ import annotations

import gc
import math

import pytest
import torch
from support.oracle import sparsify_row

from vllm_sparse import custom_ops
from vllm_sparse.custom_ops import (
    ELEMENTS,
    NONZEROS,
    linear_tokens,
    register_linear,
    sparsify_tokens,
)
from vllm_sparse.phases import DECODE, PADDING, PREFILL

OP = torch.ops.vllm_sparse.sparsify_tokens.default
LINEAR_OP = torch.ops.vllm_sparse.linear_tokens.default
BOTH = PADDING  # as the op's argument, 0 means all tokens
# Five tokens of a step, then padding up to the buffer's end.
CODES = [PREFILL, DECODE, DECODE, PREFILL, DECODE, PADDING, PADDING, PADDING]
BATCHES = {
    "mixed": CODES,
    "all prefill": [PREFILL] * 8,
    "all decode": [DECODE] * 8,
    "all padding": [PADDING] * 8,
}
IMPLEMENTATIONS = {
    "cpu": custom_ops._sparsify_tokens_cpu,
    "cuda": custom_ops._sparsify_tokens_cuda,
    "dispatcher": OP,
}
VIEWS = {
    "contiguous": lambda x: x,
    "3-D": lambda x: x.unsqueeze(0),
    "strided": lambda x: torch.cat([x, x], 1)[:, : x.shape[1]],
    "transposed": lambda x: x.t().contiguous().t(),
    "3-D transposed": lambda x: x.view(2, -1, x.shape[1]).transpose(0, 1),
}
every_phase = pytest.mark.parametrize(
    "phase", [BOTH, PREFILL, DECODE], ids=["both", "prefill", "decode"]
)
every_implementation = pytest.mark.parametrize(
    "run", IMPLEMENTATIONS.values(), ids=IMPLEMENTATIONS
)


def random(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def codes_of(values=CODES):
    return torch.tensor(values, dtype=torch.uint8)


def counters_of(elements=0, nonzeros=0):
    return torch.tensor([elements, nonzeros])


def expected_of(x, codes, phase, kept=2, group=4):
    """Return rows and counter values, computed token by token in plain Python."""
    rows, elements, nonzeros = [], 0, 0
    for row, code in zip(x.flatten(0, -2).tolist(), codes, strict=False):
        chosen = phase in (BOTH, code)
        out = sparsify_row(row, kept, group) if chosen else row
        rows.append(out)
        if chosen and code != PADDING:
            elements += len(out)
            nonzeros += sum(value != 0 for value in out)
    return torch.tensor(rows, dtype=x.dtype).view(x.shape), [elements, nonzeros]


@every_phase
@every_implementation
@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_agrees_with_the_definition(run, batch, phase, dtype):
    x = random(8, 32, dtype=dtype)
    counters = counters_of(100, 10)
    y = run(x, codes_of(batch), counters, 2, 4, phase, "magnitude")
    expected, counts = expected_of(x, batch, phase)
    assert torch.equal(y, expected)
    assert y.dtype is dtype
    assert counters.tolist() == [100 + counts[ELEMENTS], 10 + counts[NONZEROS]]


def test_a_phase_selects_only_its_tokens():
    x = random(8, 16)
    for phase, other in ((PREFILL, DECODE), (DECODE, PREFILL)):
        y = sparsify_tokens(
            x,
            codes_of(),
            counters_of(),
            kept=1,
            group=4,
            phase=phase,
            criterion="magnitude",
        )
        for row, code in enumerate(CODES):
            if code == phase:
                assert y[row].count_nonzero() == 4
            else:
                assert torch.equal(y[row], x[row]), f"a token of {code} or {other}"


@every_phase
@every_implementation
def test_padding_is_not_counted(run, phase):
    x, counters = random(8, 16), counters_of()
    x[5:] = 7.0
    run(x, codes_of(), counters, 2, 4, phase, "magnitude")
    real = {BOTH: 5, PREFILL: 2, DECODE: 3}[phase]
    assert counters.tolist() == [real * 16, real * 8]


@every_implementation
def test_zeros_that_were_kept_are_not_counted_as_nonzeros(run):
    x, counters = torch.zeros(2, 8), counters_of()
    x[0, :3] = torch.tensor([1.0, -0.0, math.nan])
    run(x, codes_of([DECODE, DECODE]), counters, 2, 4, DECODE, "magnitude")
    assert counters.tolist() == [16, 2]


@every_phase
@every_implementation
@pytest.mark.parametrize("tokens", [0, 1, 5, 8])
def test_a_step_shorter_than_the_buffer(run, tokens, phase):
    x, counters = random(tokens, 16), counters_of()
    y = run(x, codes_of(), counters, 2, 4, phase, "magnitude")
    expected, counts = expected_of(x, CODES, phase) if tokens else (x, [0, 0])
    assert torch.equal(y, expected)
    assert counters.tolist() == counts


@every_phase
@every_implementation
@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_layouts(run, view, phase):
    x, counters = view(random(8, 32)), counters_of()
    y = run(x, codes_of(), counters, 2, 4, phase, "magnitude")
    expected, counts = expected_of(x, CODES, phase)
    assert y.shape == x.shape
    assert torch.equal(y, expected)
    assert counters.tolist() == counts
    # What the fake promises: compiled code relies on it.
    assert y.is_contiguous()


@every_phase
@every_implementation
@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("kept", [2, 4], ids=["2:4", "4:4"])
def test_the_result_never_aliases_the_input(run, batch, phase, kept):
    x = random(8, 16)
    before, codes = x.clone(), codes_of(batch)
    y = run(x, codes, counters_of(), kept, 4, phase, "magnitude")
    y.fill_(7.0)
    assert torch.equal(x, before)
    assert torch.equal(codes, codes_of(batch))


@every_implementation
def test_unstructured_is_one_group(run):
    x, counters = random(8, 24), counters_of()
    y = run(x, codes_of(), counters, 12, 24, BOTH, "magnitude")
    assert (y.count_nonzero(dim=1) == 12).all()
    assert counters.tolist() == [5 * 24, 5 * 12]


@every_phase
@every_implementation
def test_nan_and_infinity_stay_in_their_token(run, phase):
    x = random(8, 16)
    x[1, 3], x[1, 8], x[6, 0] = math.nan, -math.inf, math.inf
    y = run(x, codes_of(), counters_of(), 2, 4, phase, "magnitude")
    assert y[1, 3].isnan()
    assert y[1, 8] == -math.inf
    rest = [0, 2, 3, 4, 5, 7]
    expected, _ = expected_of(x[rest], [CODES[i] for i in rest], phase)
    assert torch.equal(y[rest], expected)


@every_phase
@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_opcheck(view, phase):
    arguments = (view(random(8, 32)), codes_of(), counters_of(), 2, 4, phase)
    torch.library.opcheck(OP, (*arguments, "magnitude"))


@every_phase
def test_opcheck_edges(phase):
    for x in (random(0, 32), random(1, 32), random(8, 32, dtype=torch.bfloat16)):
        arguments = (x, codes_of(), counters_of(), 4, 4, phase, "magnitude")
        torch.library.opcheck(OP, arguments)


@pytest.mark.parametrize("shape", [(8, 32), (1, 8, 32), (0, 32)])
def test_fake_has_the_shape_dtype_and_device(shape):
    x = torch.empty(shape, dtype=torch.bfloat16, device="meta")
    y = OP(x, codes_of().to("meta"), counters_of().to("meta"), 2, 4, 0, "magnitude")
    assert (y.shape, y.dtype, y.device.type) == (x.shape, torch.bfloat16, "meta")


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles_whole_with_dynamic_shapes(backend):
    torch._dynamo.reset()
    counters, codes = counters_of(), codes_of()

    def layer(x):
        y = sparsify_tokens(
            x * 2,
            codes,
            counters,
            kept=2,
            group=4,
            phase=DECODE,
            criterion="magnitude",
        )
        return y + 1

    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=backend)
    elements = nonzeros = 0
    with torch._dynamo.config.patch(error_on_recompile=True):
        # Not 8, the size of the buffer: torch would take the two sizes for one.
        for tokens in (7, 3, 5):
            x = random(tokens, 32, seed=tokens)
            expected, counts = expected_of(x * 2, CODES, DECODE)
            assert torch.equal(compiled(x), expected + 1)
            elements += counts[ELEMENTS]
            nonzeros += counts[NONZEROS]
            assert counters.tolist() == [elements, nonzeros]
    # The same compiled code reads the next step's codes.
    codes.fill_(PREFILL)
    assert torch.equal(compiled(x), x * 2 + 1)
    assert counters.tolist() == [elements, nonzeros]


def test_a_call_whose_result_is_unused_still_counts():
    torch._dynamo.reset()
    counters = counters_of()

    def count(x):
        OP(x, codes_of(), counters, 2, 4, BOTH, "magnitude")
        return x + 1

    torch.compile(count, fullgraph=True, backend="aot_eager")(random(8, 16))
    assert counters.tolist() == [80, 40]


@every_implementation
def test_errors_pass_through(run):
    arguments = (random(8, 6), codes_of(), counters_of(), 2, 4, BOTH)
    with pytest.raises(ValueError, match="in_features 6 is not a multiple of m=4"):
        run(*arguments, "magnitude")
    with pytest.raises(ValueError, match="Unknown criterion 'loudness'"):
        run(random(8, 8), *arguments[1:], "loudness")


# -- linear_tokens --------------------------------------------------------------------


class Linear:
    """What runs a layer: counts tokens as its elements, multiplies by its weight."""

    def __init__(self, seed=1):
        self.weight = random(12, 32, seed=seed)

    def run(self, x, bias, counters):
        counters.add_(torch.tensor([len(x), 1]))
        return torch.nn.functional.linear(x, self.weight, bias)


def test_the_layer_of_a_key_runs():
    layers = [Linear(seed) for seed in range(3)]
    keys = [register_linear(layer) for layer in layers]
    x, bias, counters = random(5, 32), random(12), counters_of(100, 10)
    for key, layer in zip(keys, layers, strict=True):
        expected = torch.nn.functional.linear(x, layer.weight, bias)
        for found in (
            linear_tokens(x, bias, key=key, counters=counters, outputs=12),
            LINEAR_OP(x, bias, key.clone(), counters, 12),
        ):
            assert torch.equal(found, expected)
    assert counters.tolist() == [100 + 6 * 5, 10 + 6]


@pytest.mark.parametrize(
    "shape", [(5, 32), (1, 5, 32), (2, 3, 32), (0, 32), (1, 0, 32), (32,)]
)
def test_any_number_of_dimensions(shape):
    layer = Linear()
    key, counters, x = register_linear(layer), counters_of(), random(*shape)
    found = linear_tokens(x, None, key=key, counters=counters, outputs=12)
    expected = torch.nn.functional.linear(x, layer.weight)
    torch.testing.assert_close(found, expected)
    assert counters.tolist() == [x.numel() // 32, 1]
    meta = LINEAR_OP(*(t.to("meta") for t in (x, x.sum(), key, counters)), 12)
    assert (meta.shape, meta.dtype) == (found.shape, found.dtype)


def test_a_layer_that_is_gone_is_not_mistaken_for_another():
    first = Linear()
    key = register_linear(first)
    del first
    gc.collect()
    others = [Linear() for _ in range(9)]
    later = {int(register_linear(layer)) for layer in others}
    assert len(later) == 9
    assert int(key) not in later
    with pytest.raises(KeyError):
        LINEAR_OP(random(1, 32), None, key, counters_of(), 12)


def test_opcheck_of_linear_tokens():
    """It hands over copies of every tensor, as a backend may."""
    layer = Linear()
    for x in (random(3, 32), random(1, 3, 32), random(0, 32)):
        for bias in (None, random(12)):
            arguments = (x, bias, register_linear(layer), counters_of(), 12)
            torch.library.opcheck(LINEAR_OP, arguments)


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_linear_tokens_compiles_whole(backend):
    """Twice in one graph, too: backends that copy ``counters`` lose no count."""
    torch._dynamo.reset()
    layer, counters = Linear(), counters_of()
    key = register_linear(layer)

    def twice(x):
        first = linear_tokens(x * 2, None, key=key, counters=counters, outputs=12)
        return first + linear_tokens(x, None, key=key, counters=counters, outputs=12)

    compiled = torch.compile(twice, fullgraph=True, dynamic=True, backend=backend)
    total = 0
    with torch._dynamo.config.patch(error_on_recompile=True):
        for tokens in (7, 3, 5):
            x = random(tokens, 32, seed=tokens)
            expected = torch.nn.functional.linear(x * 2, layer.weight)
            expected += torch.nn.functional.linear(x, layer.weight)
            torch.testing.assert_close(compiled(x), expected)
            total += 2 * tokens
    assert counters.tolist() == [total, 6]
    # The same code runs another layer: the key is an input of it.
    other = Linear(seed=2)
    key.copy_(register_linear(other))
    expected = torch.nn.functional.linear(x * 3, other.weight)
    torch.testing.assert_close(compiled(x), expected)
