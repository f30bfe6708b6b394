"""Tiny models with fitted parameters, and what transformers makes of them: the oracle.

Parameters are random, of a size that changes results. Every linear of the oracle runs
``nmsparse.ops.online.online_linear``; with several ranks, once for each shard of K.
"""

from __future__ import annotations

import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from nmsparse import SparsityConfig, write_sidecar
from nmsparse.mitigation import mitigations
from nmsparse.ops.online import Online, online_linear, prepare
from nmsparse.parameters import Parameters, fuse, write_parameters
from nmsparse.pattern import NMPattern, parse_pattern

FUSED = {"q_proj": "qkv", "k_proj": "qkv", "v_proj": "qkv"}
FUSED |= {"gate_proj": "gate_up", "up_proj": "gate_up"}
ROW_PARALLEL = ("o_proj", "down_proj")
RANK = 4


def treat(
    dense: Path,
    folder: Path,
    pattern: str,
    *,
    criterion: str = "magnitude",
    mitigation: tuple[str, ...] = (),
    groups: bool = False,
    **config: Any,
) -> Path:
    """Write ``dense`` with a sidecar, and random parameters if it needs any."""
    shutil.copytree(dense, folder)
    made = SparsityConfig.uniform(
        pattern,
        criterion=criterion,
        mitigation=mitigation,
        phase=config.pop("phase", "decode"),
    ).model_copy(update=config)
    parameters = _parameters(dense, pattern, criterion, mitigation, groups=groups)
    if parameters:
        file = write_parameters(folder, parameters)
        made = made.model_copy(update={"parameters": file})
    write_sidecar(folder, made)
    return folder


def _linears(model: torch.nn.Module) -> dict[str, dict[str, torch.nn.Linear]]:
    """Return linears of the blocks by fused layer, then by name."""
    found: dict[str, dict[str, torch.nn.Linear]] = defaultdict(dict)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            parent, _, last = name.rpartition(".")
            found[f"{parent}.{FUSED.get(last, last)}"][name] = module
    return found


def _parameters(
    dense: Path,
    pattern: str,
    criterion: str,
    mitigation: tuple[str, ...],
    *,
    groups: bool,
) -> dict[str, dict[str, torch.Tensor]]:
    model = AutoModelForCausalLM.from_pretrained(dense, dtype=torch.float32)
    generator = torch.Generator().manual_seed(20260101)

    def random(*shape: int, scale: float) -> torch.Tensor:
        return scale * torch.randn(shape, generator=generator)

    wanted = {p for name in mitigation for p in mitigations.get(name).parameters}
    found: dict[str, dict[str, torch.Tensor]] = {}
    for parts in _linears(model).values():
        channels = next(iter(parts.values())).in_features
        shared: dict[str, torch.Tensor] = {}
        if criterion == "second_order":
            shared["factor"] = random(channels, scale=1.0).exp()
        if "channel_shift" in wanted:
            shift = random(channels, scale=0.02)
            shared["channel_shift"] = (
                shift.mean().expand(channels).clone()
                if "s_pts" in mitigation
                else shift
            )
        if "low_rank_in" in wanted:
            shared["low_rank_in"] = random(RANK, channels, scale=0.1)
        if groups:
            shared["channel_groups"] = _groups(channels, generator)
        for name, module in parts.items():
            own = dict(shared)
            outputs = module.out_features
            if "output_scale" in wanted:
                own["output_scale"] = random(outputs, scale=0.2)
            if "output_shift" in wanted:
                own["output_shift"] = random(outputs, scale=0.02)
            if "low_rank_out" in wanted:
                own["low_rank_out"] = random(outputs, RANK, scale=0.1)
            if own:
                found[name] = own
    return found


def _groups(channels: int, generator: torch.Generator) -> torch.Tensor:
    """Return a permutation that stays inside of either half of the channels."""
    half = channels // 2
    parts = [torch.randperm(half, generator=generator) + start for start in (0, half)]
    return torch.cat(parts)


def treated_logprobs(
    folder: Path,
    prompts: list[list[int]],
    parameters: dict[str, dict[str, torch.Tensor]],
    config: SparsityConfig,
    *,
    ranks: int = 1,
) -> list[torch.Tensor]:
    """Return ``[len(prompt), vocabulary]`` float32 log-probabilities of every prompt.

    Args:
        folder: the model.
        prompts: token ids.
        parameters: of its linears, by name; empty for none.
        config: one group, for all linears; its phase is taken to be both.
        ranks: tensor-parallel size.
    """
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    (group,) = config.groups.values()
    activation = group.activation
    assert activation is not None
    pattern = parse_pattern(str(activation.pattern))
    assert isinstance(pattern, NMPattern)
    for parts in _linears(model).values():
        given = [parameters.get(name, {}) for name in parts]
        # The factor is that of the fused weight.
        whole = Online(
            pattern, activation.criterion, activation.mitigation, fuse(given)
        )
        weight = torch.cat([module.weight for module in parts.values()]).detach()
        factor = prepare(weight, whole).parameters.factor
        for own, (name, module) in zip(given, parts.items(), strict=True):
            tensors = {**own, **({} if factor is None else {"factor": factor})}
            online = Online(
                pattern,
                activation.criterion,
                activation.mitigation,
                Parameters(**tensors),
            )
            split = ranks if name.endswith(ROW_PARALLEL) else 1
            module.forward = _Treated(module, online, split, config.dense_first_token)
    with torch.inference_mode():
        return [
            model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
            for ids in prompts
        ]


class _Treated:
    """Replaces ``forward`` of one linear."""

    def __init__(
        self, module: torch.nn.Linear, online: Online, ranks: int, dense_first: bool
    ) -> None:
        self.weight, self.bias = module.weight.detach(), module.bias
        self.shards = [_shard(online, rank, ranks) for rank in range(ranks)]
        self.dense_first = dense_first

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.flatten(0, -2)
        ranks = len(self.shards)
        inputs, weights = flat.chunk(ranks, 1), self.weight.chunk(ranks, 1)
        y = sum(
            online_linear(part, weight.contiguous(), None, online)
            for part, weight, online in zip(inputs, weights, self.shards, strict=True)
        )
        y = y if self.bias is None else y + self.bias
        if self.dense_first:
            y[0] = torch.nn.functional.linear(flat[0], self.weight, self.bias)
        return y.view(*x.shape[:-1], -1)


def _shard(online: Online, rank: int, ranks: int) -> Online:
    """Return the rule of one shard of K."""
    if ranks == 1:
        return online
    given = dict(online.parameters.items())
    for name in ("factor", "channel_shift", "low_rank_in", "channel_groups"):
        if name in given:
            given[name] = given[name].chunk(ranks, -1)[rank].contiguous()
    if "channel_groups" in given:
        given["channel_groups"] = given["channel_groups"] - rank * len(
            given["channel_groups"]
        )
    if rank and "output_shift" in given:
        given["output_shift"] = torch.zeros_like(given["output_shift"])
    return Online(
        online.pattern, online.criterion, online.mitigation, Parameters(**given)
    )
