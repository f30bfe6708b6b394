"""Emulate online activation sparsity on a transformers model.

The same operations as in the engine (``nmsparse.ops.online``) around every linear layer
that the configuration targets, without vLLM: for calibration and for quality in one
forward pass a window. It is for inference: no gradient passes through it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import TracebackType
from typing import Any

import torch
from torch import nn

from nmsparse.config import ActivationSparsity, ConfigError, Phase, SparsityConfig
from nmsparse.criteria import criteria
from nmsparse.mitigation import check_mitigations
from nmsparse.ops.online import Online, prepare
from nmsparse.parameters import fuse
from nmsparse.resolve import Resolver, require_sparse_layers
from nmsparse.suggest import unknown
from offline_prune.online.emulated_layer import EmulatedLayer
from offline_prune.online.fused import FusedLinear, fused_linears
from offline_prune.online.positions import Policy, prompt_lengths, token_positions

# Of one module: parameter name to tensor.
ModuleParameters = Mapping[str, torch.Tensor]


class Emulation:
    """Sparse layers of one model; as a context manager, detached at its end.

    Args:
        model: the model whose calls say where tokens are.
        policy: which tokens are sparsified.

    Attributes:
        names: vLLM's names of the sparse layers.
    """

    def __init__(self, model: nn.Module, policy: Policy) -> None:
        self.names: list[str] = []
        self._policy = policy
        self._positions: torch.Tensor | None = None
        self._layers: list[EmulatedLayer] = []
        self._hook = model.register_forward_pre_hook(self._see, with_kwargs=True)

    @contextmanager
    def using(
        self,
        *,
        phase: Phase | str | None = None,
        prompt_len: int | Sequence[int] | None = None,
        dense_first_token: bool | None = None,
    ) -> Iterator[None]:
        """Choose other tokens for a while; what is not given stays as it is.

        Args:
            phase: tokens to sparsify.
            prompt_len: tokens of the prompt, for all sequences or for each.
            dense_first_token: whether position 0 stays dense.
        """
        before = self._policy
        policy = replace(before, enabled=True)
        if phase is not None:
            policy = replace(policy, phase=Phase(phase))
        if prompt_len is not None:
            policy = replace(policy, prompt_len=prompt_lengths(prompt_len))
        if dense_first_token is not None:
            policy = replace(policy, dense_first_token=dense_first_token)
        with self._under(policy):
            yield

    @contextmanager
    def off(self) -> Iterator[None]:
        """Let the model be dense for a while."""
        with self._under(replace(self._policy, enabled=False)):
            yield

    def detach(self) -> None:
        """Leave the model as it was before."""
        self._hook.remove()
        for layer in self._layers:
            layer.restore()
        self._layers.clear()

    def add(self, layer: FusedLinear, online: Online) -> None:
        """Sparsify the input of one layer."""
        self._layers.append(EmulatedLayer(layer, online, self._rows))
        self.names.append(layer.name)

    def __enter__(self) -> Emulation:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.detach()

    @contextmanager
    def _under(self, policy: Policy) -> Iterator[None]:
        before, self._policy = self._policy, policy
        try:
            yield
        finally:
            self._policy = before

    def _see(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self._positions = token_positions(model, args, kwargs)

    def _rows(self, name: str, rows: int) -> torch.Tensor | None:
        """Return which rows of a layer's input are sparsified; None for all."""
        policy = self._policy
        if not policy.enabled:
            return torch.zeros(rows, dtype=torch.bool)
        if policy.all_tokens:
            return None
        positions = self._positions
        if positions is None or positions.numel() != rows:
            found = "no tokens" if positions is None else f"{positions.numel()} tokens"
            raise RuntimeError(
                f"Emulation: {name} has {rows} rows and the model was called with "
                f"{found}. Expected a row for every token: call the whole model, or "
                "use phase both without dense_first_token."
            )
        chosen = policy.select(positions).reshape(-1)
        return None if chosen.all() else chosen


def attach(
    model: nn.Module,
    config: SparsityConfig,
    parameters: Mapping[str, ModuleParameters] | None = None,
    *,
    phase: Phase | str = Phase.BOTH,
    prompt_len: int | Sequence[int] | None = None,
    dense_first_token: bool | None = None,
) -> Emulation:
    """Sparsify the inputs of a model's linears, until the result is detached.

    Args:
        model: a causal language model of transformers, in evaluation mode.
        config: which layers, and how; its phase is not used.
        parameters: names of linears to their learned parameters, as
            ``nmsparse.parameters.read_parameters`` returns them.
        phase: tokens to sparsify.
        prompt_len: tokens of the prompt, one for all sequences or one for each; needed
            with phases decode and prefill, here or in :meth:`Emulation.using`.
        dense_first_token: whether position 0 stays dense; the configuration's by
            default.

    Raises:
        ConfigError: if the configuration or the parameters do not fit the model.
    """
    given = parameters or {}
    first = config.dense_first_token if dense_first_token is None else dense_first_token
    policy = Policy(Phase(phase), prompt_lengths(prompt_len), first)
    layers = fused_linears(model)
    _check_names(given, layers)
    resolver, chosen = Resolver(config), []
    for layer in layers:
        group = resolver.resolve(layer.names, _classes(layer)).group
        if group is not None and group.activation is not None:
            chosen.append((layer, group.activation))
    resolver.check_targets()
    require_sparse_layers(config, len(chosen), len(layers))
    # All of them before the first is changed: an error leaves the model as it is.
    ready = [(layer, _online(layer, rule, given)) for layer, rule in chosen]
    emulation = Emulation(model, policy)
    for layer, online in ready:
        emulation.add(layer, online)
    return emulation


def _online(
    layer: FusedLinear,
    rule: ActivationSparsity,
    parameters: Mapping[str, ModuleParameters],
) -> Online:
    """Return what to do with one layer.

    Raises:
        ConfigError: naming the layer.
    """
    wanted = _wanted(rule)
    parts = [
        {k: v for k, v in parameters.get(name, {}).items() if k in wanted}
        for name in layer.parts
    ]
    weight = layer.weight()
    try:
        rule.pattern.group(layer.in_features)
        own = fuse(parts, names=list(layer.parts)).to(weight.device)
        online = Online(rule.pattern, rule.criterion, rule.mitigation, own)
        online = prepare(weight, online)
        online.check(layer.in_features, sum(layer.out_features))
    except ValueError as error:
        raise ConfigError(f"{layer.name}: {error}") from None
    return online


def _wanted(rule: ActivationSparsity) -> set[str]:
    """Return the parameters that a rule uses: as the engine, others are left out."""
    found = {name for x in check_mitigations(rule.mitigation) for name in x.parameters}
    if criteria.get(rule.criterion).needs in ("weight", "calibration"):
        found.add("factor")
    return found | {"channel_groups"}


def _classes(layer: FusedLinear) -> tuple[str, ...]:
    """Class names that a target may give."""
    kinds = {type(module).__name__ for module in layer.parts.values()}
    return ("Linear", "LinearBase", *sorted(kinds))


def _check_names(
    parameters: Mapping[str, ModuleParameters], layers: Sequence[FusedLinear]
) -> None:
    """Refuse parameters of modules that the model lacks.

    Raises:
        ConfigError: naming one.
    """
    there = {name for layer in layers for name in layer.parts}
    for name in parameters:
        if name not in there:
            raise ConfigError(f"Parameters: {unknown('linear', name, there)}")
