"""Fit one block: layer by layer as they are called, part by part through the gate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from nmsparse.ops.online import Online
from offline_prune.online.fit.evidence import Evidence, Inputs
from offline_prune.online.fit.gradient import descend
from offline_prune.online.fit.judge import HeldOut, Verdict, judge
from offline_prune.online.fit.options import FitOptions
from offline_prune.online.fit.parts import (
    fit_part,
    learned_parts,
    learned_tensors,
    with_tensors,
)
from offline_prune.online.fit.record import BlockRecord, PartRecord
from offline_prune.online.fit.resident import Resident
from offline_prune.online.fused import bias_of


@dataclass(frozen=True, slots=True, eq=False)
class States:
    """Hidden states of every window around a block, ``[1, T, D]`` each.

    Attributes:
        sparse: its input in the sparse stream.
        dense: its input in the dense stream.
        dense_output: its output in the dense stream.
    """

    sparse: Sequence[torch.Tensor]
    dense: Sequence[torch.Tensor]
    dense_output: Sequence[torch.Tensor]


class BlockFit:
    """Everything that is learned in one block.

    Args:
        resident: the block; its layers are set here.
        rules: names of its sparse layers to how, learned parts neutral.
        states: hidden states around it.
        options: how to fit.
        output_energy: names of layers to ``[O]``, how much an error of each output
            matters to a low rank.

    Attributes:
        rules: as they are after the fit.
    """

    def __init__(
        self,
        resident: Resident,
        rules: Mapping[str, Online],
        *,
        states: States,
        options: FitOptions,
        output_energy: Mapping[str, torch.Tensor],
    ) -> None:
        self.rules = dict(rules)
        self._resident = resident
        self._states = states
        self._options = options
        self._energy = output_energy
        self._fitted = options.fitted(len(states.sparse))
        self._held_out = [
            HeldOut(
                position,
                states.sparse[position],
                self._wanted(position),
                states.dense_output[position],
            )
            for position in range(self._fitted, len(states.sparse))
        ]
        self._parts: list[PartRecord] = []

    def run(self, name: str) -> BlockRecord:
        """Fit, leave the block's layers as fitted, and return the record.

        Args:
            name: full name of the block.
        """
        for layer, online in self.rules.items():
            self._resident.set(layer, online)
        first = best = self._judge()
        learning = [x for x, online in self.rules.items() if learned_parts(online)]
        if learning:
            order = self._resident.order(self._states.sparse[0])
            for layer in sorted(learning, key=order.index):
                best = self._layer(layer, best)
            if self._options.steps:
                best = self._descend(name, best)
        return BlockRecord(
            name,
            tuple(self._parts),
            objective_before=first.objective,
            objective_after=best.objective,
            error_before=first.error,
            error_after=best.error,
        )

    def _layer(self, name: str, best: Verdict) -> Verdict:
        """Fit the parts of one layer; return the errors with what was kept."""
        evidence = self._evidence(name)
        for part in learned_parts(self.rules[name]):
            if not evidence.windows:
                # An expert that no token reached: its parts stay neutral.
                error = best.objective
                self._parts.append(PartRecord(name, part, error, error, kept=False))
                continue
            online = self.rules[name]
            tensors = fit_part(part, evidence, online=online, options=self._options)
            best = self._gate(name, part, {name: with_tensors(online, tensors)}, best)
        return best

    def _descend(self, name: str, best: Verdict) -> Verdict:
        """Take gradient steps on all layers; return the errors with what was kept."""
        positions = range(self._fitted)
        changed = descend(
            self._resident,
            self.rules,
            hidden=self._states.sparse[: self._fitted],
            wanted=[self._wanted(position) for position in positions],
            options=self._options,
        )
        return self._gate(name, "gradient", changed, best)

    def _gate(
        self, layer: str, part: str, changed: Mapping[str, Online], best: Verdict
    ) -> Verdict:
        """Keep changed rules if the held-out error of the block is lower with them."""
        for name, online in changed.items():
            self._resident.set(name, online)
        found = self._judge()
        finite = all(
            bool(tensor.isfinite().all())
            for online in changed.values()
            for tensor in learned_tensors(online).values()
        )
        kept = finite and found.objective < best.objective
        self._parts.append(
            PartRecord(layer, part, best.objective, found.objective, kept)
        )
        if kept:
            self.rules.update(changed)
            return found
        for name in changed:
            self._resident.set(name, self.rules[name])
        return best

    def _judge(self) -> Verdict:
        clip = self._options.weight_clip
        return judge(self._resident, self._held_out, weight_clip=clip)

    def _wanted(self, position: int) -> torch.Tensor:
        """Return what the block should give for a window, ``[1, T, D]``."""
        if self._options.target == "dense_stream":
            return self._states.dense_output[position]
        with self._resident.dense():
            return self._resident.output(position, self._states.sparse[position])

    def _evidence(self, name: str) -> Evidence:
        """Return a layer's inputs as the layers before it leave them now."""
        resident, states = self._resident, self._states
        found = resident.inputs(name, states.sparse[: self._fitted])
        wanted: list[torch.Tensor | None] = [None] * len(found)
        if self._options.target == "dense_stream":
            with resident.dense():
                wanted = resident.inputs(name, states.dense[: self._fitted])
        windows = []
        for x, other in zip(found, wanted, strict=True):
            # Experts may get other tokens in the two streams: nothing to compare.
            if x is None or not len(x) or (other is not None and len(other) != len(x)):
                continue
            first = len(x) == resident.tokens
            if first and resident.dense_first_token:
                x, other = x[1:], None if other is None else other[1:]
                first = False
            windows.append(Inputs(x, other, first=first))
        layer = resident.layers[name]
        biases = [bias_of(module) for module in layer.parts.values()]
        known = [bias for bias in biases if bias is not None]
        return Evidence(
            layer.weight(),
            torch.cat(known) if known else None,
            windows=windows,
            clip=self._options.weight_clip,
            output_energy=self._energy.get(name),
        )
