"""Reorder channels where the block itself absorbs it (RIA's permutation, deployable).

The input channels of ``down_proj`` are the output channels of ``gate_proj`` and
``up_proj``; those of ``o_proj`` are, within a head, those of ``v_proj``. Both can be
reordered without a trace, so that groups of M hold a better mix and N:M loses less. The
residual stream, which q, k, v, gate and up read, cannot. RIA (ICLR 2024) reorders every
layer and undoes it afterwards, which keeps no N:M form.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from typing_extensions import Self

from nmsparse.pattern import NMPattern
from offline_prune.errors import InputError
from offline_prune.permutation.search import kept_score, refine, serpentine
from offline_prune.pipeline.layers import Layer
from offline_prune.scorers.base import Scorer
from offline_prune.statistics.inputs import InputStatistics

# Channels that are dealt together: time grows with their square.
_PART = 4096


@dataclass(frozen=True, slots=True)
class Permuter:
    """Finds and applies permutations in a loaded block.

    Attributes:
        scorer: scores the consumer's weights.
        patterns: layer to its pattern.
        rounds: of the refinement.
        head_dim: channels of an attention head; None leaves attention alone.
    """

    scorer: Scorer
    patterns: dict[str, NMPattern]
    rounds: int
    head_dim: int | None

    @classmethod
    def of(cls, scorer: Scorer, patterns: dict[str, NMPattern], *, config: Any) -> Self:
        """Return the permuter of a model.

        Args:
            scorer: scores the consumer's weights.
            patterns: layer to its pattern.
            config: the text model's configuration, of transformers.
        """
        heads = getattr(config, "num_attention_heads", 0)
        size = getattr(config, "head_dim", None) or (
            config.hidden_size // heads if heads else None
        )
        return cls(scorer=scorer, patterns=patterns, rounds=2, head_dim=size)

    def check(self, blocks: Sequence[Sequence[Layer]], architecture: str) -> None:
        """Refuse a model in which no channels can be reordered.

        Raises:
            InputError: saying where they could be.
        """
        if not any(self.places(block) for block in blocks):
            raise InputError(
                f"{architecture} has no channels that it can reorder by itself among "
                "the layers to prune. Expected gate_proj, up_proj and down_proj, or "
                "v_proj and o_proj with heads in whole groups: prune without "
                "permutation."
            )

    def __call__(
        self,
        layers: Sequence[Layer],
        statistics: dict[str, InputStatistics],
        index: int,
    ) -> dict[str, torch.Tensor]:
        """Reorder a block's channels, in place, and their statistics with them.

        Returns:
            Copies of the changed tensors, by their names in the files.
        """
        changed: list[Layer] = []
        for consumer, producers in self.places(layers):
            if consumer.kind == "down_proj":
                order = self._order(self._scores(consumer, statistics), consumer)
                for producer in producers:
                    self._reorder_rows(producer, order)
            else:
                (value,) = producers
                order, within = self._head_order(consumer, value, statistics)
                self._reorder_rows(value, within)
            self._reorder_input(consumer, statistics, order)
            changed += [consumer, *producers]
        tensors = {layer.tensor: layer.stored() for layer in changed}
        for layer in changed:
            bias = getattr(layer.module, "bias", None)
            if bias is not None:
                name = layer.tensor.removesuffix(".weight") + ".bias"
                tensors[name] = bias.data.contiguous().clone()
        return tensors

    def places(self, layers: Sequence[Layer]) -> list[tuple[Layer, tuple[Layer, ...]]]:
        """Return the layers whose input can be reordered, with those that make it."""
        parents: dict[str, dict[str, Layer]] = {}
        for layer in layers:
            if layer.expert is None:
                parent = layer.path.rpartition(".")[0]
                parents.setdefault(parent, {})[layer.kind] = layer
        found: list[tuple[Layer, tuple[Layer, ...]]] = []
        for kinds in parents.values():
            if {"down_proj", "up_proj", "gate_proj"} <= kinds.keys():
                found.append(
                    (kinds["down_proj"], (kinds["gate_proj"], kinds["up_proj"]))
                )
            if {"o_proj", "v_proj"} <= kinds.keys() and self._heads_fit(
                kinds["o_proj"], kinds["v_proj"]
            ):
                found.append((kinds["o_proj"], (kinds["v_proj"],)))
        return found

    def _scores(
        self, layer: Layer, statistics: dict[str, InputStatistics]
    ) -> torch.Tensor:
        return self.scorer.scores(layer.view().float(), statistics.get(layer.name))

    def _order(self, scores: torch.Tensor, layer: Layer) -> torch.Tensor:
        pattern = self.patterns[layer.name]
        same = torch.arange(scores.shape[1], device=scores.device)
        parts = max(1, scores.shape[1] // _PART)
        found = refine(
            scores,
            pattern,
            serpentine(scores, pattern),
            rounds=self.rounds,
            parts=parts,
        )
        better = kept_score(scores, pattern, found) > kept_score(scores, pattern)
        return found if better else same

    def _reorder_rows(self, layer: Layer, order: torch.Tensor) -> None:
        view = layer.view()
        view.copy_(view[order].clone())
        bias = getattr(layer.module, "bias", None)
        if bias is not None:
            bias.data.copy_(bias.data[order].clone())

    def _reorder_input(
        self, layer: Layer, statistics: dict[str, InputStatistics], order: torch.Tensor
    ) -> None:
        view = layer.view()
        view.copy_(view[:, order].clone())
        if layer.name in statistics:
            statistics[layer.name] = statistics[layer.name].permute(order)

    def _heads_fit(self, out: Layer, value: Layer) -> bool:
        """Whether heads divide both layers, and groups of M divide heads."""
        size = self.head_dim
        return bool(
            size
            and out.name in self.patterns
            and size % self.patterns[out.name].m == 0
            and out.in_features % size == 0
            and value.out_features % size == 0
            and out.in_features % value.out_features == 0
        )

    def _head_order(
        self, out: Layer, value: Layer, statistics: dict[str, InputStatistics]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the order of the output's input channels and of the value's rows.

        All query heads that read one value head share its order.
        """
        size = self.head_dim
        assert size is not None
        heads = value.out_features // size
        shared = out.in_features // value.out_features
        scores = self._scores(out, statistics)  # [O, H * shared * size]
        grouped = scores.view(out.out_features, heads, shared, size)
        wide, narrow = [], []
        for head in range(heads):
            part = grouped[:, head].permute(1, 0, 2).reshape(-1, size)
            order = self._order(part.contiguous(), out)
            narrow.append(order + head * size)
            for query in range(shared):
                wide.append(order + (head * shared + query) * size)
        return torch.cat(wide), torch.cat(narrow)
