"""A pruned folder made by hand, and ways to damage it."""

from __future__ import annotations

import json

import torch
from safetensors.torch import load_file, save_file
from support.run_results import layer, results_of

from nmsparse.config import Group, SparsityConfig, WeightSparsity
from nmsparse.sidecar import write_sidecar
from offline_prune.checksum import sha256_of
from offline_prune.packing.folder import INDEX_NAME
from offline_prune.report.results import RESULTS_NAME, write_results

Q = "model.layers.0.self_attn.q_proj"
UP = "model.layers.0.mlp.up_proj"
DOWN = "model.layers.1.mlp.down_proj"
NORM = "model.norm.weight"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
ROWS, COLUMNS = 16, 64


def two_of_four(weight):
    """Zero the two smallest of every four, one group at a time."""
    for row in weight:
        for start in range(0, len(row), 4):
            group = row[start : start + 4]
            for j in group.abs().argsort()[:2].tolist():
                group[j] = 0
    return weight


def half(weight):
    """Zero the smallest half of each row."""
    for row in weight:
        row[row.abs().argsort()[: len(row) // 2]] = 0
    return weight


def pruned_folder(tmp_path):
    """Return a pruned folder: two weight files, two patterns, hashes, a sidecar."""
    torch.manual_seed(3)
    weight = torch.randn(3, ROWS, COLUMNS).to(torch.bfloat16)
    tensors = {
        f"{Q}.weight": two_of_four(weight[0].clone()),
        f"{UP}.weight": half(weight[1].clone()),
        f"{DOWN}.weight": half(weight[2].clone()),
        NORM: torch.ones(COLUMNS, dtype=torch.bfloat16),
    }
    names = list(tensors)
    for shard, part in zip(SHARDS, (names[:2], names[2:]), strict=True):
        save_file({name: tensors[name] for name in part}, tmp_path / shard)
    weight_map = {n: SHARDS[0] if n in names[:2] else SHARDS[1] for n in names}
    (tmp_path / INDEX_NAME).write_text(json.dumps({"weight_map": weight_map}))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "tokenizer.json").write_text("{}")
    groups = {
        "a": group([Q], "2:4", 0.5),
        "b": group([r"re:.*mlp.*"], "50%", 0.5),
    }
    write_sidecar(tmp_path, SparsityConfig(groups=groups))
    removed = ROWS * COLUMNS // 2
    layers = [
        layer(Q, 0, removed, pattern="2:4"),
        layer(UP, 0, removed),
        layer(DOWN, 1, removed),
    ]
    files = [*SHARDS, INDEX_NAME, "config.json", "tokenizer.json"]
    hashes = {name: sha256_of(tmp_path / name) for name in files}
    write_results(tmp_path, results_of(layers, files=hashes))
    return tmp_path


def group(targets, pattern, sparsity):
    weight = WeightSparsity(pattern=pattern, sparsity=sparsity)
    return Group(targets=tuple(targets), weight=weight)


def change_tensors(folder, change, *, rehash=True):
    """Rewrite the weight files; with new hashes, as a careful forger would."""
    for shard in SHARDS:
        tensors = load_file(folder / shard)
        change(tensors)
        save_file(tensors, folder / shard)
    if rehash:
        edit_results(
            folder,
            lambda data: data["files"].update(
                {shard: sha256_of(folder / shard) for shard in SHARDS}
            ),
        )


def change_weight(folder, name, change, **options):
    def on_tensors(tensors):
        if f"{name}.weight" in tensors:
            change(tensors[f"{name}.weight"])

    change_tensors(folder, on_tensors, **options)


def edit_results(folder, change):
    path = folder / RESULTS_NAME
    data = json.loads(path.read_text("utf-8"))
    change(data)
    path.write_text(json.dumps(data), "utf-8")
