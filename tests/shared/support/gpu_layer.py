"""A layer as the GPU ops see it, and the tolerance its results have."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from support.online_cases import make_online

from nmsparse import sparsify
from nmsparse.ops.online import (
    Constants,
    Sparsified,
    finish_online,
    online_linear,
)
from nmsparse.ops.sparsify.shared import list_shared_reference
from nmsparse.packed import PackedWeight
from nmsparse.pattern import NMPattern
from vllm_sparse.custom_ops import register_linear
from vllm_sparse.gpu.choice import NEVER
from vllm_sparse.gpu.linear import GpuLinear
from vllm_sparse.gpu.ops import gather_tokens_cuda
from vllm_sparse.gpu.weights import Held
from vllm_sparse.phases import ALL, BUT_FIRST, TokenPhases
from vllm_sparse.table import TOKENS

K, OUT, SLOTS = 32, 24, 24
WAYS = ("gather", "shared", "masked", "dense")


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


class Layer:
    """A layer as the op sees it, with a way that wins at all numbers of tokens."""

    def __init__(
        self, device, way, online=None, phase=ALL, dtype=torch.float32, **more
    ):
        self.device, self.phase = torch.device(device), phase
        self.weight = random(OUT, K, seed=1, dtype=dtype).to(device)
        if more.pop("pruned", False):
            self.weight = sparsify(self.weight, NMPattern(1, 4))
        if online is None:
            online = make_online(weight=self.weight.cpu())
        given = online.parameters.to(self.device, dtype=torch.float32)
        self.online = online = replace(online, parameters=given)
        self.constants = Constants.of(self.weight, online)
        self.phases = TokenPhases(SLOTS, self.device, mark_first=phase == BUT_FIRST)
        first = "masked" if way.startswith("masked") else "dense"
        times = {t: {first: 2.0, way: 1.0} for t in TOKENS}
        packed = PackedWeight.pack(self.weight) if "packed" in way else None
        options = {
            "dense_above": TOKENS[-1] if first == "dense" else NEVER,
            "shared": way.startswith("shared"),
            "times": times,
        }
        self.linear = GpuLinear(Held(0.5, packed), sparse=True, **(options | more))
        self.key = register_linear(self.linear)
        self.rows = self.weight.t().contiguous()
        self.counters = torch.tensor([100, 10], device=device)

    def step(self, letters):
        """Publish a step: p of a prompt, f its first token, d a generated one."""
        places = {"p": 1, "f": 0, "d": 9}
        positions = torch.tensor([places[x] for x in letters], device=self.device)
        prompts = torch.full((len(letters),), 5, device=self.device)
        self.phases.publish(positions, prompts)

    def arguments(self, x, bias=None):
        given, (kept, group) = self.online.parameters, self.online.pattern.group(K)
        return (
            x,
            self.rows,
            bias,
            self.key,
            *self.phases.masks(self.phase),
            self.counters,
            given.factor,
            given.channel_shift,
            given.output_scale,
            given.channel_groups,
            self.constants.row_sum,
            self.constants.constant,
            kept,
            group,
            self.phase,
            self.online.variance,
        )

    def run(self, x, bias=None):
        return gather_tokens_cuda(*self.arguments(x, bias))

    @property
    def counts(self):
        return (self.counters - torch.tensor([100, 10], device=self.device)).tolist()

    def expected(self, x, bias=None):
        return online_linear(x, self.weight, bias, self.online)

    def expected_shared(self, x, bias=None):
        """Return the result with the reference's one list, and the counters."""
        given, (kept, group) = self.online.parameters, self.online.pattern.group(K)
        counts = torch.zeros(2, dtype=torch.int64, device=self.device)
        lists = list_shared_reference(
            x,
            kept=kept,
            group=group,
            factor=given.factor,
            channel_shift=given.channel_shift,
            statistic=self.online.statistic == "mean",
            variance=self.online.variance,
            channel_groups=given.channel_groups,
            counters=counts,
        )
        values = torch.zeros_like(x)
        values[:, lists.indices[0].long()] = lists.values[:, : lists.kept]
        rows = Sparsified(values, lists.scale, lists.token_shift)
        product = F.linear(values.float(), self.weight.float())
        y = finish_online(product, rows, self.online, self.constants)
        return (y if bias is None else y + bias.float()).to(x.dtype), counts.tolist()


def close(found, expected, dtype=torch.float32):
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    tolerance = 2e-5 if dtype is torch.float32 else 6 * torch.finfo(dtype).eps
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * K)
