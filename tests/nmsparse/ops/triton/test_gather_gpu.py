"""What of ``gather_lists`` only a GPU can show: races, graphs, compilation."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from support.token_lists import assert_product, expected_product, normal, random_lists

from nmsparse.ops.linear.gather_triton import gather_lists
from nmsparse.ops.linear.tiles import GatherTiles

pytestmark = pytest.mark.gpu

K, OUT, KEPT = 96, 40, 48
SHARED = pytest.mark.parametrize("shared", [False, True], ids=["per token", "shared"])


def cut(splits=3, block_o=16, block_k=16):
    return GatherTiles(block_o, block_k, splits, warps=4, stages=2)


@SHARED
def test_twenty_runs_give_the_same_bits(device, shared):
    lists = random_lists(
        8, 4096, 2048, dtype=torch.bfloat16, device=device, shared=shared
    )
    weight = normal(4096, 1536, dtype=torch.bfloat16, seed=1, device=device)
    for block_o, splits in product((64, 256), (3, 16)):
        tiles = cut(splits, block_o, 32)
        first = gather_lists(lists, weight, tiles=tiles)
        assert_product(first, expected_product(lists, weight))
        for _ in range(20):
            assert torch.equal(gather_lists(lists, weight, tiles=tiles), first)


def test_tokens_compile_nothing_anew(device):
    from nmsparse.ops.linear.token_triton import token_kernel

    weight = normal(K, OUT, dtype=torch.bfloat16, seed=1, device=device)
    compiled = set()
    for tokens in (1, 2, 3, 16, 17):
        lists = random_lists(tokens, K, KEPT, dtype=torch.bfloat16, device=device)
        gather_lists(lists, weight, tiles=cut())
        caches = token_kernel.device_caches[torch.cuda.current_device()]
        compiled.add(len(caches[0]))
    assert len(compiled) == 1


@SHARED
def test_graph_replay(device, shared):
    lists = random_lists(4, K, KEPT, dtype=torch.bfloat16, device=device, shared=shared)
    weight = normal(K, OUT, dtype=torch.bfloat16, seed=1, device=device)
    gather_lists(lists, weight, tiles=cut())
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = gather_lists(lists, weight, tiles=cut())
    for seed in range(3):
        shape = tuple(lists.values.shape)
        lists.values.copy_(normal(*shape, dtype=torch.bfloat16, seed=seed))
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(captured, gather_lists(lists, weight, tiles=cut()))
