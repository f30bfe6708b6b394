"""The pruning pass: every block in turn, on inputs that the pruned ones before it give.

Statistics of a block come from one run of the dense block; its pruned form then makes
the inputs of the next (the protocol of Wanda and SparseGPT).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from offline_prune.errors import InputError
from offline_prune.pipeline.block import Outcome, PrunedBlock, prune_block
from offline_prune.pipeline.capture import Capture
from offline_prune.pipeline.collect import collect
from offline_prune.pipeline.layers import Layer
from offline_prune.pipeline.methods import Methods
from offline_prune.pipeline.ranks import Ranks
from offline_prune.pipeline.skeleton import Skeleton
from offline_prune.pipeline.slots import BiasSlots
from offline_prune.pipeline.store import Store
from offline_prune.pipeline.stream import Stream, Tick
from offline_prune.selection import LayerTarget
from offline_prune.statistics.inputs import InputStatistics

Permute = Callable[
    [Sequence[Layer], dict[str, InputStatistics], int], dict[str, torch.Tensor]
]


# Tokens on which a block is run if no method needs calibration text.
_PROBE_TOKENS = 16


@dataclass(slots=True)
class Pass:
    """What a pruning pass needs beside its windows.

    Attributes:
        skeleton: the model.
        capture: runs it around its blocks.
        blocks: the layers of every block.
        methods: scorer, compensation and channel method.
        targets: what every layer loses.
        slots: where biases can be; None if no method makes any.
        ranks: the processes that share the calibration.
        permute: reorders channels of a block before it is pruned, None for none.
        tick: called after every window that passed a block.
    """

    skeleton: Skeleton
    capture: Capture
    blocks: Sequence[Sequence[Layer]]
    methods: Methods
    targets: Mapping[str, LayerTarget]
    slots: BiasSlots | None
    ranks: Ranks
    permute: Permute | None = None
    tick: Tick = lambda: None


def prune_blocks(
    job: Pass,
    windows: Sequence[torch.Tensor],
    *,
    held_out: Sequence[torch.Tensor] = (),
    store: Store | None = None,
) -> tuple[list[Outcome], dict[str, float], Stream | None]:
    """Prune every block.

    Args:
        job: what to do.
        windows: this process's calibration windows; unused if no method needs data.
        held_out: windows that pass the pruned blocks as well and are no part of any
            statistics.
        store: where finished blocks are kept and found; None keeps nothing, and the
            model is left as it was.

    Returns:
        What happened to every layer, seconds by layer, and the held-out windows behind
        the last block (None without any).
    """
    stream = Stream(job.capture, windows if job.methods.needs else [], tick=job.tick)
    judged = Stream(job.capture, held_out) if held_out else None
    probe = stream
    if job.permute is not None and not len(stream):
        count = job.skeleton.model.get_input_embeddings().num_embeddings
        probe = Stream(job.capture, [torch.arange(_PROBE_TOKENS) % count])
    outcomes: list[Outcome] = []
    seconds: dict[str, float] = {}
    for index, layers in enumerate(job.blocks):
        found = store.load(index) if store is not None else None
        block = job.skeleton.load(index)
        if found is not None:
            tensors, record = found
            _put(job, index, layers, tensors)
            outcomes += [Outcome(**item) for item in record["outcomes"]]
            seconds.update(record["seconds"])
            for _ in range(len(stream)):
                job.tick()
        else:
            done = _prune(job, stream, probe, index, layers)
            outcomes += done.outcomes
            seconds.update(done.seconds)
            if store is not None:
                store.save(index, done.tensors, _record(done))
        if index + 1 < len(job.blocks):
            # What the last block would give is nobody's input.
            stream.advance(index, block)
        if judged is not None:
            judged.advance(index, block)
        job.skeleton.unload(index)
    return outcomes, seconds, judged


def _prune(
    job: Pass, stream: Stream, probe: Stream, index: int, layers: Sequence[Layer]
) -> PrunedBlock:
    """Collect a block's statistics and prune it in place."""
    block = job.skeleton.blocks[index]
    statistics = collect(
        stream,
        index,
        block,
        layers=layers,
        needs=job.methods.needs,
        sample_rows=job.methods.sample_rows,
        ranks=job.ranks,
    )
    moved: dict[str, torch.Tensor] = {}
    if job.permute is not None:
        before = _probe(job, probe, index)
        moved = job.permute(layers, statistics, index)
        _check_absorbed(job, probe, index, before)
    done = prune_block(
        layers,
        statistics,
        targets=job.targets,
        methods=job.methods,
        slots=job.slots,
    )
    # What was moved and is not pruned has changed as well.
    done.tensors.update({k: v for k, v in moved.items() if k not in done.tensors})
    return done


def _probe(job: Pass, stream: Stream, index: int) -> torch.Tensor:
    """Return the block's output on the first window."""
    return stream.output(index, job.skeleton.blocks[index], 0)


def _check_absorbed(
    job: Pass, stream: Stream, index: int, before: torch.Tensor
) -> None:
    """Refuse a permutation that changed what the block computes.

    Raises:
        InputError: naming the block.
    """
    after = _probe(job, stream, index)
    change = float((after.float() - before.float()).norm() / before.float().norm())
    if change > 0.02:
        raise InputError(
            f"{job.skeleton.name(index)}: its output changes by {change:.1%} when "
            "channels are reordered. Expected the model to absorb it: this "
            "architecture cannot, prune without permutation."
        )


def _put(
    job: Pass, index: int, layers: Sequence[Layer], tensors: Mapping[str, torch.Tensor]
) -> None:
    """Put a finished block's tensors into the loaded block."""
    views = {layer.tensor: layer for layer in layers}
    block = job.skeleton.blocks[index]
    prefix = job.skeleton.name(index)
    names = {
        stored.plain: path
        for path, _ in block.named_parameters()
        if (stored := job.skeleton.reader.find(f"{prefix}.{path}")) is not None
        and not stored.stacked
    }
    for name, value in tensors.items():
        value = value.to(job.skeleton.device)
        if name in views:
            layer = views[name]
            layer.view().copy_(value.t() if layer.transposed else value)
        elif name in names:
            block.get_parameter(names[name]).data.copy_(value)
        else:
            layer = views[name.removesuffix(".bias") + ".weight"]
            module: Any = layer.module
            module.bias = torch.nn.Parameter(value, requires_grad=False)


def _record(done: PrunedBlock) -> dict[str, Any]:
    return {
        "outcomes": [outcome.as_dict() for outcome in done.outcomes],
        "seconds": done.seconds,
    }
