"""What a plan says, as data: ``--json`` prints exactly this. Bytes are of one rank."""

from __future__ import annotations

from dataclasses import dataclass

from vllm_sparse.plan.machines import Machine


@dataclass(frozen=True, slots=True)
class Part:
    """One kind of thing that a step reads.

    Attributes:
        kind: of linear layers, or ``head``, ``experts``, ``embeddings``, ``kv cache``,
            ``other``.
        layers: how many there are; 0 where that says nothing.
        in_features: K; 0 likewise.
        out_features: O; 0 likewise.
        sparsity: what is sparse, for people to read; empty if dense.
        weight_bytes: what it holds in memory as vLLM has it.
        dense_bytes: what a dense step reads of it.
        sparse_bytes: what a sparse step reads of it.
        share: of the bytes of a dense step.
    """

    kind: str
    layers: int
    in_features: int
    out_features: int
    sparsity: str
    weight_bytes: float
    dense_bytes: float
    sparse_bytes: float
    share: float


@dataclass(frozen=True, slots=True)
class Step:
    """One number of sequences that decode together, a token each.

    Attributes:
        tokens: T.
        parts: what is read.
        dense_bytes: all that a dense step reads.
        sparse_bytes: all that a sparse step reads.
        share_read: share of the bytes of sparse layers that is read; None without any.
        dense_seconds: least time of a dense step; None without a bandwidth.
        sparse_seconds: least time of a sparse one; None likewise.
        ceiling: how much faster a sparse step can be.
        dense_tokens_per_second: most of all sequences together; None likewise.
        sparse_tokens_per_second: the same, sparse.
        bound: ``memory``, or ``arithmetic`` where a dense step is limited by it.
    """

    tokens: int
    parts: tuple[Part, ...]
    dense_bytes: float
    sparse_bytes: float
    share_read: float | None
    dense_seconds: float | None
    sparse_seconds: float | None
    ceiling: float
    dense_tokens_per_second: float | None
    sparse_tokens_per_second: float | None
    bound: str


@dataclass(frozen=True, slots=True)
class Memory:
    """What one rank holds.

    Attributes:
        weights: bytes of all weights as vLLM has them.
        copies: bytes of copies of ours beside them.
        freed: bytes of vLLM's layout that is dropped.
        total: weights and copies, less what is freed.
        kv_token: bytes a token adds to the KV cache while no layer forgets it.
        kv_sequence: bytes of a sequence of ``context`` tokens.
        free: bytes left for the KV cache; None if the memory is not known.
        sequences: sequences of ``context`` tokens that fit; None likewise, and for a
            model without a KV cache.
        tokens: tokens that fit, in such sequences; None likewise.
    """

    weights: float
    copies: float
    freed: float
    total: float
    kv_token: int
    kv_sequence: int
    free: float | None
    sequences: int | None
    tokens: int | None


@dataclass(frozen=True, slots=True)
class Plan:
    """A plan.

    Attributes:
        model: as the user gave it.
        shapes: where its shapes come from.
        parameters: of the model; None if it is quantized.
        dtype: of the activations, and of weights that are not quantized.
        sparsity: what is sparse, and where that was said.
        machine: what it runs on.
        context: tokens of every sequence.
        tensor_parallel: ranks.
        steps: one for each batch.
        memory: of one rank.
        crossover: tokens of a step from which arithmetic limits dense linear layers;
            None if not known.
        assumptions: under which the numbers hold.
        verdict: where it pays, and where not.
    """

    model: str
    shapes: str
    parameters: int | None
    dtype: str
    sparsity: str
    machine: Machine
    context: int
    tensor_parallel: int
    steps: tuple[Step, ...]
    memory: Memory
    crossover: float | None
    assumptions: tuple[str, ...]
    verdict: tuple[str, ...]
