"""The instruction sets the kernels are compiled for, and which this CPU can run.

One object per level. A level is a fixed list of compiler flags, never
``-march=native``: an object is good for every machine that has the level, so it can be
shipped in a wheel and kept in a home folder shared by different machines.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from nmsparse.suggest import unknown

ISA_ENV = "NMSPARSE_ISA"

_CPUINFO = Path("/proc/cpuinfo")
_X86_64 = frozenset({"x86_64", "amd64"})


@dataclass(frozen=True, slots=True)
class Isa:
    """One level.

    Attributes:
        name: part of the object's file name, and a value of ``NMSPARSE_ISA``.
        flags: what the compiler may use.
        needs: the same in the words of ``/proc/cpuinfo``.
    """

    name: str
    flags: tuple[str, ...]
    needs: frozenset[str]


def _level(name: str, *groups: tuple[str, str]) -> Isa:
    flags = [f"-m{flag}" for flags, _ in groups for flag in flags.split()]
    needs = [need for _, needs in groups for need in needs.split()]
    return Isa(name, tuple(flags), frozenset(needs))


# Compiler flags without -m, and the names Linux gives them where it has others
# (bmi is bmi1, lzcnt is abm).
_AVX2 = ("avx2 fma f16c bmi bmi2 popcnt lzcnt", "avx2 fma f16c bmi1 bmi2 popcnt abm")
_AVX512 = ("avx512f avx512bw avx512vl avx512dq avx512cd",) * 2
_BF16 = ("avx512vbmi avx512vbmi2 avx512bf16", "avx512vbmi avx512_vbmi2 avx512_bf16")

# Best first. `portable` is the compiler's baseline: SSE2 on x86-64, NEON on aarch64.
LEVELS: tuple[Isa, ...] = (
    _level("avx512bf16", _AVX512, _BF16, _AVX2),
    _level("avx512", _AVX512, _AVX2),
    _level("avx2", _AVX2),
    _level("portable"),
)


def for_machine(machine: str | None = None) -> tuple[Isa, ...]:
    """Return the levels that can be compiled for a kind of machine, best first."""
    kind = (machine or platform.machine()).lower()
    return LEVELS if kind in _X86_64 else LEVELS[-1:]


@lru_cache(maxsize=1)
def cpu_flags() -> frozenset[str]:
    """Return what Linux says the first processor can do; nothing where it is silent.

    Linux leaves out what it has not enabled, so a flag here can be used.
    """
    try:
        lines = _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == "flags":
            return frozenset(value.split())
    return frozenset()


def missing(isa: Isa) -> list[str]:
    """Return the CPU flags a level needs and this machine lacks, sorted."""
    return sorted(isa.needs - cpu_flags())


def supported() -> tuple[Isa, ...]:
    """Return the levels this CPU can run, best first; or the one in ``NMSPARSE_ISA``.

    Raises:
        ValueError: if ``NMSPARSE_ISA`` names no level.
        RuntimeError: if it names one that this CPU cannot run.
    """
    levels = for_machine()
    forced = os.environ.get(ISA_ENV)
    if not forced:
        return tuple(isa for isa in levels if not missing(isa))
    names = {isa.name: isa for isa in LEVELS}
    if forced not in names:
        raise ValueError(
            f"{ISA_ENV}={forced!r}: " + unknown("ISA level", forced, names)
        )
    isa = names[forced]
    lacks = missing(isa) if isa in levels else [f"an x86-64 CPU ({platform.machine()})"]
    if lacks:
        runs = ", ".join(isa.name for isa in levels if not missing(isa))
        raise RuntimeError(
            f"{ISA_ENV}={forced}: this CPU cannot run it, it lacks {', '.join(lacks)}. "
            f"Expected one of: {runs}. Unset {ISA_ENV} to take the best."
        )
    return (isa,)
