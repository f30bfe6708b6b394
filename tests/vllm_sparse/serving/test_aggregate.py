"""Merging ranks: shards of K add up, replicas do not, stages join."""

from __future__ import annotations

import copy

from vllm_sparse.serving.aggregate import merge_engines, merge_ranks


def test_one_rank_is_returned_as_it_is(fakes):
    stats = fakes.stats(fakes.layer(), fakes.dense())
    assert merge_ranks([stats]) == stats


def test_tensor_parallel_shards_of_k_are_summed(fakes):
    name = "model.layers.0.mlp.down_proj"
    shard = {"in_features": 96, "k_sharded": True, "elements": 100}
    ranks = [
        fakes.stats(fakes.layer(name, nonzeros=40, **shard)),
        fakes.stats(fakes.layer(name, nonzeros=60, **shard), rank=1),
        fakes.stats(fakes.layer(name, nonzeros=20, **shard), rank=2),
    ]
    (layer,) = merge_ranks(ranks)["layers"]
    assert layer["in_features"] == 96
    assert layer["elements"] == 300
    assert layer["nonzeros"] == 120
    assert layer["density"] == 0.4


def test_column_parallel_layers_see_the_same_input_and_count_once(fakes):
    ranks = [fakes.stats(fakes.layer(), rank=rank) for rank in range(2)]
    (layer,) = merge_ranks(ranks)["layers"]
    assert layer == fakes.layer()


def test_pipeline_stages_are_joined_in_order(fakes):
    names = [f"model.layers.{i}.mlp.up_proj" for i in range(4)]
    ranks = [
        fakes.stats(fakes.layer(names[0]), fakes.layer(names[1])),
        fakes.stats(fakes.layer(names[2]), fakes.layer(names[3]), rank=1),
    ]
    assert [layer["name"] for layer in merge_ranks(ranks)["layers"]] == names


def test_tensor_and_pipeline_parallel_together(fakes):
    def stage(rank, number):
        down = f"model.layers.{number}.mlp.down_proj"
        return fakes.stats(fakes.layer(down, k_sharded=True), rank=rank)

    layers = merge_ranks([stage(0, 0), stage(1, 0), stage(2, 1), stage(3, 1)])["layers"]
    assert [layer["elements"] for layer in layers] == [1280, 1280]


def test_every_stage_sees_every_token_so_tokens_count_once(fakes):
    ranks = [fakes.stats(rank=rank, prefill=30, decode=10) for rank in range(4)]
    assert merge_ranks(ranks)["tokens"] == {"prefill": 30, "decode": 10}


def test_density_before_the_first_token(fakes):
    shard = fakes.layer(k_sharded=True, elements=0)
    merged = merge_ranks([fakes.stats(shard), fakes.stats(shard, rank=1)])
    assert merged["layers"][0]["density"] is None


def test_the_answers_are_not_modified(fakes):
    ranks = [fakes.stats(fakes.layer(k_sharded=True), rank=rank) for rank in range(2)]
    before = copy.deepcopy(ranks)
    merge_ranks(ranks)
    assert ranks == before


def test_bytes_and_times_are_those_of_all_ranks(fakes):
    times = {"gather": [[1, 10], [2, 30]]}
    ranks = [
        fakes.stats(
            fakes.layer(bytes_read=60, bytes_skipped=40, extra_bytes=7),
            rank=rank,
            timings=times,
        )
        for rank in range(2)
    ]
    merged = merge_ranks(ranks)
    (layer,) = merged["layers"]
    assert (layer["bytes_read"], layer["bytes_skipped"]) == (120, 80)
    assert layer["extra_bytes"] == 14
    assert merged["timings"] == {"gather": [[2, 20], [4, 60]]}
    assert times == {"gather": [[1, 10], [2, 30]]}


def test_engines_add_up(fakes):
    counted = {"calls": {"gather": 3}, "fallbacks": {"dtype": 1}, "bytes_read": 5}
    engines = [
        fakes.stats(fakes.layer(nonzeros=64, **counted), dense_first=2),
        fakes.stats(fakes.layer(nonzeros=256, **counted), decode=1, started="later"),
    ]
    before = copy.deepcopy(engines)
    merged = merge_engines(engines)
    assert engines == before
    assert merged["tokens"] == {"prefill": 60, "decode": 11}
    assert merged["dense_first"] == 2
    (layer,) = merged["layers"]
    assert layer["elements"] == 1280
    assert layer["density"] == 0.25
    assert layer["calls"] == {"gather": 6}
    assert layer["fallbacks"] == {"dtype": 2}
    assert layer["bytes_read"] == 10
    assert merge_engines(engines[:1]) is engines[0]
