"""``gather_tokens`` in compiled code and CUDA graphs: shapes, tracing, no waiting."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support.gpu_layer import OUT, WAYS, K, Layer, close, random
from support.online_cases import make_online
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from nmsparse.ops.online import Sparsified
from vllm_sparse.gpu import ways
from vllm_sparse.gpu.ops import gather_tokens_cuda
from vllm_sparse.phases import DECODE


def test_fakes_promise_what_comes(device):
    layer = Layer(device, "gather")
    layer.step("ddd")
    for shape in ((3, K), (1, 3, K)):
        arguments = layer.arguments(random(*shape).to(device))
        real = gather_tokens_cuda(*arguments)
        with FakeTensorMode() as mode:
            fakes = [
                mode.from_tensor(a) if isinstance(a, torch.Tensor) else a
                for a in arguments
            ]
            fake = torch.ops.vllm_sparse.gather_tokens(*fakes)
            also = torch.ops.vllm_sparse.packed_tokens(
                fakes[0], fakes[1].t(), None, fakes[3]
            )
        for found in (fake, also):
            assert found.shape == real.shape
            assert found.stride() == real.stride()
            assert found.dtype is real.dtype


def test_compiled_code_calls_the_ops(device):
    """Traced once, it takes other numbers of tokens: the choice is inside of the op."""
    library = torch.library.Library("vllm_sparse", "IMPL")
    if device == "cpu":
        library.impl("gather_tokens", gather_tokens_cuda, "CPU")
    layer = Layer(device, "gather")

    @torch.compile(fullgraph=True, dynamic=True, backend="aot_eager")
    def forward(x, *rest):
        return torch.ops.vllm_sparse.gather_tokens(x * 2, *rest) + 1

    for tokens in (2, 5, 18):
        layer.step("d" * tokens)
        x = random(tokens, K, seed=tokens).to(device)
        arguments = layer.arguments(x)
        expected = (
            layer.expected(2 * x) if tokens <= 16 else F.linear(2 * x, layer.weight)
        )
        close(forward(*arguments), expected + 1)
    assert layer.counts == [7 * K, 7 * K // 2]
    library._destroy()


class Reads(TorchDispatchMode):
    """Note what would make the host wait, or shapes depend on values."""

    WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "_to_copy", "unique2")

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().partition("::")[2].partition(".")[0]
        index = name == "index" and any(
            i is not None and i.dtype is torch.bool for i in args[1]
        )
        if name in self.WAITS or index:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("way", WAYS)
def test_nothing_waits_for_the_device(device, way, monkeypatch):
    kernels = ways.kernels()
    if device == "cpu":  # the interpreter reads what it likes
        monkeypatch.setattr(ways, "kernels", lambda: stubs(kernels))
    online = make_online(mitigation=("d_pts", "var", "ls"), weight=random(OUT, K))
    layer = Layer(device, way, online, DECODE)
    layer.step("dpd")
    arguments = layer.arguments(random(3, K).to(device))
    with Reads() as reads:
        gather_tokens_cuda(*arguments)
    # The key of the layer, which is on the host.
    assert reads.found == ["_local_scalar_dense"]


def stubs(kernels):
    """Return functions with results of the right shapes, but for masks."""

    def mask(x, **options):
        ones = x.new_ones(len(x))
        return Sparsified(x * 1, ones, ones)

    return kernels._replace(
        list_tokens=lambda x, **options: x,
        mask_tokens=mask,
        gather_lists=lambda x, rows, **options: x @ rows,
    )
