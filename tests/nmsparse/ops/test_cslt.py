"""2:4 through cuSPARSELt: refusals, padding, and how torch's functions are called.

There is no GPU in these tests. torch's two functions are replaced by references that
read memory as torch does, and every call passes torch's own check of shapes.
"""

from __future__ import annotations

import pytest
import torch

from nmsparse.keep import select_keep
from nmsparse.ops.packed import cslt
from nmsparse.ops.packed.cslt import (
    SemiStructured,
    available,
    pad_tokens,
    refusal,
    semi_structured_activation_linear,
    semi_structured_linear,
)

TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 1e-2}
dtypes = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)


def random(*shape, dtype=torch.bfloat16, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def two_of_four(*shape, dtype=torch.bfloat16, seed=0):
    dense = random(*shape, dtype=dtype, seed=seed)
    return torch.where(select_keep(dense.abs(), cslt.PATTERN), dense, 0)


class FakeLibrary:
    """torch's two functions, on a CPU."""

    def __init__(self):
        self.compressions = []
        self.products = []

    def compress(self, dense):
        rows, columns = dense.shape
        # cuSPARSELt is told sizes alone, and that rows follow each other.
        assert dense.is_contiguous()
        assert rows > 0
        assert columns > 0
        assert rows % 16 == columns % 16 == 0
        assert dense.dtype in TOLERANCE
        assert (dense.view(rows, -1, 4) != 0).sum(-1).max() <= 2
        compressed = dense.new_full((rows, columns * 9 // 16), torch.nan)
        compressed.dense = dense.clone()
        self.compressions.append(tuple(dense.shape))
        return compressed

    def mm(
        self,
        compressed_A,
        dense_B,
        bias=None,
        alpha=None,
        out_dtype=None,
        transpose_result=False,
        alg_id=0,
        split_k=1,
        split_k_mode=-1,
    ):
        assert (alpha, out_dtype, split_k, split_k_mode) == (None, None, 1, -1)
        shape = torch.ops.aten._cslt_sparse_mm(
            compressed_A.to("meta"),
            dense_B.to("meta"),
            bias=None if bias is None else bias.to("meta"),
            transpose_result=transpose_result,
            alg_id=alg_id,
        ).shape
        inner, columns = dense_B.shape
        assert inner > 0
        assert columns > 0
        assert inner % 8 == columns % 8 == 0
        if not dense_B.is_contiguous():  # read as a transposed matrix without gaps
            dense_B = dense_B.as_strided((inner, columns), (1, inner))
        out = compressed_A.dense.double() @ dense_B.double()
        if bias is not None:
            assert bias.dtype is dense_B.dtype
            assert bias.is_contiguous()
            out += bias.double()[:, None]
        out = out.t() if transpose_result else out
        assert out.shape == shape
        self.products.append((columns, alg_id, transpose_result))
        return out.to(dense_B.dtype).contiguous()


@pytest.fixture
def library(monkeypatch):
    """Let a CPU pass for a GPU with cuSPARSELt."""
    fake = FakeLibrary()
    on_device = cslt.refusal
    monkeypatch.setattr(torch, "_cslt_compress", fake.compress)
    monkeypatch.setattr(torch, "_cslt_sparse_mm", fake.mm)
    monkeypatch.setattr(cslt, "_missing", lambda device: None)
    monkeypatch.setattr(
        cslt, "refusal", lambda device, *call, **more: on_device("cuda", *call, **more)
    )
    return fake


def assert_product(found, x, weight, bias=None):
    expected = x.double() @ weight.double().t()
    expected = expected if bias is None else expected + bias.double()
    assert found.dtype is x.dtype
    assert found.shape == expected.shape
    tolerance = TOLERANCE[x.dtype] * max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(found.double(), expected, rtol=0.0, atol=tolerance)


@dtypes
@pytest.mark.parametrize("tokens", [1, 7, 8, 9, 16, 33])
@pytest.mark.parametrize("with_bias", [False, True], ids=["no bias", "bias"])
def test_sparse_weight(library, dtype, tokens, with_bias):
    weight = two_of_four(48, 64, dtype=dtype, seed=2)
    x = random(tokens, 64, dtype=dtype)
    bias = random(48, dtype=dtype, seed=3) * 9 if with_bias else None
    made = SemiStructured.compress(weight, algorithm=3)
    assert_product(semi_structured_linear(x, made, bias), x, weight, bias)
    # The weight once, the product with tokens in eights, transposed by cuSPARSELt.
    assert library.compressions == [(48, 64)]
    assert library.products == [(-(-tokens // 8) * 8, 3, True)]


@dtypes
@pytest.mark.parametrize("tokens", [1, 15, 16, 17])
@pytest.mark.parametrize("with_bias", [False, True], ids=["no bias", "bias"])
def test_sparse_activation(library, dtype, tokens, with_bias):
    weight = random(40, 64, dtype=dtype, seed=2)  # 40: a multiple of 8, not of 16
    x = two_of_four(tokens, 64, dtype=dtype)
    bias = random(40, dtype=dtype, seed=3) * 9 if with_bias else None
    found = semi_structured_activation_linear(x, weight, bias, algorithm=2)
    assert_product(found, x, weight, bias)
    assert library.compressions == [(-(-tokens // 16) * 16, 64)]
    assert library.products == [(40, 2, False)]


def test_what_a_compressed_weight_tells(library):
    made = SemiStructured.compress(two_of_four(32, 64))
    assert (made.shape, made.dtype) == ((32, 64), torch.bfloat16)
    assert made.nbytes * 16 == 32 * 64 * 2 * 9
    assert made.algorithm == 0


@pytest.mark.parametrize("tokens", [5, 8, 16])
def test_tokens_in_unusual_layouts(library, tokens):
    # Gaps between rows or columns must not be read as channels.
    weight, dense = two_of_four(32, 64, seed=2), random(40, 64, seed=2)
    made = SemiStructured.compress(weight)
    for x in (
        two_of_four(tokens, 64),
        two_of_four(tokens, 80)[:, :64],
        two_of_four(tokens, 64).t().contiguous().t(),
        two_of_four(1, 64).expand(tokens, -1),
    ):
        before = x.clone()
        assert_product(semi_structured_linear(x, made), x, weight)
        assert_product(semi_structured_activation_linear(x, dense), x, dense)
        assert torch.equal(x, before)


def test_weights_in_unusual_layouts(library):
    weight, x = two_of_four(32, 80, seed=2)[:, :64], two_of_four(3, 64)
    assert_product(
        semi_structured_linear(x, SemiStructured.compress(weight)), x, weight
    )
    turned = random(64, 40).t()
    assert_product(semi_structured_activation_linear(x, turned), x, turned)
    with pytest.raises(
        ValueError, match=r"strides \(80, 1\). Expected rows or columns"
    ):
        semi_structured_activation_linear(x, random(40, 80)[:, :64])


def test_no_tokens(library):
    made = SemiStructured.compress(two_of_four(32, 64))
    assert semi_structured_linear(random(0, 64), made).shape == (0, 32)
    found = semi_structured_activation_linear(random(0, 64), random(40, 64))
    assert found.shape == (0, 40)
    assert library.products == []


def test_a_bias_of_another_dtype(library):
    weight, x = two_of_four(32, 64, seed=2), two_of_four(3, 64)
    bias = torch.arange(32.0)
    made = SemiStructured.compress(weight)
    assert_product(semi_structured_linear(x, made, bias), x, weight, bias)
    found = semi_structured_activation_linear(x, weight, bias)
    assert_product(found, x, weight, bias)


@pytest.mark.parametrize("tokens", [0, 1, 7, 8, 9, 16])
def test_padding(tokens):
    x = random(tokens, 5)
    found = pad_tokens(x, 8)
    assert found.shape == (-(-tokens // 8) * 8, 5)
    assert torch.equal(found[:tokens], x)
    assert not found[tokens:].any()
    assert found.is_contiguous()


def test_a_weight_that_is_not_two_of_four(library):
    weight = two_of_four(32, 64)
    weight[31, 60:63] = 1.0
    with pytest.raises(ValueError, match="more than 2 non-zeros in a group of 4"):
        SemiStructured.compress(weight)
    assert library.compressions == []


@pytest.mark.parametrize(
    ("shape", "sparse", "why"),
    [
        ((32, 64), "weight", None),
        ((40, 64), "weight", "out_features 40 is not a positive multiple of 16"),
        ((40, 64), "activation", None),
        ((44, 64), "activation", "out_features 44 is not a positive multiple of 8"),
        ((32, 72), "weight", "in_features 72 is not a positive multiple of 16"),
        ((32, 72), "activation", "in_features 72 is not a positive multiple of 16"),
        ((0, 64), "weight", "out_features 0 is not a positive multiple of 16"),
        ((32, 0), "activation", "in_features 0 is not a positive multiple of 16"),
    ],
)
def test_shapes(library, shape, sparse, why):
    assert refusal("cuda", torch.float16, shape, sparse=sparse) == why
    if why is None:
        return
    x, message = random(2, shape[1]), f"semi_structured: {why}. Expected a GPU"
    call = {
        "weight": lambda: SemiStructured.compress(two_of_four(*shape)),
        "activation": lambda: semi_structured_activation_linear(x, random(*shape)),
    }[sparse]
    with pytest.raises(ValueError, match=message):
        call()


def test_dtypes(library):
    assert refusal("cuda", torch.float16) is refusal("cuda", torch.bfloat16) is None
    why = "dtype float32, cuSPARSELt takes float16 and bfloat16 here"
    assert refusal("cuda", torch.float32) == why
    with pytest.raises(RuntimeError, match=why):
        SemiStructured.compress(two_of_four(32, 64, dtype=torch.float32))


def test_sizes_that_disagree(library):
    made, dense = SemiStructured.compress(two_of_four(32, 64)), random(32, 64)
    for product, weight in (
        (semi_structured_linear, made),
        (semi_structured_activation_linear, dense),
    ):
        with pytest.raises(ValueError, match=r"Expected \[T, K\]\."):
            product(random(64), weight)
        with pytest.raises(ValueError, match=r"Expected \[T, K\] = \[T, 64\]"):
            product(random(2, 32), weight)
        with pytest.raises(TypeError, match=r"x is torch.float16, the weight torch.bf"):
            product(random(2, 64, dtype=torch.float16), weight)
        with pytest.raises(
            ValueError, match=r"bias has shape \(64,\). Expected \[32\]"
        ):
            product(random(2, 64), weight, random(64))
    with pytest.raises(ValueError, match=r"Expected \[O, K\]"):
        SemiStructured.compress(random(64))
    with pytest.raises(ValueError, match=r"Expected \[O, K\]"):
        semi_structured_activation_linear(random(2, 64), random(64))


def test_unknown_operand():
    with pytest.raises(ValueError, match=r"sparse is 'both'. Expected 'weight' or"):
        refusal("cuda", torch.float16, sparse="both")


def test_a_cpu_is_refused():
    why = "the tensor is on cpu, cuSPARSELt needs a GPU"
    assert refusal("cpu", torch.float16, (32, 64)) == why
    assert not available("cpu")
    with pytest.raises(RuntimeError, match=why):
        SemiStructured.compress(two_of_four(32, 64))
    with pytest.raises(RuntimeError, match=why):
        semi_structured_activation_linear(two_of_four(2, 64), random(32, 64))


@pytest.mark.parametrize(
    ("gpu", "built", "capability", "why"),
    [
        (False, True, (9, 0), "torch sees no GPU"),
        (True, False, (9, 0), "was built without cuSPARSELt"),
        (True, True, (7, 5), "the GPU has compute capability 7.5, 2:4 needs 8.0"),
        (True, True, (8, 0), None),
        (True, True, (9, 0), None),
    ],
)
def test_what_is_missing(monkeypatch, gpu, built, capability, why):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.backends.cusparselt, "is_available", lambda: built)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    cslt._missing.cache_clear()
    found = refusal("cuda", torch.float16, (32, 64))
    cslt._missing.cache_clear()
    assert available("cuda") is (why is None)
    cslt._missing.cache_clear()
    assert found is None if why is None else why in found


@pytest.mark.gpu
@dtypes
def test_on_a_gpu(dtype):
    if not available():
        pytest.skip(str(refusal("cuda", dtype)))
    weight = two_of_four(256, 512, dtype=dtype, seed=2)
    made = SemiStructured.compress(weight.cuda())
    dense, bias = random(264, 512, dtype=dtype, seed=4), random(256, dtype=dtype)
    for tokens in (1, 7, 16, 100):
        x = two_of_four(tokens, 512, dtype=dtype)
        found = semi_structured_linear(x.cuda(), made, bias.cuda())
        assert_product(found.cpu(), x, weight, bias)
        found = semi_structured_activation_linear(x.cuda(), dense.cuda())
        assert_product(found.cpu(), x, dense)
