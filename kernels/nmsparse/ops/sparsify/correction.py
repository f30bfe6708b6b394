"""``Correction``: how tokens are shifted, weighted and rescaled around a selection."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from nmsparse.criteria import DEFAULT_CRITERION, criteria

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, eq=False)
class Correction:
    """Optional parts of ``compact``; every part is None or False by default.

    The score of channel k of token t is ``|x - shift| * factor[k]`` in float32, where
    ``shift = channel_shift[k] + token_shift[t]``, and ``x - shift`` is what is kept.
    The product then owes ``shift`` times the weight: a constant bias for channels,
    ``token_shift[t] * weight.sum(K)`` for tokens (see ``linear``).

    Sources: shifts and variance, arXiv 2509.22166; factors, Amber-Pruner and WINA.

    Attributes:
        factor: ``[K]``, not negative: weight of a channel in the score.
        channel_shift: ``[K]``, subtracted from every token.
        token_shift: ``[T]``, subtracted from every channel of a token.
        variance: whether to return ``sqrt(var(x - shift) / var(kept))`` of each token,
            over all K channels with the dropped ones as zeros; 1 if either is zero.
    """

    factor: torch.Tensor | None = None
    channel_shift: torch.Tensor | None = None
    token_shift: torch.Tensor | None = None
    variance: bool = False

    def check(self, tokens: int, in_features: int, *, subject: str = "compact") -> None:
        """Verify shapes.

        Args:
            tokens: T.
            in_features: K.
            subject: named in errors.

        Raises:
            ValueError: naming the part with another shape.
        """
        expected = {
            "factor": (self.factor, in_features),
            "channel_shift": (self.channel_shift, in_features),
            "token_shift": (self.token_shift, tokens),
        }
        for name, (tensor, size) in expected.items():
            if tensor is not None and tuple(tensor.shape) != (size,):
                raise ValueError(
                    f"{subject}: {name} has shape {tuple(tensor.shape)}. "
                    f"Expected [{size}]."
                )

    def shifted(self, x: torch.Tensor) -> torch.Tensor | None:
        """Return ``x - shift`` (``[T, K]`` float32), None without shifts."""
        if self.channel_shift is None and self.token_shift is None:
            return None
        shifted = x.float()
        if self.channel_shift is not None:
            shifted = shifted - self.channel_shift.float()
        if self.token_shift is not None:
            shifted = shifted - self.token_shift.float()[:, None]
        return shifted

    def with_factor_of(self, criterion: str, x: torch.Tensor) -> Correction:
        """Return the correction with the factor that a criterion asks for.

        Args:
            criterion: its name.
            x: ``[..., K]``, the tokens of the step.

        Raises:
            ValueError: if the criterion is unknown, or needs a static factor and the
                correction has none.
        """
        if criterion == DEFAULT_CRITERION or self.factor is not None:
            return self
        found = criteria.get(criterion)
        if found.needs in ("weight", "calibration"):
            raise ValueError(
                f"Criterion {criterion} needs a factor per channel, and none is given. "
                "Expected Correction(factor=...): see nmsparse.ops.online.prepare."
            )
        flat = x.reshape(-1, x.shape[-1])
        shifted = self.shifted(flat)
        return replace(
            self, factor=found.batch_factor(flat if shifted is None else shifted)
        )


NONE = Correction()
