"""The streamed head: vLLM's logits within rounding, and vLLM's own where it must be."""

from __future__ import annotations

import pytest
import torch
from support.cpu_kernels import DTYPES, kernels, random
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    VocabParallelEmbedding,
)

from vllm_sparse.cpu.head import StreamedHead, wrap_heads
from vllm_sparse.cpu.prepare import measure_layers
from vllm_sparse.table import TOKENS

VOCABULARY, K = 130, 64
FAST = {tokens: {"stock": 2.0, "stream": 1.0} for tokens in (1, 2)}


@pytest.fixture(autouse=True, scope="module")
def _kernels():
    with kernels():
        yield


class Stock:
    """vLLM's function: records its calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self, x, weight, bias):
        self.calls += 1
        bias = None if bias is None else bias.to(x.dtype)
        return torch.nn.functional.linear(x, weight.to(x.dtype), bias)


def make(dtype=torch.float32, times=FAST):
    weight = random(VOCABULARY, K, dtype=dtype)
    head = StreamedHead(weight, Stock())
    head.set_times(times)
    return head, weight


def close(found, x, weight, bias=None):
    exact, eps = x.double() @ weight.double().t(), torch.finfo(found.dtype).eps
    if bias is not None:
        exact += bias.double()
    size = x.double().abs() @ weight.double().abs().t() + 4.0
    assert found.dtype is x.dtype
    assert ((found.double() - exact).abs() <= 2 * eps * size).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tokens", [1, 2, 3])
def test_logits(tokens, dtype):
    head, weight = make(dtype)
    x, bias = random(tokens, K, dtype=dtype, seed=2), random(VOCABULARY, seed=3)
    close(head(x, weight, None), x, weight)
    close(head(x, weight, bias), x, weight, bias.to(dtype))
    streamed = tokens <= 2
    assert head.stock.calls == (0 if streamed else 2)
    assert head.calls == {"stream" if streamed else "stock": 2}


def test_three_dimensions_and_no_tokens():
    head, weight = make()
    x = random(1, 2, K)
    found = head(x, weight, None)
    assert found.shape == (1, 2, VOCABULARY)
    close(found[0], x[0], weight)
    assert head(x[:, :0], weight, None).shape == (1, 0, VOCABULARY)
    assert head(x[0, ::2], weight, None).shape == (1, VOCABULARY)


def test_another_dtype_is_vllms():
    """Our kernel would read the weight as if it had the dtype of the hidden state."""
    head, weight = make(torch.bfloat16)
    x = random(1, K)
    close(head(x, weight, None), x, weight)
    assert head.calls == {"stock": 1}


def test_the_weight_is_the_one_that_is_passed():
    """A weight that was loaded again may lie elsewhere."""
    head, _ = make()
    other = random(VOCABULARY, K, seed=7)
    x = random(1, K)
    close(head(x, other, None), x, other)
    assert head.stock.calls == 0


def test_unmeasured_heads_are_vllms():
    head, weight = make(times={})
    head(random(1, K), weight, None)
    assert head.calls == {"stock": 1}


def test_heads_are_measured():
    head, _ = make()
    times = measure_layers([head])
    assert times.keys() == set(TOKENS)
    assert all(times[t].keys() == {"stock", "stream"} for t in TOKENS)
    assert head.stock.calls == len(TOKENS) * 8
    assert (head.key, head.in_features) == ("head 64x130 torch.float32", K)
    assert not head.calls, "measuring is not running"


class Embedding(VocabParallelEmbedding):
    """An embedding of vLLM without the process groups it wants."""

    def __new__(cls, *args, **kwargs):
        return torch.nn.Module.__new__(cls)

    def __init__(self, weight, stock=None):
        torch.nn.Module.__init__(self)
        self.weight = None if weight is None else torch.nn.Parameter(weight)
        if stock is not None:
            self.cpu_linear = stock


class Head(ParallelLMHead):
    __new__ = Embedding.__new__
    __init__ = Embedding.__init__


class Model(torch.nn.Module):
    def __init__(self, **modules):
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)


def test_heads_of_a_model():
    stock, weight = Stock(), random(VOCABULARY, K)
    tied = Embedding(weight, stock)
    head = Head(random(VOCABULARY, K), stock)
    looked_up = Embedding(random(VOCABULARY, K), stock)
    model = Model(
        embed_tokens=tied,
        also=Model(lm_head=tied),
        lm_head=head,
        embed_tokens_per_layer=looked_up,
    )
    found = list(wrap_heads(model))
    assert [tied.cpu_linear, head.cpu_linear] == found, "a tied one is one"
    assert found[0].weight.data_ptr() == weight.data_ptr(), "no copy"
    assert not found[0].weight.requires_grad
    assert list(wrap_heads(model)) == [], "and only once"
    assert looked_up.cpu_linear is stock, "no head, so not worth measuring"
    x = random(1, K)
    close(tied.cpu_linear(x, tied.weight.data, None), x, weight)


@pytest.mark.parametrize(
    "module",
    [
        Embedding(random(VOCABULARY, K)),  # quantized: no function of vLLM's
        Embedding(None, Stock()),
        Embedding(torch.empty(0), Stock()),  # vLLM packed it
        Embedding(torch.empty(0, K), Stock()),
        Embedding(random(K, VOCABULARY).t(), Stock()),
        Embedding(random(VOCABULARY, K, dtype=torch.float64), Stock()),
        Embedding(torch.empty(VOCABULARY, K, device="meta"), Stock()),
        Model(weight=torch.nn.Parameter(random(2, K)), cpu_linear=Stock()),
    ],
    ids=["quantized", "none", "packed", "empty", "t", "float64", "meta", "other"],
)
def test_what_is_no_head_stays(module):
    before = vars(module).get("cpu_linear")
    assert list(wrap_heads(Model(lm_head=module))) == []
    assert vars(module).get("cpu_linear") is before
