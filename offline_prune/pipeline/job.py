"""A pruning job: model, windows and methods brought together, without any output.

``run.py`` adds the folder that is written; a study uses it as it is, many times on one
model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from tqdm import tqdm

from offline_prune.allocators.atp import Atp
from offline_prune.config import PruneConfig
from offline_prune.errors import InputError
from offline_prune.pipeline.allocation import (
    Allocation,
    allocate,
    measured_allocators,
    restored,
)
from offline_prune.pipeline.amplification import Amplification
from offline_prune.pipeline.block import Outcome
from offline_prune.pipeline.blocks import Pass, prune_blocks
from offline_prune.pipeline.capture import Capture
from offline_prune.pipeline.layers import Layer, find_layers
from offline_prune.pipeline.methods import Methods
from offline_prune.pipeline.permute import Permuter
from offline_prune.pipeline.profile import Profile, measure_dense
from offline_prune.pipeline.ranks import Ranks
from offline_prune.pipeline.search import search_atp
from offline_prune.pipeline.skeleton import Skeleton
from offline_prune.pipeline.slots import BiasSlots
from offline_prune.pipeline.source import Source
from offline_prune.pipeline.store import Store
from offline_prune.pipeline.targets import (
    block_sizes,
    check_layers,
    layer_targets,
    planned,
)
from offline_prune.selection import LayerTarget

# Windows of a search: it compares settings, and each one prunes the model.
SEARCH_WINDOWS = 16
HELD_OUT_WINDOWS = 8


@dataclass(slots=True)
class Job:
    """One configuration on one model.

    Attributes:
        config: the configuration.
        methods: its methods.
        source: the model's folder.
        skeleton: the model.
        capture: runs it around its blocks.
        blocks: the layers of every block.
        windows: this process's calibration windows.
        held_out: windows for searches, no part of any statistics.
        ranks: the processes that share the calibration.
        slots: where biases can be; None if no method makes any.
        allocation: shares of the blocks, once :meth:`plan` has run.
        targets: what every layer loses, once :meth:`plan` has run.
    """

    config: PruneConfig
    methods: Methods
    source: Source
    skeleton: Skeleton
    capture: Capture
    blocks: list[list[Layer]]
    windows: list[torch.Tensor]
    held_out: list[torch.Tensor]
    ranks: Ranks
    slots: BiasSlots | None
    allocation: Allocation | None = None
    targets: dict[str, LayerTarget] = field(default_factory=dict)

    @classmethod
    def prepare(
        cls,
        config: PruneConfig,
        source: Source,
        skeleton: Skeleton,
        *,
        windows: Sequence[torch.Tensor],
        held_out: Sequence[torch.Tensor] = (),
        ranks: Ranks | None = None,
    ) -> Job:
        """Find the layers and refuse what cannot work, before any long work.

        Raises:
            InputError: if the configuration does not fit the model.
        """
        ranks = ranks or Ranks()
        if windows and len(windows) < ranks.count:
            raise InputError(
                f"{len(windows)} calibration windows cannot be shared by "
                f"{ranks.count} processes. Expected at least one for each: raise "
                "num_samples, or start fewer processes."
            )
        methods = Methods.of(config)
        blocks = [
            find_layers(skeleton, i, targets=config.targets, ignore=config.ignore)
            for i in range(len(skeleton.blocks))
        ]
        check_layers(config, blocks)
        layers = [layer for block in blocks for layer in block]
        slots = None
        if methods.shift is not None:
            slots = BiasSlots.of(source.architecture, source.folder.config, layers)
            if config.bias == "all" or not any(slots.fits(layer) for layer in layers):
                slots.check(source.architecture, layers, methods.shift.name)
        job = cls(
            config=config,
            methods=methods,
            source=source,
            skeleton=skeleton,
            capture=Capture(skeleton),
            blocks=blocks,
            windows=ranks.part(windows),
            held_out=list(held_out),
            ranks=ranks,
            slots=slots,
        )
        if config.nm is not None:
            permuter = job._permuter(
                {x.name: LayerTarget.nm(config.nm) for x in layers}
            )
            if permuter is not None:
                permuter.check(blocks, source.architecture)
        return job

    def plan(self, store: Store | None = None) -> Allocation:
        """Measure the dense model if need be, and fix every layer's budget.

        Args:
            store: where the allocation is kept and found.
        """
        noted = store.noted("allocation") if store is not None else None
        if noted is not None:
            self.allocation = restored(noted)
        else:
            self.allocation = self._allocate()
            if store is not None:
                store.note("allocation", self.allocation.as_dict())
        self.targets = layer_targets(self.config, self.blocks, self.allocation.shares)
        return self.allocation

    def prune(
        self, store: Store | None = None, *, judge: Sequence[torch.Tensor] = ()
    ) -> tuple[list[Outcome], dict[str, float], float | None]:
        """Prune every block by the plan.

        Args:
            store: where finished blocks are kept and found; without one the model is
                dense again afterwards.
            judge: windows on which the pruned model's loss is wanted.

        Returns:
            What happened to every layer, seconds by layer, and the loss per token on
            ``judge`` (None without any).
        """
        assert self.targets, "plan first"
        return self._prune(
            self.targets, self.windows, judge=judge, store=store, label="Pruning"
        )

    @property
    def notes(self) -> list[str]:
        """Sentences for the report."""
        return self.allocation.notes if self.allocation is not None else []

    def planned(self) -> list[float]:
        """Return the share that the plan removes from each block."""
        return planned(self.targets, self.blocks)

    def _allocate(self) -> Allocation:
        measured = measured_allocators(self.config, self.methods)
        profile = Profile()
        correction = self.methods.correction
        if measured or correction is not None:
            with self._bar("Measuring", len(self.windows) * len(self.blocks)) as bar:
                profile = measure_dense(
                    self.skeleton,
                    self.capture,
                    self.windows,
                    blocks=self.blocks,
                    allocators=measured,
                    amplification=(
                        Amplification(
                            correction,
                            self.capture,
                            self.windows,
                            scorer=self.methods.scorer,
                            sparsity=self.config.target,
                            ranks=self.ranks,
                        )
                        if correction is not None
                        else None
                    ),
                    ranks=self.ranks,
                    tick=bar.update,
                )
        chosen, notes = self.methods.allocator, list[str]()
        if isinstance(chosen, Atp) and chosen.beta is None:
            chosen, tried = search_atp(
                chosen,
                sizes=block_sizes(self.blocks),
                sparsity=self.config.target,
                loss=self._search_loss,
            )
            perplexities = ", ".join(f"{b}: {p:.4g}" for b, p in tried.items())
            notes.append(
                f"ATP's slope {chosen.beta:.6g} was found on held-out calibration text "
                f"(slope: perplexity; {perplexities})."
            )
        found = allocate(self.config, self.methods, self.blocks, profile, chosen)
        # In the allocation, so that a run that goes on has them too.
        return replace(found, notes=[*found.notes, *notes])

    def _search_loss(self, shares: Sequence[float]) -> float:
        """Prune with these shares on a few windows; return the held-out loss."""
        if not self.held_out:
            raise InputError(
                "A search needs held-out calibration windows, and there are none. "
                "Expected more windows than num_samples: a longer calibration text."
            )
        targets = layer_targets(self.config, self.blocks, shares)
        few = self.windows[: max(1, self.ranks.among_first(SEARCH_WINDOWS))]
        loss = self._prune(
            targets, few, judge=self.held_out, store=None, label="Searching"
        )[2]
        return math.inf if loss is None or math.isnan(loss) else loss

    def _prune(
        self,
        targets: dict[str, LayerTarget],
        windows: Sequence[torch.Tensor],
        *,
        judge: Sequence[torch.Tensor],
        store: Store | None,
        label: str,
    ) -> tuple[list[Outcome], dict[str, float], float | None]:
        used = len(windows) if self.methods.needs else 0
        # Two runs of a block: for its statistics, and but for the last one for the
        # next block's input.
        with self._bar(label, used * (2 * len(self.blocks) - 1)) as bar:
            work = Pass(
                skeleton=self.skeleton,
                capture=self.capture,
                blocks=self.blocks,
                methods=self.methods,
                targets=targets,
                slots=self.slots,
                ranks=self.ranks,
                permute=self._permuter(targets),
                tick=bar.update,
            )
            outcomes, seconds, judged = prune_blocks(
                work, windows, held_out=judge, store=store
            )
        if judged is None:
            return outcomes, seconds, None
        total, count = judged.loss()
        return outcomes, seconds, total / max(1, count)

    def _permuter(self, targets: dict[str, LayerTarget]) -> Permuter | None:
        if not self.config.permutation:
            return None
        return Permuter.of(
            self.methods.scorer,
            {k: t.pattern for k, t in targets.items() if t.pattern},
            config=self.skeleton.model.config.get_text_config(),
        )

    def _bar(self, label: str, windows: int) -> tqdm:
        # disable=None: no bar where nobody watches (not a terminal).
        return tqdm(
            total=windows,
            desc=label,
            unit="window",
            disable=None if self.ranks.first else True,
        )
