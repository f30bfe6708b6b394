"""Make a plan: from a model's shapes, what is sparse, and a machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nmsparse.config import ConfigError, Phase, SparsityConfig
from vllm_sparse.execution import KEEP
from vllm_sparse.plan.cache import read_cache
from vllm_sparse.plan.holding import holding
from vllm_sparse.plan.layers import fused_layers, shard, treated_layers
from vllm_sparse.plan.machines import Machine
from vllm_sparse.plan.modules import Module, Role, read_modules
from vllm_sparse.plan.results import Plan
from vllm_sparse.plan.steps import Experts, Rank, Setting, crossover, step
from vllm_sparse.plan.stored import Stored
from vllm_sparse.plan.verdict import assumptions, verdict

SIZES = {"bfloat16": 2, "float16": 2, "float32": 4}
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_ACTIVE = ("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk")


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked.

    Attributes:
        config: what is sparse.
        origin: where that was said.
        machine: what the model runs on.
        batches: sequences that decode together.
        context: tokens of every sequence.
        dtype: of the activations, or ``auto``.
        cache_dtype: of the KV cache: ``auto`` or ``fp8``.
        zeros: share of zeros of every packable weight; None for what is recorded.
        ranks: tensor-parallel.
        shared_lists: whether 3 to 16 tokens may share one list.
        sparse_weights: as in ``serve``.
        dense_fallback: likewise; a CPU's.
        achieved: share of the bandwidth that vLLM's own kernels reach.
        ours: the share that kernels of the plugin reach.
        fixed: seconds that a launch costs.
        utilization: share of the memory that vLLM takes.
    """

    config: SparsityConfig
    origin: str
    machine: Machine
    batches: Sequence[int] = (1,)
    context: int = 1024
    dtype: str = "auto"
    cache_dtype: str = "auto"
    zeros: float | None = None
    ranks: int = 1
    shared_lists: bool = False
    sparse_weights: str = "auto"
    dense_fallback: str = KEEP
    achieved: float = 1.0
    ours: float = 1.0
    fixed: float = 0.0
    utilization: float = 0.92


def make_plan(stored: Stored, question: Question) -> Plan:
    """Return the plan.

    Raises:
        ConfigError: if the model or the configuration cannot be used.
    """
    if stored.config.get("is_encoder_decoder"):
        raise ConfigError(
            f"Model {stored.name!r} has an encoder and a decoder. Expected a model "
            "with a decoder alone."
        )
    dtype = _dtype(stored, question.dtype)
    modules = read_modules(stored, SIZES[dtype])
    rank = _rank(stored, modules, question, SIZES[dtype])
    machine = question.machine
    setting = Setting(
        machine,
        question.context,
        shared_lists=question.shared_lists and machine.device == "gpu",
        sparse_weights=question.sparse_weights,
        decode=question.config.phase is not Phase.PREFILL,
        achieved=question.achieved,
        ours=question.ours,
        fixed=question.fixed,
    )
    steps = tuple(step(rank, setting, tokens) for tokens in question.batches)
    memory = holding(
        rank,
        setting,
        fallback=question.dense_fallback,
        utilization=question.utilization,
    )
    limit = crossover(rank, setting)
    return Plan(
        model=stored.name,
        shapes=stored.source,
        parameters=_parameters(modules),
        dtype=dtype,
        sparsity=question.origin,
        machine=machine,
        context=question.context,
        tensor_parallel=question.ranks,
        steps=steps,
        memory=memory,
        crossover=limit,
        assumptions=assumptions(stored, rank, setting, question.utilization),
        verdict=verdict(rank, setting, steps, memory, limit),
    )


def _dtype(stored: Stored, asked: str) -> str:
    """Return what vLLM would serve: its ``auto`` is a 16-bit type."""
    if asked != "auto":
        return asked
    named = (stored.text.get("dtype"), stored.text.get("torch_dtype"))
    top = (stored.config.get("dtype"), stored.config.get("torch_dtype"))
    found = str(next((name for name in (*named, *top) if name), "bfloat16"))
    return "float16" if found.removeprefix("torch.") == "float16" else "bfloat16"


def _parameters(modules: Sequence[Module]) -> int | None:
    loaded = [x for x in modules if x.role is not Role.DRAFT]
    if any(module.quantized for module in loaded):
        return None
    return sum(module.elements + module.others for module in loaded)


def _rank(
    stored: Stored, modules: Sequence[Module], question: Question, size: int
) -> Rank:
    """Return one rank's share of everything."""
    ranks, text = question.ranks, stored.text
    pairs = text.get("num_key_value_heads")
    whole = treated_layers(
        fused_layers(modules),
        question.config,
        zeros=question.zeros,
        device=question.machine.device,
        ranks=ranks,
    )
    if not whole:
        raise ConfigError(
            f"Model {stored.name!r} has no linear layers that could be read. Expected "
            "a decoder-only language model."
        )
    by_role: dict[Role, list[Module]] = {role: [] for role in Role}
    for module in modules:
        by_role[module.role].append(module)
    embeddings = by_role[Role.EMBEDDING]
    heads = by_role[Role.HEAD] or _tied(embeddings, text.get("vocab_size"))
    apart = [module for module in embeddings if module not in heads]
    read = [x for x in modules if x.role not in (Role.TOWER, Role.DRAFT)]
    other = sum(x.nbytes for x in by_role[Role.OTHER]) + sum(x.beside for x in read)
    towers = sum(x.nbytes + x.beside for x in by_role[Role.TOWER])
    return Rank(
        layers=tuple(shard(layer, ranks, pairs) for layer in whole),
        head=sum(x.nbytes for x in heads) / ranks,
        head_elements=sum(x.elements for x in heads) / ranks,
        embeddings=sum(x.nbytes for x in apart) / ranks,
        row=sum(x.in_features * size for x in embeddings),
        other=other,
        unread=towers,
        experts=_experts(by_role[Role.EXPERTS], stored, ranks),
        cache=read_cache(
            modules,
            text,
            size=1 if question.cache_dtype == "fp8" else size,
            ranks=ranks,
        ),
    )


def _tied(embeddings: Sequence[Module], vocabulary: int | None) -> list[Module]:
    """Return the embedding that is the head too: that of tokens."""
    rows = [x for x in embeddings if x.out_features == vocabulary] or embeddings
    return list(rows[:1])


def _experts(modules: Sequence[Module], stored: Stored, ranks: int) -> Experts:
    if not modules:
        return Experts()
    text = stored.text
    count = next((text[name] for name in _EXPERTS if text.get(name)), None)
    active = next((text[name] for name in _ACTIVE if text.get(name)), None)
    if not (isinstance(count, int) and isinstance(active, int)):
        raise ConfigError(
            f"Model {stored.name!r} has experts, but config.json does not say how many "
            f"a token uses. Expected one of {', '.join(_ACTIVE)}, and one of "
            f"{', '.join(_EXPERTS)}."
        )
    nbytes = sum(module.nbytes for module in modules)
    elements = sum(module.elements for module in modules)
    return Experts(nbytes / ranks, elements / ranks, active / count)
