"""Which backend runs an op, and why: nothing falls back silently.

Every op has a list of backends, best first, each with a check that accepts a call or
says why it cannot take it. ``reference`` (pure torch) takes everything and comes last.
``NMSPARSE_BACKEND=name`` forces one backend and makes its refusal an error.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from nmsparse.suggest import unknown

if TYPE_CHECKING:
    import torch

    from nmsparse.pattern import Pattern

BACKEND_ENV = "NMSPARSE_BACKEND"


@dataclass(frozen=True, slots=True)
class Call:
    """What a backend needs to know to accept or refuse: no tensors, so it is cached."""

    op: str
    device: str
    dtype: str
    tokens: int
    pattern: Pattern | None = None
    criterion: str | None = None

    @classmethod
    def of(
        cls,
        op: str,
        x: torch.Tensor,
        pattern: Pattern | None,
        criterion: str | None = None,
    ) -> Call:
        """Describe a call on ``x`` (``[..., K]``)."""
        tokens = x.numel() // max(1, x.shape[-1])
        dtype = str(x.dtype).removeprefix("torch.")
        return cls(op, x.device.type, dtype, tokens, pattern, criterion)


@dataclass(frozen=True, slots=True)
class Backend:
    """One implementation of one op.

    Attributes:
        name: ``reference``, ``triton`` or ``cpu``.
        target: lazy ``"module:function"``.
        refuse: returns None to accept a call, or the reason against it.
        note: what a user should know when it is chosen.
    """

    name: str
    target: str
    refuse: Callable[[Call], str | None]
    note: str


@dataclass(frozen=True, slots=True)
class Decision:
    """The chosen backend, the reason, and why each better one was refused."""

    op: str
    backend: str
    reason: str
    rejected: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        tried = "; ".join(f"{name}: {why}" for name, why in self.rejected)
        return f"{self.op}: {self.backend} ({self.reason})" + (tried and f" [{tried}]")


def _accept(call: Call) -> None:
    return None


def _refuse_cpu(call: Call) -> str | None:
    from nmsparse.ops.cpu import refuse  # loads the library only for a call

    return refuse(call)


def _refuse_triton(call: Call) -> str | None:
    from nmsparse.ops.gpu import refuse

    return refuse(call)


_CPU = "C++ kernel"
_TRITON = "Triton kernel"
_MASKED = "pure torch: exact, reads every weight, so not faster than dense"
_GATHER = "pure torch: one gather per token, exact, slower than dense"
_UNPACK = "pure torch: unpacks the weight at every call, slower than dense"

# Best first. A faster backend is one more row here and one file beside reference.py.
BACKENDS: dict[str, tuple[Backend, ...]] = {
    "sparsify": (
        Backend("cpu", "nmsparse.ops.sparsify.cpu:sparsify_cpu", _refuse_cpu, _CPU),
        Backend(
            "triton",
            "nmsparse.ops.sparsify.backend_triton:sparsify_triton",
            _refuse_triton,
            _TRITON,
        ),
        Backend(
            "reference",
            "nmsparse.ops.sparsify.reference:sparsify_reference",
            _accept,
            _MASKED,
        ),
    ),
    "compact": (
        Backend("cpu", "nmsparse.ops.sparsify.cpu:compact_cpu", _refuse_cpu, _CPU),
        Backend(
            "triton",
            "nmsparse.ops.sparsify.backend_triton:compact_triton",
            _refuse_triton,
            _TRITON,
        ),
        Backend(
            "reference",
            "nmsparse.ops.sparsify.reference:compact_reference",
            _accept,
            _MASKED,
        ),
    ),
    "online": (
        Backend(
            "cpu", "nmsparse.ops.online.cpu:sparsify_online_cpu", _refuse_cpu, _CPU
        ),
        Backend(
            "triton",
            "nmsparse.ops.online.online_triton:sparsify_online_triton",
            _refuse_triton,
            _TRITON,
        ),
        Backend(
            "reference",
            "nmsparse.ops.online.reference:sparsify_online_reference",
            _accept,
            _MASKED,
        ),
    ),
    "linear": (
        Backend("cpu", "nmsparse.ops.linear.cpu:linear_cpu", _refuse_cpu, _CPU),
        Backend(
            "triton",
            "nmsparse.ops.linear.gather_triton:linear_triton",
            _refuse_triton,
            _TRITON,
        ),
        Backend(
            "reference",
            "nmsparse.ops.linear.reference:linear_reference",
            _accept,
            _GATHER,
        ),
    ),
    "packed": (
        Backend("cpu", "nmsparse.ops.packed.cpu:packed_linear_cpu", _refuse_cpu, _CPU),
        Backend(
            "triton",
            "nmsparse.ops.packed.packed_triton:packed_linear_triton",
            _refuse_triton,
            _TRITON,
        ),
        Backend(
            "reference",
            "nmsparse.ops.packed.reference:packed_linear_reference",
            _accept,
            _UNPACK,
        ),
    ),
}


@lru_cache(maxsize=1024)
def _decide(call: Call, forced: str | None) -> tuple[Decision, Backend]:
    if call.op not in BACKENDS:
        raise ValueError(unknown("op", call.op, BACKENDS))
    table = BACKENDS[call.op]
    if forced is not None and forced not in {backend.name for backend in table}:
        raise ValueError(
            f"{BACKEND_ENV}={forced!r}: "
            + unknown(f"backend of {call.op}", forced, (b.name for b in table))
        )
    rejected: list[tuple[str, str]] = []
    for backend in table:
        if forced is not None and backend.name != forced:
            continue
        why_not = backend.refuse(call)
        if why_not is None:
            reason = f"forced by {BACKEND_ENV}; " if forced else ""
            chosen = Decision(
                call.op, backend.name, reason + backend.note, tuple(rejected)
            )
            return chosen, backend
        rejected.append((backend.name, why_not))
    refusals = "; ".join(f"{name}: {why}" for name, why in rejected)
    raise RuntimeError(
        f"{call.op}: no backend for {call} ({refusals}). "
        f"Unset {BACKEND_ENV} to let the reference run."
    )


def explain(
    op: str,
    *,
    device: str = "cpu",
    dtype: str = "bfloat16",
    tokens: int = 1,
    pattern: Pattern | None = None,
    criterion: str | None = None,
) -> Decision:
    """Say which backend would run a call, and why not the others.

    Raises:
        ValueError: if the op, or a backend forced by the environment, is unknown.
        RuntimeError: if the forced backend refuses the call.
    """
    call = Call(op, device, dtype, tokens, pattern, criterion)
    return _decide(call, os.environ.get(BACKEND_ENV) or None)[0]


def choose(call: Call) -> Callable[..., Any]:
    """Return the function that runs ``call``. Raises as :func:`explain`."""
    return _load(_decide(call, os.environ.get(BACKEND_ENV) or None)[1].target)


@lru_cache(maxsize=64)
def _load(target: str) -> Callable[..., Any]:
    module, _, name = target.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function
