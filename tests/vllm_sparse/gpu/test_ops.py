"""``gather_tokens``: every way gives what the reference gives, and counts the same.

Interpreted where there is no GPU, so shapes are small.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from support.gpu_layer import OUT, SLOTS, WAYS, K, Layer, close, random
from support.online_cases import make_online

from nmsparse import sparsify
from nmsparse.ops.linear.tiles import GatherTiles
from nmsparse.ops.online import (
    sparsify_online,
)
from nmsparse.packed import PackedWeight
from nmsparse.pattern import NMPattern
from vllm_sparse.custom_ops import register_linear
from vllm_sparse.gpu import ways
from vllm_sparse.gpu.linear import GpuLinear
from vllm_sparse.gpu.ops import packed_tokens_cuda
from vllm_sparse.gpu.weights import Held
from vllm_sparse.phases import ALL, BUT_FIRST, DECODE, PREFILL
from vllm_sparse.table import TOKENS

TILES = "gather 32x16x2 w4 s1"
SHIFTS = ((), ("d_pts",), ("s_pts",), ("l_pts",))
REST = ((), ("var",), ("ls",), ("output_shift",), ("var", "ls", "output_shift"))


CASES = [
    *(("magnitude", (*shift, *rest), False) for shift in SHIFTS for rest in REST),
    *((c, ("d_pts", "var"), False) for c in ("wina", "amber_pruner", "second_order")),
    ("second_order", ("l_pts", "ls"), True),
    ("magnitude", (), True),
]


@pytest.mark.parametrize("way", ["gather", "masked", "shared"])
@pytest.mark.parametrize(("criterion", "mitigation", "groups"), CASES, ids=str)
def test_every_treatment(device, way, criterion, mitigation, groups):
    weight = random(OUT, K, seed=1)
    online = make_online("4:16", criterion, mitigation, weight=weight, groups=groups)
    layer = Layer(device, way, online)
    x, bias = random(5, K, seed=2).to(device) + 0.5, random(OUT, seed=3).to(device)
    layer.step("ddddd")
    found = layer.run(x, bias)
    if way == "shared":
        expected, counts = layer.expected_shared(x, bias)
    else:
        kept = sparsify_online(x, layer.online).values.count_nonzero()
        expected, counts = layer.expected(x, bias), [x.numel(), int(kept)]
    close(found, expected)
    assert layer.counts == counts


@pytest.mark.parametrize("way", ["gather", "shared", "masked"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(device, way, dtype):
    online = make_online(
        "8:16", "wina", ("d_pts", "var", "ls"), weight=random(OUT, K, seed=1)
    )
    layer = Layer(device, way, online, dtype=dtype)
    x = random(4, K, seed=2, dtype=dtype).to(device)
    bias = random(OUT, seed=3, dtype=dtype).to(device)
    layer.step("dddd")
    found = layer.run(x, bias)
    expected = layer.expected(x, bias)
    if way == "shared":
        expected, _ = layer.expected_shared(x, bias)
    close(found, expected, dtype)


@pytest.mark.parametrize("text", ["1:4", "2:4", "16:32", "3:8", "25%"])
@pytest.mark.parametrize("way", ["gather", "masked"])
def test_patterns(device, way, text):
    online = make_online(text, "magnitude", ("d_pts",), weight=random(OUT, K, seed=1))
    pattern = NMPattern(*online.pattern.group(K))
    layer = Layer(device, way, replace(online, pattern=pattern))
    layer.step("ddd")
    x = random(3, K, seed=4).to(device)
    close(layer.run(x), layer.expected(x))


@pytest.mark.parametrize("tokens", range(1, 21))
@pytest.mark.parametrize("way", WAYS)
def test_every_number_of_tokens(device, way, tokens):
    layer = Layer(device, way if way != "gather" else TILES)
    layer.step("d" * tokens)
    x = random(tokens, K, seed=tokens).to(device)
    found = layer.run(x)
    dense = F.linear(x, layer.weight)
    if way == "dense" or (way != "masked" and tokens > 16):
        assert torch.equal(found, F.linear(x, layer.rows.t()))
        close(found, dense)
        assert layer.counts == [0, 0], "a dense step sparsifies nothing"
        return
    shares = way == "shared" and tokens >= 3
    if way == "shared" and not shares:  # its table has no other sparse way
        close(found, dense)
        return
    expected = layer.expected_shared(x)[0] if shares else layer.expected(x)
    close(found, expected)
    assert layer.counts == [tokens * K, tokens * K // 2]


STEPS = {
    "mixed": ("pdpdd", 5),
    "prefill": ("ppp", 3),
    "decode": ("ddd", 3),
    "padding": ("dd", 8),
    "mixed and padding": ("dpd", 8),
    "first tokens": ("fpdfd", 6),
    "dummy": ("", 4),
    "more rows than tokens of any step": ("ddd", SLOTS + 1),
}


def poisoned(x, real, rows):
    """Put what must not matter where no token is."""
    if rows <= SLOTS:
        x[real:] = torch.nan
    return x


@pytest.mark.parametrize("way", ["gather", "masked"])
@pytest.mark.parametrize("phase", [ALL, PREFILL, DECODE, BUT_FIRST])
@pytest.mark.parametrize(("letters", "rows"), STEPS.values(), ids=STEPS)
@pytest.mark.parametrize("mitigation", [(), ("d_pts", "var", "ls", "output_shift")])
def test_each_token_is_treated_as_its_phase_says(
    device, way, phase, letters, rows, mitigation
):
    online = make_online(mitigation=mitigation, weight=random(OUT, K, seed=1))
    layer = Layer(device, way, online, phase)
    layer.step("p" * 7)  # a smaller step leaves nothing behind
    layer.step(letters) if letters else layer.phases.clear()
    real = len(letters)
    x = poisoned(random(rows, K, seed=5).to(device), real, rows)
    bias = random(OUT, seed=6).to(device)
    found = layer.run(x, bias)
    chosen = {
        ALL: "pfd", PREFILL: "p" if phase == BUT_FIRST else "pf", DECODE: "d",
        BUT_FIRST: "pd",
    }[phase]  # fmt: skip
    if rows > SLOTS:  # no tokens of the step
        masked = phase == ALL and way == "masked"
        dense = F.linear(x, layer.weight, bias)
        close(found, layer.expected(x, bias) if masked else dense)
        assert layer.counts == [0, 0]
        return
    tokens = x[:real]
    dense = F.linear(tokens, layer.weight, bias)
    sparse = layer.expected(tokens, bias) if real else dense
    flags = torch.tensor([c in chosen for c in letters], dtype=torch.bool).to(device)
    expected = torch.where(flags[:, None], sparse, dense) if real else dense
    close(found[:real], expected)
    kept = sparsify_online(tokens[flags], layer.online).values
    assert layer.counts == [kept.numel(), int(kept.count_nonzero())]


@pytest.mark.parametrize("phase", [ALL, DECODE])
def test_padding_has_no_say_in_a_shared_list(device, phase):
    layer = Layer(device, "shared", phase=phase)
    layer.step("ddd")
    x = random(3, K, seed=7).to(device)
    loud = torch.cat([x, torch.full((2, K), 1e4, device=x.device)])
    loud[3:, ::2] = 0  # other channels than those of the tokens
    expected, counts = layer.expected_shared(x)
    close(layer.run(loud)[:3], expected)
    assert layer.counts == counts


def test_one_dense_token_makes_a_shared_step_dense(device):
    layer = Layer(device, "shared", phase=DECODE)
    layer.step("dpd")
    x = random(3, K, seed=8).to(device)
    close(layer.run(x), F.linear(x, layer.weight))


@pytest.mark.parametrize("above", [0, 1, 2])
def test_steps_above_the_limit_are_dense(device, above):
    layer = Layer(device, "gather", dense_above=above)
    for tokens in (1, 2, 3):
        layer.step("d" * tokens)
        x = random(tokens, K, seed=9).to(device)
        sparse, dense = layer.expected(x), F.linear(x, layer.weight)
        close(layer.run(x), dense if tokens > above else sparse)
    counted = sum(t for t in (1, 2, 3) if t <= above)
    assert layer.counts == [counted * K, counted * K // 2]


@pytest.mark.parametrize("way", ["packed", "masked+packed"])
def test_pruned_weights(device, way):
    layer = Layer(device, way, pruned=True)
    bias = random(OUT, seed=3).to(device)
    for tokens in (1, 3, 17):
        layer.step("d" * tokens)
        x = random(tokens, K, seed=tokens).to(device)
        dense = F.linear(x, layer.weight, bias)
        expected = dense if way == "packed" else layer.expected(x, bias)
        close(layer.run(x, bias), expected)
    assert layer.counts == ([0, 0] if way == "packed" else [21 * K, 21 * K // 2])


@pytest.mark.parametrize("tokens", [0, 1, 16, 17])
def test_pruned_weights_of_dense_layers(device, tokens):
    weight = sparsify(random(OUT, K), NMPattern(1, 4)).to(device)
    times = {t: {"dense": 2.0, "packed": 1.0} for t in TOKENS}
    held = Held(0.75, PackedWeight.pack(weight))
    linear = GpuLinear(held, sparse=False, times=times)
    key, x = register_linear(linear), random(tokens, K).to(device)
    bias = random(OUT, seed=3).to(device)
    expected = F.linear(x, weight, bias)
    # Not the same numbers: this shows which copy was read.
    held.packed.values.mul_(2)
    if 0 < tokens <= 16:
        expected = 2 * expected - bias
    close(packed_tokens_cuda(x, weight, bias, key), expected)
    close(packed_tokens_cuda(x[None], weight, bias, key), expected[None])
    if tokens:
        half = packed_tokens_cuda(x.half(), weight.half(), None, key)
        assert half.dtype is torch.float16, "left to torch"


def test_shapes_and_strides_of_x(device):
    layer = Layer(device, "gather")
    layer.step("ddd")
    wide = random(3, 2 * K).to(device)
    for x in (wide[:, :K], wide[:, ::2], wide[:1, :K].expand(3, K)):
        before = x.clone()
        close(layer.run(x), layer.expected(x.contiguous()))
        assert torch.equal(x, before)
    x = wide[:, :K]
    close(layer.run(x[None]), layer.expected(x.contiguous())[None])
    assert layer.run(x[:0]).shape == (0, OUT)
    assert layer.run(x[None, :0]).shape == (1, 0, OUT)


def test_a_weight_that_is_not_k_major_is_not_misread(device):
    layer = Layer(device, "gather")
    layer.step("dd")
    layer.rows = layer.weight.t()
    x = random(2, K).to(device)
    close(layer.run(x), F.linear(x, layer.weight))


def test_another_dtype_is_left_to_torch(device):
    layer = Layer(device, "gather")
    layer.step("dd")
    with pytest.raises(RuntimeError, match="dtype"):
        layer.run(random(2, K, dtype=torch.bfloat16).to(device))


def test_the_tiles_of_the_table_reach_the_kernel(device, monkeypatch):
    seen = []
    kernels = ways.kernels()
    gather = kernels.gather_lists

    def spy(lists, rows, **options):
        seen.append(options["tiles"])
        return gather(lists, rows, **options)

    monkeypatch.setattr(ways, "kernels", lambda: kernels._replace(gather_lists=spy))
    layer = Layer(device, TILES)
    layer.step("dd")
    layer.run(random(2, K).to(device))
    assert seen == [GatherTiles(32, 16, 2, 4, 1)]
