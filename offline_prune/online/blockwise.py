"""Fit learned parameters block by block: the dense block, on the sparse stream.

One block is in memory at a time. Two streams of hidden states pass through the model: a
dense one, and a sparse one whose blocks are fitted one after the other, so that each
sees what the fitted ones before it really give. What is fitted and how it is judged:
``offline_prune.online.fit``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from nmsparse.ops.online import Online, prepare
from nmsparse.parameters import fuse
from nmsparse.suggest import unknown
from offline_prune.errors import InputError
from offline_prune.online.fit.block import BlockFit, States
from offline_prune.online.fit.options import FitOptions
from offline_prune.online.fit.parts import (
    check_rule,
    learned_tensors,
    neutral,
    split,
    with_tensors,
)
from offline_prune.online.fit.record import BlockRecord
from offline_prune.online.fit.resident import Resident, block_linears
from offline_prune.pipeline.capture import Capture
from offline_prune.pipeline.skeleton import Skeleton
from offline_prune.pipeline.store import Store
from offline_prune.pipeline.stream import Stream

# Of modules, by their names in the transformers model: parameter name to tensor.
Learned = dict[str, dict[str, torch.Tensor]]


@dataclass(frozen=True, slots=True, eq=False)
class FitResult:
    """What :func:`fit_blocks` found.

    Attributes:
        parameters: names of linears in the transformers model to their learned
            tensors, static ones (factor, channel groups) not among them.
        blocks: errors and decisions, one record a block.
    """

    parameters: Learned
    blocks: tuple[BlockRecord, ...]


def fit_blocks(
    skeleton: Skeleton,
    capture: Capture,
    windows: Sequence[torch.Tensor],
    rules: Mapping[str, Online],
    *,
    options: FitOptions,
    store: Store | None = None,
    tick: Callable[[], None] = lambda: None,
    dense_first_token: bool = False,
    output_energy: Mapping[str, torch.Tensor] | None = None,
) -> FitResult:
    """Fit the learned parts of all layers that have a rule.

    Memory: one block, the hidden states of all windows four times, and the inputs of
    one layer in the windows that are fitted on.

    Args:
        skeleton: the model.
        capture: made of it.
        windows: int64 ``[T]`` token ids each, all of one length, at least two; the last
            ones (``options.held_out``) only judge.
        rules: vLLM's names of layers, with the full prefix, to pattern, criterion,
            mitigations and static parts; learned parts absent. Other layers are dense.
        options: how to fit.
        store: finished blocks are kept there, and found again. It is the caller's to
            open it with a fingerprint of everything else that is given here.
        tick: called for every window of every finished block.
        dense_first_token: whether position 0 stays dense, as it will in use.
        output_energy: names of layers to ``[O]``, how much an error of each output
            matters (mean squared gradients of the loss): weighs the low rank.

    Raises:
        InputError: if a rule names no layer or does not fit it, or there are fewer than
            two windows.
    """
    if len(windows) < 2 or len({len(window) for window in windows}) != 1:
        lengths = sorted({len(window) for window in windows})
        raise InputError(
            f"Fit: {len(windows)} windows of lengths {lengths}. Expected at least two "
            "of one length: one is held out to judge."
        )
    _check(skeleton, rules)
    dense = Stream(capture, windows)
    sparse = Stream(capture, windows, tick=tick)
    parameters: Learned = {}
    records: list[BlockRecord] = []
    for index in range(len(skeleton.blocks)):
        block, before = skeleton.load(index), list(dense.hidden)
        dense.advance(index, block)
        resident = Resident(
            block,
            skeleton.name(index),
            index=index,
            capture=capture,
            windows=windows,
            dense_first_token=dense_first_token,
        )
        ready = _ready(resident, rules, options)
        saved = store.load(index) if store is not None else None
        if saved is not None:
            found, record = _nested(saved[0]), BlockRecord.of(saved[1])
            for name, online in ready.items():
                resident.set(name, _restored(resident, name, online, found))
        else:
            fit = BlockFit(
                resident,
                ready,
                states=States(sparse.hidden, before, dense.hidden),
                options=options,
                output_energy=output_energy or {},
            )
            record = fit.run(skeleton.name(index))
            found = {}
            for name, online in fit.rules.items():
                tensors = learned_tensors(online)
                if tensors:
                    found |= split(resident.layers[name], tensors)
            if store is not None:
                store.save(index, _flat(found), record.data())
        sparse.advance(index, block)
        resident.restore()
        skeleton.unload(index)
        parameters |= found
        records.append(record)
    return FitResult(parameters, tuple(records))


def _check(skeleton: Skeleton, rules: Mapping[str, Online]) -> None:
    """Refuse rules that no block can follow, before any long work.

    Raises:
        InputError: naming the layer.
    """
    sizes = {
        layer.name: layer.in_features
        for index, block in enumerate(skeleton.blocks)
        for layer in block_linears(block, skeleton.name(index))
    }
    for name, online in rules.items():
        if name not in sizes:
            raise InputError(f"Rules of the fit: {unknown('layer', name, sizes)}")
        check_rule(name, online, in_features=sizes[name])


def _ready(
    resident: Resident, rules: Mapping[str, Online], options: FitOptions
) -> dict[str, Online]:
    """Return the rules of a block with factors made and learned parts neutral.

    Raises:
        InputError: naming the layer whose static parts do not fit.
    """
    ready = {}
    for name, layer in resident.layers.items():
        if name not in rules:
            continue
        weight, rule = layer.weight(), rules[name]
        try:
            moved = rule.parameters.to(weight.device)
            given = with_tensors(rule, dict(moved.items()))
            online = prepare(weight, neutral(given, weight, rank=options.rank))
            online.check(*reversed(weight.shape))
        except ValueError as error:
            raise InputError(f"{name}: {error}") from None
        ready[name] = online
    return ready


def _restored(resident: Resident, name: str, online: Online, found: Learned) -> Online:
    """Return a rule with the tensors of an earlier run."""
    parts = [found.get(part, {}) for part in resident.layers[name].parts]
    device = resident.layers[name].weight().device
    return with_tensors(online, dict(fuse(parts).to(device).items()))


def _flat(found: Learned) -> dict[str, torch.Tensor]:
    return {f"{name}.{key}": x for name, own in found.items() for key, x in own.items()}


def _nested(tensors: Mapping[str, torch.Tensor]) -> Learned:
    found: Learned = {}
    for full in sorted(tensors):
        name, _, key = full.rpartition(".")
        found.setdefault(name, {})[key] = tensors[full]
    return found
