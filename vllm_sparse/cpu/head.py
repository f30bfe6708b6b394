"""The output head at few tokens: stream the embedding as it lies, without a copy.

vLLM's CPU backend sets ``layer.cpu_linear`` on heads and embeddings and keeps their
weight, ``[vocabulary, K]``. For one or two tokens our kernel reads it faster.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial

import torch
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    VocabParallelEmbedding,
)

from nmsparse.native.abi import DTYPES
from nmsparse.ops.packed.cpu import stream_o_major
from vllm_sparse.cpu.products import STOCK, STREAM
from vllm_sparse.table import Times, choose

# vLLM's own: (x, weight, bias) -> logits.
Gemm = Callable[[torch.Tensor, torch.Tensor, "torch.Tensor | None"], torch.Tensor]


class StreamedHead:
    """What replaces ``layer.cpu_linear`` of one head.

    Args:
        weight: ``[vocabulary, K]`` of this rank.
        stock: vLLM's function.

    Attributes:
        calls: how often each way ran.
    """

    def __init__(self, weight: torch.Tensor, stock: Gemm) -> None:
        self.weight = weight
        self.stock = stock
        self.calls: Counter[str] = Counter()
        self.times: Times = {}

    @property
    def key(self) -> str:
        """Layers of one key share a measured table."""
        outputs, channels = self.weight.shape
        return f"head {channels}x{outputs} {self.weight.dtype}"

    @property
    def in_features(self) -> int:
        """K."""
        return self.weight.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """Type of weight and activations."""
        return self.weight.dtype

    def set_times(self, times: Times) -> None:
        """Use a measured table from now on."""
        self.times = times

    def timed(self, x: torch.Tensor) -> dict[str, Callable[[], object]]:
        """Return every way as a call on ``x`` (``[T, K]``), for measuring."""
        return {
            STOCK: partial(self.stock, x, self.weight, None),
            STREAM: partial(stream_o_major, x, self.weight, None),
        }

    def __call__(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """Return logits ``[..., vocabulary]`` for ``x`` (``[..., K]``)."""
        tokens = x.numel() // max(1, x.shape[-1])
        way = choose(self.times, STOCK, tokens, (STOCK, STREAM))
        if x.dtype != weight.dtype:  # what our kernel would misread
            way = STOCK
        self.calls[way] += 1
        if way == STOCK:
            return self.stock(x, weight, bias)
        flat = stream_o_major(x.reshape(-1, x.shape[-1]), weight, bias)
        return flat.view(*x.shape[:-1], flat.shape[1])


# Names of embeddings that a model may use as its head. Others (Gemma 3n has one of
# gigabytes per layer) are only looked up.
_TIED = ("embed_tokens", "wte", "embed_in", "tok_embeddings", "word_embeddings")


def wrap_heads(model: torch.nn.Module) -> Iterator[StreamedHead]:
    """Replace ``cpu_linear`` of unquantized heads and embeddings that may be one."""
    for name, module in model.named_modules():
        if not isinstance(module, VocabParallelEmbedding):
            continue
        tied = name.rpartition(".")[2] in _TIED
        if not (tied or isinstance(module, ParallelLMHead)):
            continue
        stock = getattr(module, "cpu_linear", None)
        weight = getattr(module, "weight", None)
        if stock is None or weight is None or isinstance(stock, StreamedHead):
            continue
        fits = weight.dim() == 2 and weight.numel() and weight.dtype in DTYPES
        if fits and weight.is_contiguous() and not weight.is_meta:
            head = StreamedHead(weight.data, stock)
            module.cpu_linear = head
            yield head
