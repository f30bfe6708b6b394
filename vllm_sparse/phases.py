"""Which phase every token of the current step is in, on the device.

A token is *decode* when its position is at or beyond the request's prompt: the model
generated it. That depends on the request alone, so chunked prefill, mixed batches,
prefix-cache hits, preemption and speculative drafts do not change it. A configuration
may keep a request's first token, at position 0, dense: it then has a code of its own.
Rows beyond the step's real tokens are *padding*.

The buffer is written once a step, before the forward pass and outside any CUDA graph;
the sparse layers of that step read it, so graphs replay with the right values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import torch

from nmsparse.config import Phase

if TYPE_CHECKING:
    from nmsparse.config import SparsityConfig

# Codes of tokens: bits, so that a selection can name several.
PADDING, PREFILL, DECODE, FIRST = 0, 1, 2, 4
_CODES = (PREFILL, DECODE, FIRST)
# Rows of steps are counted one by one below it: no sparse kernel is for so many.
_MANY = 17
# What the ops' integer argument means: sparsify tokens with this code, all tokens (0),
# or all but the first of a request.
ALL, BUT_FIRST = 0, PREFILL | DECODE
PHASE_CODES = {Phase.BOTH: ALL, Phase.PREFILL: PREFILL, Phase.DECODE: DECODE}


def phase_code(config: SparsityConfig) -> int:
    """Return the ops' argument: which codes an engine sparsifies."""
    if config.phase is Phase.BOTH and config.dense_first_token:
        return BUT_FIRST
    return PHASE_CODES[config.phase]


def selected_tokens(codes: torch.Tensor, phase: int) -> torch.Tensor:
    """Return which real tokens are sparsified.

    Args:
        codes: ``[T]`` uint8.
        phase: what :func:`phase_code` returned.

    Returns:
        ``[T]`` bool. With phase ``ALL`` padding may be sparsified as well; it is not
        in here, because it is not counted.
    """
    if phase == ALL:
        return codes != PADDING
    if phase == BUT_FIRST:
        return (codes & BUT_FIRST) != 0
    return codes == phase


class Masks(NamedTuple):
    """What one phase means for every token of a step: persistent, on the device.

    Attributes:
        sparse: ``[max_tokens]`` bool: tokens that are sparsified, and padding, for
            which any treatment is right.
        counted: ``[max_tokens]`` bool: real tokens that are sparsified.
    """

    sparse: torch.Tensor
    counted: torch.Tensor


class StepListener(Protocol):
    """What is told about steps, outside of the forward pass."""

    def start(self, decodes: bool | None) -> None:
        """Be told that the codes of a step are set, before it runs.

        Args:
            decodes: whether some of its tokens were generated; None where only the
                device knows.
        """

    def end(self) -> None:
        """Be told that another step, or a dummy one, is about to be prepared."""


class Steps(NamedTuple):
    """Steps of one kind that an engine has run.

    Attributes:
        rows: of a layer's input, padding included; 17 for more than 16.
        selected: whether all of their tokens were sparsified, none, or some (None).
        number: of them.
    """

    rows: int
    selected: bool | None
    number: int


class TokenPhases:
    """Persistent per-token phase codes and running totals.

    Args:
        max_tokens: most tokens a step can have, padding included.
        device: where the model runs.
        mark_first: whether tokens at position 0 get the code FIRST.

    Attributes:
        codes: ``[max_tokens]`` uint8, one of PADDING, PREFILL, DECODE, FIRST.
        tokens: on a CPU, tokens of this step; 0 in a dummy step.
        listener: is told about every step; None for nobody.
    """

    def __init__(
        self, max_tokens: int, device: torch.device, *, mark_first: bool = False
    ) -> None:
        self.codes = torch.zeros(max_tokens, dtype=torch.uint8, device=device)
        # Of steps by rows: tokens with each code, and steps that have any.
        shape = (2, _MANY + 1, FIRST + 1)
        self._record = torch.zeros(shape, dtype=torch.int64, device=device)
        self._steps = [0] * (_MANY + 1)
        self._kinds = torch.arange(FIRST + 1, dtype=torch.uint8, device=device)
        self._mark_first = mark_first
        self._most = max_tokens
        self.tokens = 0
        self.listener: StepListener | None = None
        self._code: int | None = PADDING
        self._masks: dict[int, Masks] = {}

    def masks(self, phase: int) -> Masks:
        """Return what a phase selects, in tensors that follow every step.

        Once a step instead of in every layer: on a GPU each comparison is a launch.

        Args:
            phase: what :func:`phase_code` returned.
        """
        found = self._masks.get(phase)
        if found is None:
            counted = selected_tokens(self.codes, phase)
            found = self._masks[phase] = Masks(torch.empty_like(counted), counted)
            self._refresh()
        return found

    @property
    def totals(self) -> torch.Tensor:
        """``[5]`` int64, tokens seen with each code (index = code)."""
        return self._record[0].sum(dim=0)

    def steps(self, phase: int) -> list[Steps]:
        """Return which steps there were; it waits for the device.

        Exact, but for steps of a request's dense first token and others.

        Args:
            phase: what :func:`phase_code` returned.
        """
        found: list[Steps] = []
        for rows, having in enumerate(self._record[1].tolist()):
            number = self._steps[rows]
            kinds: dict[bool | None, int] = {True: number}
            if phase != ALL:
                chosen = sum(having[code] for code in _CODES if code & phase)
                others = sum(having[code] for code in _CODES if not code & phase)
                chosen, others = min(chosen, number), min(others, number)
                some = max(0, chosen + others - number)
                kinds = {True: chosen - some, False: others - some, None: some}
            found += [Steps(rows, kind, n) for kind, n in kinds.items() if n]
        return found

    def reset(self) -> None:
        """Count from zero again."""
        self._record.zero_()
        self._steps = [0] * (_MANY + 1)

    def publish(
        self,
        positions: torch.Tensor,
        prompt_lens: torch.Tensor,
        rows: int | None = None,
    ) -> None:
        """Set the codes of one step's tokens; the rest becomes padding.

        No host synchronisation: both arguments may live on the device.

        Args:
            positions: ``[T]`` position of every token in its sequence.
            prompt_lens: ``[T]`` prompt length of the request of every token.
            rows: of the step with padding, where that is known.
        """
        if self.listener is not None:
            self.listener.end()
        tokens = positions.shape[0]
        codes = torch.where(positions >= prompt_lens, DECODE, PREFILL)
        if self._mark_first:
            codes = torch.where(positions == 0, FIRST, codes)
        self.codes[:tokens] = codes.to(torch.uint8)
        self.codes[tokens:] = PADDING
        self._refresh()
        self._count(codes, min(rows or tokens, _MANY))
        if self.codes.is_cpu:  # once a step, so that no layer has to look
            self.tokens, self._code = tokens, self._common(tokens)
        if self.listener is not None:
            self.listener.start(self._decodes())

    def _count(self, codes: torch.Tensor, rows: int) -> None:
        """Add a step's codes to the record."""
        self._steps[rows] += 1
        if codes.is_cpu:  # through numpy: torch would cost several times as much
            seen, having = self._record.numpy()[:, rows]
            counts = np.bincount(codes.numpy(), minlength=FIRST + 1)
            seen += counts
            having += counts > 0
        else:
            found = (codes == self._kinds[:, None]).sum(dim=1)
            self._record[0, rows] += found
            self._record[1, rows] += found > 0

    def clear(self) -> None:
        """Mark everything as padding."""
        if self.listener is not None:
            self.listener.end()
        self.codes.zero_()
        self._refresh()
        self.tokens, self._code = 0, PADDING

    def real(self, rows: int) -> int:
        """Return how many of a layer's rows are tokens of the step. On CPUs only.

        More rows than a step can have are no tokens of it.
        """
        if rows > self._most:
            return 0
        return rows if rows < self.tokens else self.tokens

    def uniform(self, rows: int) -> int | None:
        """Return the code that all of a layer's rows share, None if they differ.

        Rows beyond the step's tokens are padding, for which any treatment is right. On
        CPUs only.
        """
        real = self.real(rows)
        if self._code is not None:
            return self._code if real else PADDING
        return self._common(real)

    def selects(self, rows: int, phase: int) -> bool | None:
        """Return whether all of a layer's rows are sparsified, none, or some (None).

        On CPUs only.

        Args:
            rows: of the layer's input.
            phase: what :func:`phase_code` returned.
        """
        if phase == ALL:
            return True
        code = self.uniform(rows)
        if code is not None:
            return bool(code & phase)
        if phase != BUT_FIRST:
            return None
        # Prompt and generated tokens may share a step and be sparse alike.
        chosen = self.codes[: self.real(rows)].numpy() & phase
        return True if chosen.all() else None

    def _decodes(self) -> bool | None:
        """Return whether the step has generated tokens; None if not known here."""
        if not self.codes.is_cpu:
            return None
        if self._code is not None:
            return self._code == DECODE
        return bool((self.codes[: self.tokens].numpy() == DECODE).any())

    def _refresh(self) -> None:
        """Bring the masks up to date with the codes."""
        for phase, masks in self._masks.items():
            masks.counted.copy_(selected_tokens(self.codes, phase))
            torch.logical_or(masks.counted, self.codes == PADDING, out=masks.sparse)

    def _common(self, tokens: int) -> int | None:
        """Return the code of the first tokens, None if they differ."""
        if not tokens:
            return PADDING
        found = self.codes[:tokens].numpy()
        return int(found[0]) if (found == found[0]).all() else None
