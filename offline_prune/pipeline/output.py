"""The pruned folder: weights, config, the rest of the source, and the sidecar."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch

from nmsparse.config import Group, SparsityConfig, WeightSparsity
from nmsparse.pattern import Unstructured, parse_pattern
from nmsparse.sidecar import write_sidecar
from offline_prune import __version__
from offline_prune.pipeline.assemble import (
    copy_others,
    write_config,
    write_index,
    write_weights,
)
from offline_prune.pipeline.block import Outcome
from offline_prune.pipeline.job import Job
from offline_prune.pipeline.layers import Layer, find_layers
from offline_prune.pipeline.store import Store


def write_folder(job: Job, store: Store, target: Path) -> None:
    """Write the model with its pruned weights.

    Args:
        job: the finished job.
        store: holds the blocks.
        target: an existing empty folder.
    """
    blocks = _Blocks(job, store)
    added = _added_biases(job, blocks)
    folder = job.source.folder
    write_weights(folder, target, changed=blocks.get, added=added)
    write_index(folder, target, added)
    switches = dict.fromkeys(job.slots.switches, True) if job.slots and added else {}
    write_config(folder, target, switches)
    copy_others(folder, target)


def write_record(job: Job, outcomes: Sequence[Outcome], target: Path) -> None:
    """Write the sidecar: what every layer is now."""
    groups: dict[tuple[str, float], list[str]] = defaultdict(list)
    sizes = {layer.name: layer.size for block in job.blocks for layer in block}
    for outcome in outcomes:
        share = outcome.removed / sizes[outcome.name]
        pattern = job.targets[outcome.name].pattern
        # Unstructured patterns end below 1; a layer can be removed whole.
        shown = pattern or Unstructured(min(round(share, 6), 0.999999))
        groups[str(shown), share].append(outcome.name)
    config = SparsityConfig(
        groups={
            f"weights_{number}": Group(
                targets=tuple(names),
                weight=WeightSparsity(pattern=parse_pattern(pattern), sparsity=share),
            )
            for number, ((pattern, share), names) in enumerate(groups.items())
        },
        provenance={
            "method": "prune",
            "scorer": job.config.scorer,
            "allocator": job.config.allocator,
            "vllm_sparse": __version__,
        },
    )
    write_sidecar(target, config)


class _Blocks:
    """Tensors of finished blocks, one block in memory at a time."""

    def __init__(self, job: Job, store: Store) -> None:
        self._store = store
        self._count = len(job.blocks)
        self._where: dict[str, int] = {}
        self._held: tuple[int, dict[str, torch.Tensor]] = (-1, {})
        self._zeros: dict[str, Layer] = {}
        for index in range(self._count):
            for name in self._open(index):
                self._where[name] = index

    def get(self, name: str) -> torch.Tensor | None:
        """Return a changed tensor, None if it stays as it is."""
        if name in self._zeros:
            layer = self._zeros[name]
            return torch.zeros(layer.out_features, dtype=self._dtype(layer))
        if name not in self._where:
            return None
        return self._open(self._where[name])[name]

    def names(self) -> list[str]:
        """Return the names of all changed tensors."""
        return list(self._where)

    def add_zero_bias(self, name: str, layer: Layer) -> None:
        """Answer ``name`` with zeros: the architecture wants a bias there."""
        self._zeros[name] = layer

    def _dtype(self, layer: Layer) -> torch.dtype:
        dtype: torch.dtype = getattr(layer.module, layer.parameter).dtype
        return dtype

    def _open(self, index: int) -> dict[str, torch.Tensor]:
        if self._held[0] != index:
            found = self._store.load(index)
            assert found is not None, f"block {index} is not finished"
            self._held = index, found[0]
        return self._held[1]


def _added_biases(job: Job, blocks: _Blocks) -> dict[str, str]:
    """Return new bias tensors to their files, zeros where a switch wants more."""
    if job.slots is None or not job.slots.switches:
        return {}
    headers, reader = job.source.headers, job.skeleton.reader
    made = set(blocks.names())
    added: dict[str, str] = {}
    for index in range(len(job.blocks)):
        # All layers, not only those that were pruned: a switch gives each a bias.
        for layer in find_layers(job.skeleton, index):
            name = layer.tensor.removesuffix(".weight") + ".bias"
            if name in headers or job.slots.key(layer) is None:
                continue
            added[name] = reader.file_of(layer.tensor)
            if name not in made:
                blocks.add_zero_bias(name, layer)
    return added


def packed_bytes(job: Job, outcomes: Sequence[Outcome], dense: int) -> int:
    """Return the size the weights would have packed, computed from the zeros."""
    total = dense
    layers = {layer.name: layer for block in job.blocks for layer in block}
    for outcome in outcomes:
        layer = layers[outcome.name]
        item = torch.empty(
            0, dtype=getattr(layer.module, layer.parameter).dtype
        ).element_size()
        stored = (layer.size - outcome.zeros) * item
        bitmask = layer.out_features * -(-layer.in_features // 8)
        saved = layer.size * item - stored - bitmask
        total -= max(0, saved)
    return total
