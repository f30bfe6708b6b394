"""Bytes and least times of decoding steps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from vllm_sparse.plan.cache import Cache
from vllm_sparse.plan.forms import Held, held, step_form
from vllm_sparse.plan.layers import Layer
from vllm_sparse.plan.machines import Machine
from vllm_sparse.plan.results import Part, Step
from vllm_sparse.plan.traffic import DENSE, Form, union

_ORDER = ("qkv", "o", "gate_up", "down")


@dataclass(frozen=True, slots=True)
class Experts:
    """Experts of mixtures, on one rank.

    Attributes:
        nbytes: of all.
        elements: of all.
        active: share of them that a token goes through.
    """

    nbytes: float = 0
    elements: float = 0
    active: float = 1


@dataclass(frozen=True, slots=True)
class Rank:
    """What one rank holds and reads.

    Attributes:
        layers: linear layers.
        head: bytes of the head.
        head_elements: its elements.
        embeddings: bytes of embeddings that are no head too.
        row: bytes of one token's embeddings.
        other: bytes of norms, biases and the like, read in every step.
        unread: bytes that no decoding step reads: towers.
        experts: of mixtures.
        cache: of keys and values.
    """

    layers: tuple[Layer, ...]
    head: float
    head_elements: float
    embeddings: float
    row: float
    other: float
    unread: float
    experts: Experts
    cache: Cache

    @property
    def weights(self) -> float:
        """Bytes of everything that is loaded."""
        linear = sum(layer.dense_bytes for layer in self.layers)
        rest = self.head + self.embeddings + self.other + self.unread
        return linear + rest + self.experts.nbytes


@dataclass(frozen=True, slots=True)
class Setting:
    """How a step is run.

    Attributes:
        machine: what runs it.
        context: tokens of every sequence.
        shared_lists: whether 3 to 16 tokens may share one list.
        sparse_weights: as in ``serve``.
        decode: whether generated tokens are sparse at all.
        achieved: share of the bandwidth that vLLM's own kernels reach.
        ours: the share that kernels of the plugin reach.
        fixed: seconds that a launch costs, whatever it reads.
    """

    machine: Machine
    context: int
    shared_lists: bool = False
    sparse_weights: str = "auto"
    decode: bool = True
    achieved: float = 1.0
    ours: float = 1.0
    fixed: float = 0.0

    def holds(self, layer: Layer) -> Held:
        """Return our forms of a layer that decoding steps can read."""
        found = held(layer, self.machine.device, self.sparse_weights)
        return found if self.decode else replace(found, listed=False)


def step(rank: Rank, setting: Setting, tokens: int) -> Step:
    """Return what a step of ``tokens`` sequences reads, and the least time it takes."""
    linear = _linear_parts(rank.layers, setting, tokens)
    experts = rank.experts.nbytes * union(rank.experts.active, tokens)
    cache = tokens * rank.cache.sequence_bytes(setting.context)
    rest = [
        _dense("head", rank.head, rank.head),
        _dense("experts", rank.experts.nbytes, experts),
        _dense("embeddings", rank.embeddings, tokens * rank.row),
        _dense("other", rank.other, rank.other),
        _dense("kv cache", 0, cache),
    ]
    parts = [*linear, *(part for part in rest if part.dense_bytes)]
    dense = sum(part.dense_bytes for part in parts)
    sparse = sum(part.sparse_bytes for part in parts)
    times = _seconds(rank, setting, tokens, dense, sparse)
    bandwidth = setting.machine.bandwidth
    treated = [part for part in linear if part.sparsity]
    whole = sum(part.dense_bytes for part in treated)
    read = sum(part.sparse_bytes for part in treated)
    return Step(
        tokens=tokens,
        parts=tuple(replace(part, share=part.dense_bytes / dense) for part in parts),
        dense_bytes=dense,
        sparse_bytes=sparse,
        share_read=read / whole if whole else None,
        dense_seconds=times[0] if bandwidth else None,
        sparse_seconds=times[1] if bandwidth else None,
        ceiling=times[0] / times[1],
        dense_tokens_per_second=tokens / times[0] if bandwidth else None,
        sparse_tokens_per_second=tokens / times[1] if bandwidth else None,
        bound="arithmetic" if times[2] else "memory",
    )


def crossover(rank: Rank, setting: Setting) -> float | None:
    """Return from how many tokens on arithmetic limits dense linear layers.

    None if bandwidth or arithmetic of the machine is not known, or a layer's shape.
    """
    machine = setting.machine
    elements = sum(x.elements for x in rank.layers) + rank.head_elements
    known = elements and all(layer.elements for layer in rank.layers)
    if not (machine.bandwidth and machine.flops and known):
        return None
    nbytes = sum(x.dense_bytes for x in rank.layers) + rank.head
    reading = nbytes / (machine.bandwidth * setting.achieved)
    return reading / (2 * elements / machine.flops)


def _linear_parts(layers: Iterable[Layer], setting: Setting, tokens: int) -> list[Part]:
    """Return one part for each kind and shape."""
    alike: dict[tuple[str, int, int], list[Layer]] = {}
    for layer in sorted(layers, key=_place):
        key = (layer.kind, layer.in_features, layer.out_features)
        alike.setdefault(key, []).append(layer)
    parts = []
    for (kind, inputs, outputs), found in alike.items():
        dense = sum(layer.dense_bytes for layer in found)
        read = 0.0
        for layer in found:
            form = _form(layer, setting, tokens)
            read += form.read(layer, tokens)
        label = _label(found, setting)
        parts.append(
            Part(kind, len(found), inputs, outputs, label, dense, dense, read, 0)
        )
    return parts


def _place(layer: Layer) -> int:
    """Return where a kind is shown: in the order in which a block uses them."""
    return _ORDER.index(layer.kind) if layer.kind in _ORDER else len(_ORDER)


def _form(layer: Layer, setting: Setting, tokens: int) -> Form:
    kept = setting.holds(layer)
    return step_form(layer, kept, tokens, shared_lists=setting.shared_lists)


def _label(layers: Sequence[Layer], setting: Setting) -> str:
    """Return what is sparse about layers of one kind."""
    words = []
    listed = [x for x in layers if setting.holds(x).listed]
    patterns = list(dict.fromkeys(str(x.pattern) for x in listed))
    if len(patterns) == 1:
        words.append(patterns[0])
    elif patterns:
        kept = sum(x.pattern.density for x in listed if x.pattern) / len(listed)
        words.append(f"{len(patterns)} patterns, {kept:.0%} kept")
    packed = [x for x in layers if setting.holds(x).packed]
    if packed:
        zeros = sum(x.zeros for x in packed) / len(packed)
        words.append(f"packed, {zeros:.0%} zeros")
    some = {len(x) for x in (listed, packed) if x} - {len(layers)}
    if some:
        words.append(f"in {max(some)}")
    return "; ".join(words)


def _dense(kind: str, weight: float, read: float) -> Part:
    return Part(kind, 0, 0, 0, "", weight, read, read, 0)


def _seconds(
    rank: Rank, setting: Setting, tokens: int, dense: float, sparse: float
) -> tuple[float, float, bool]:
    """Return least times, dense and sparse, and whether arithmetic decides the first.

    Without a bandwidth the unit is a byte. The arithmetic of both is counted as dense.
    """
    machine = setting.machine
    bandwidth = (machine.bandwidth or 1) * setting.achieved
    forms = [(layer, _form(layer, setting, tokens)) for layer in rank.layers]
    ours = sum(form.read(x, tokens) for x, form in forms if form is not DENSE)
    launches = sum(form.launches for _, form in forms)
    times = (
        dense / bandwidth + (len(forms) + 1) * DENSE.launches * setting.fixed,
        (sparse - ours) / bandwidth
        + ours / ((machine.bandwidth or 1) * setting.ours)
        + (launches + 1) * setting.fixed,
    )
    if not (machine.flops and machine.bandwidth):
        return *times, False
    used = sum(x.elements for x in rank.layers) + rank.head_elements
    used += rank.experts.elements * rank.experts.active
    arithmetic = 2 * used * tokens / machine.flops
    return max(times[0], arithmetic), max(times[1], arithmetic), arithmetic > times[0]
