"""``Treatment``: one layer's online sparsity beyond magnitude, on this rank."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from nmsparse.config import ActivationSparsity, ConfigError
from nmsparse.criteria import DEFAULT_CRITERION, criteria
from nmsparse.ops.online import Constants, Online, Sparsified, sparsify_online
from nmsparse.parameters import Parameters
from nmsparse.pattern import NMPattern
from vllm_sparse.treatment.ops import finish_rows
from vllm_sparse.treatment.shards import Split, local_parameters
from vllm_sparse.treatment.weights import (
    check_factor,
    dense_weight,
    dequantized,
    row_products,
    static_factor,
)

if TYPE_CHECKING:
    from vllm.model_executor.layers.linear import LinearBase

    from vllm_sparse.treatment.source import Part

# [T, K] -> [T, O], vLLM's product of one layer without its bias.
Product = Callable[[torch.Tensor], torch.Tensor]


class Treatment:
    """Criterion, mitigations and parameters of one layer.

    What comes from the weight is filled in when the weight is loaded, and again when it
    is loaded again, in the same tensors: compiled code and graphs hold them.

    Args:
        layer: the layer of vLLM, just built.
        activation: what the configuration says about it.
        parts: its fitted parameters, or those of its parts, by module name.
        device: where it runs.

    Attributes:
        pattern: N of M of this rank's channels.
        online: what the ops take.
        constants: what the product owes for shifts.
        origin: where every parameter comes from, for people to read.
        batch_dependent: whether a token's result depends on the tokens beside it.

    Raises:
        ConfigError: naming the layer, if parameters do not fit it or cannot be had.
    """

    def __init__(
        self,
        layer: LinearBase,
        activation: ActivationSparsity,
        parts: Mapping[str, Part],
        *,
        device: torch.device,
        file: str = "",
    ) -> None:
        self._split = split = Split.of(layer)
        self._sizes = layer.input_size + layer.output_size
        criterion = criteria.get(activation.criterion)
        found = local_parameters(
            layer, parts, pattern=activation.pattern, device=device
        )
        self.origin = {name: file for name, _ in found.items()}
        self._from_weight = criterion.needs == "weight" and found.factor is None
        if self._from_weight:
            check_factor(layer.prefix, activation.criterion, split)
            found = replace(found, factor=_zeros(split.k_local, device))
            self.origin["factor"] = "weight"
        # For this rank: the ops take N of M alone.
        self.pattern = NMPattern(*activation.pattern.group(split.k_local))
        self.online = Online(self.pattern, criterion.name, activation.mitigation, found)
        try:
            self.online.check(split.k_local, split.o_local)
        except ValueError as error:
            raise ConfigError(f"{layer.prefix}: {error}") from None
        constant = found.channel_shift is not None or found.output_shift is not None
        self.constants = Constants(
            row_sum=_zeros(split.o_local, device) if self.online.statistic else None,
            constant=_zeros(split.o_local, device) if constant else None,
        )
        self.batch_dependent = not criterion.per_token
        self._loaded = False

    @property
    def label(self) -> str:
        """What decides the cost: layers of one label share measured tables."""
        words = [self.online.criterion, *self.online.mitigation]
        if self.parameters.low_rank_in is not None:
            words.append(f"rank {self.parameters.low_rank_in.shape[0]}")
        if self.parameters.channel_groups is not None:
            words.append("groups")
        return " ".join(words)

    @property
    def parameters(self) -> Parameters:
        """Fitted tensors and factors of this rank."""
        return self.online.parameters

    @property
    def finishes(self) -> bool:
        """Whether anything is left to do after the product."""
        return bool(self.online.mitigation)

    @property
    def extra_weights(self) -> int:
        """Elements read beside the weight's, over all ranks: low-rank matrices'."""
        low_rank = self.parameters.low_rank_in
        return 0 if low_rank is None else low_rank.shape[0] * self._sizes

    # -- tokens ---------------------------------------------------------------------

    def sparsify(
        self, x: torch.Tensor, nonzeros: torch.Tensor | None = None
    ) -> Sparsified:
        """Return what of tokens goes into the product, and what comes after it.

        Args:
            x: ``[T, K]`` on a CPU, tokens that are all sparsified.
            nonzeros: ``[1]`` int64, incremented by the number of kept values that are
                not zero; None not to count.
        """
        found = sparsify_online(x, self.online)
        if nonzeros is not None:
            # Through numpy: tensor arithmetic on one number costs microseconds.
            nonzeros.numpy()[0] += int(found.values.count_nonzero())
        return found

    def finish(
        self, product: torch.Tensor, bias: torch.Tensor | None, found: Sparsified
    ) -> torch.Tensor:
        """Return ``[T, O]``, the layer's result, of a product that has the bias."""
        if not self.finishes:
            return product
        return finish_rows(product, bias, found, self.constants, self.parameters)

    # -- weights --------------------------------------------------------------------

    def before_processing(self, layer: Any, inner: Any) -> bool:
        """Take what a weight gives while it is as loaded.

        Args:
            layer: the layer; ``layer.weight`` is complete.
            inner: vLLM's method.

        Returns:
            True if nothing is left for :meth:`after_processing`.

        Raises:
            ConfigError: if a factor needs a weight that cannot be had.
        """
        weight = dense_weight(layer, inner, self._split)
        if weight is not None:
            self.read(layer, weight)
            return True
        packed_away = getattr(getattr(layer, "weight", None), "shape", None) == (0,)
        if self._loaded and packed_away:  # processed again, not loaded again
            return True
        if self._from_weight:
            self._set_factor(layer, dequantized(layer, inner, self.online.criterion))
        return False

    def read(self, layer: Any, weight: torch.Tensor) -> None:
        """Take everything from a dense weight.

        Args:
            layer: the layer.
            weight: ``[O, K]`` of this rank, fused.
        """
        if self._from_weight:
            self._set_factor(layer, weight)
        vectors = self._vectors(torch.float32)
        if vectors is not None:
            self._set_constants(row_products(weight, vectors))
        self._loaded = True

    def measure(self, product: Product, dtype: torch.dtype) -> None:
        """Take row sums and constants from vLLM's product of a processed weight.

        Args:
            product: the layer's, without bias.
            dtype: of the activations it takes.
        """
        vectors = self._vectors(dtype)
        if vectors is not None:
            self._set_constants(product(vectors).float())
        self._loaded = True

    def _set_factor(self, layer: Any, weight: torch.Tensor) -> None:
        assert self.parameters.factor is not None
        found = static_factor(layer, self.online.criterion, weight, self._split)
        self.parameters.factor.copy_(found)

    def _vectors(self, dtype: torch.dtype) -> torch.Tensor | None:
        """Return ``[n, K]``: ones for row sums, then the shift of channels."""
        rows: list[torch.Tensor] = []
        row_sum, shift = self.constants.row_sum, self.parameters.channel_shift
        if row_sum is not None:
            rows.append(row_sum.new_ones(self._split.k_local))
        if shift is not None:
            rows.append(shift)
        if not rows:
            self._set_constants(torch.empty(0, self._split.o_local))
            return None
        return torch.stack(rows).to(dtype)

    def _set_constants(self, products: torch.Tensor) -> None:
        """Fill the constants from the products of :meth:`_vectors`."""
        rows = iter(products)
        row_sum, constant = self.constants.row_sum, self.constants.constant
        if row_sum is not None:
            row_sum.copy_(next(rows))
        if constant is None:
            return
        constant.zero_()
        if self.parameters.channel_shift is not None:
            constant.add_(next(rows))
        if self.parameters.output_shift is not None and self._split.adds_once:
            constant.add_(self.parameters.output_shift)


def _zeros(size: int, device: torch.device) -> torch.Tensor:
    # float32, whatever the default is: vLLM sets the model's while it builds layers.
    return torch.zeros(size, dtype=torch.float32, device=device)


def make_treatment(
    layer: LinearBase,
    activation: ActivationSparsity,
    parts: Mapping[str, Part],
    *,
    device: torch.device,
    file: str = "",
) -> Treatment | None:
    """Return the treatment of a layer; None for plain N of M by magnitude.

    A pattern that keeps everything, without learned parameters, is plain as well: its
    result is the dense one whatever the criterion.

    Raises:
        ConfigError: as :class:`Treatment`.
    """
    plain = activation.criterion == DEFAULT_CRITERION and not activation.mitigation
    if plain and not parts:
        return None
    if activation.pattern.is_dense and not parts:
        return None
    return Treatment(layer, activation, parts, device=device, file=file)
