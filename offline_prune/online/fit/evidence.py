"""What a layer's parameters are fitted to: its inputs, and the dense outputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import linear

from nmsparse.ops.online import Constants, Online, finish_online, sparsify_online
from offline_prune.online.fit.tokens import token_weights


@dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    """Inputs of a layer in one window.

    Attributes:
        x: ``[T, K]``, of the sparse stream.
        wanted: ``[T, K]``, the input whose dense output is the target; None for ``x``.
        first: whether row 0 is position 0 of the window.
    """

    x: torch.Tensor
    wanted: torch.Tensor | None = None
    first: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """One window of a sparse layer with the parameters it has so far.

    Attributes:
        weights: ``[T]`` float32, of the tokens.
        product: ``[T, O]`` float32, ``s * (W v)``.
        left: ``[T, O]`` float32, what the dense output is above the sparse one.
        dropped: ``[T, K]`` float32, ``u - v``; None if no mitigation reads it.
    """

    weights: torch.Tensor
    product: torch.Tensor
    left: torch.Tensor
    dropped: torch.Tensor | None


class Evidence:
    """Windows of one (fused) layer.

    Args:
        weight: ``[O, K]``, all rows of the layer.
        bias: ``[O]`` or None.
        windows: the inputs.
        clip: of the weights of tokens.
        output_energy: ``[O]``, how much an error of each output matters; None for the
            same of all.

    Attributes:
        weights: of the tokens of every window.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        *,
        windows: Sequence[Inputs],
        clip: float,
        output_energy: torch.Tensor | None = None,
    ) -> None:
        self.weight = weight
        self.windows = windows
        self.output_energy = output_energy
        self._bias = bias
        self.weights = [
            token_weights(self._dense(window), clip=clip, first=window.first)
            for window in windows
        ]

    @property
    def in_features(self) -> int:
        """K."""
        return int(self.weight.shape[1])

    @property
    def out_features(self) -> int:
        """O."""
        return int(self.weight.shape[0])

    def same_input(self) -> bool:
        """Whether the target is the dense layer on the very inputs."""
        return all(window.wanted is None for window in self.windows)

    def seen(self, online: Online) -> Iterator[Seen]:
        """Yield every window as ``online`` leaves it.

        Args:
            online: complete; learned parts that are still to be fitted are neutral.
        """
        constants = Constants.of(self.weight, online)
        for window, weights in zip(self.windows, self.weights, strict=True):
            sparse = sparsify_online(window.x, online)
            # In the dtype of the layer, as the engine multiplies.
            product = linear(sparse.values, self.weight).float()
            out = finish_online(product, sparse, online, constants)
            if self._bias is not None:
                out = out + self._bias.float()
            if sparse.scale is not None:
                product = product * sparse.scale[:, None]
            dropped = None if sparse.residual is None else sparse.residual.float()
            yield Seen(weights, product, self._dense(window) - out, dropped)

    def _dense(self, window: Inputs) -> torch.Tensor:
        """Return the target, ``[T, O]`` float32."""
        x = window.x if window.wanted is None else window.wanted
        return linear(x, self.weight, self._bias).float()
