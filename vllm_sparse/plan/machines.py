"""Machines: memory, bandwidth and arithmetic, as their makers state them."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Final

from nmsparse.config import ConfigError
from nmsparse.suggest import unknown

_GB = 10**9
_TERA = 10**12
_AMD = re.compile(r"(amd|instinct|radeon|mi\d{2,3}|rx\d{4})", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Machine:
    """One device that holds a model, or a shard of it.

    Attributes:
        name: what it is called.
        device: ``gpu`` or ``cpu``: which of the plugin's layouts it has.
        memory: bytes; None if not known.
        bandwidth: bytes of memory read a second; None if not known.
        flops: dense 16-bit operations a second; None if not known.
        source: where the numbers are from.
    """

    name: str
    device: str
    memory: float | None
    bandwidth: float | None
    flops: float | None
    source: str


def _nvidia(
    name: str, gigabytes: float, per_second: float, teraflops: float, source: str
) -> Machine:
    """Return a GPU from data-sheet units: GB, GB/s, bf16 TFLOPS without sparsity."""
    sheet = f"NVIDIA, {source}"
    return Machine(
        name, "gpu", gigabytes * _GB, per_second * _GB, teraflops * _TERA, sheet
    )


# TFLOPS are those of bfloat16 tensor cores with float32 sums and without structured
# sparsity: half of what data sheets print with an asterisk.
GPUS: Final = {
    gpu.name: gpu
    for gpu in (
        _nvidia("H200", 141, 4800, 989, "H200 data sheet, SXM"),
        _nvidia("H100-SXM", 80, 3350, 989, "H100 data sheet"),
        _nvidia("H100-PCIe", 80, 2000, 756, "H100 data sheet"),
        _nvidia("A100-80GB-SXM", 80, 2039, 312, "A100 data sheet"),
        _nvidia("A100-80GB-PCIe", 80, 1935, 312, "A100 data sheet"),
        _nvidia("A100-40GB", 40, 1555, 312, "A100 data sheet"),
        _nvidia("L40S", 48, 864, 362, "L40S data sheet"),
        _nvidia("L4", 24, 300, 121, "L4 data sheet"),
        _nvidia("A10", 24, 600, 125, "A10 data sheet"),
        _nvidia("RTX-4090", 24, 1008, 165.2, "Ada architecture whitepaper"),
        _nvidia("RTX-5090", 32, 1792, 209.5, "RTX Blackwell architecture whitepaper"),
    )
}
_ALIASES = {
    "H200SXM": "H200",
    "H100": "H100-SXM",
    "A100": "A100-80GB-SXM",
    "A10080GB": "A100-80GB-SXM",
}


def _plain(name: str) -> str:
    """Return a name without maker, separators and case."""
    short = re.sub(r"[^A-Z0-9]", "", name.upper())
    return re.sub(r"^(NVIDIA)?(GEFORCE)?", "", short)


def find_gpu(name: str) -> Machine:
    """Return a GPU of the table; separators and case do not matter.

    Raises:
        ConfigError: for a GPU of another maker, or one that is not in the table.
    """
    wanted = _plain(name)
    for known, gpu in GPUS.items():
        if wanted == _plain(known):
            return gpu
    if wanted in _ALIASES:
        return GPUS[_ALIASES[wanted]]
    if _AMD.match(wanted):
        raise ConfigError(
            f"GPU {name!r} is AMD's. Expected an NVIDIA GPU of compute capability 8.0 "
            "or newer: on others this plugin has no kernels, and every step is dense."
        )
    # Close matches ignore case, so that h20 finds H200.
    hint = unknown("GPU", name.upper(), GPUS).replace(repr(name.upper()), repr(name), 1)
    raise ConfigError(f"{hint} For any other: --bandwidth GB/s --memory GB.")


def given(
    machine: Machine | None,
    *,
    device: str,
    bandwidth: float | None,
    memory: float | None,
    teraflops: float | None,
) -> Machine:
    """Return a machine with numbers of the user in the place of known ones.

    Args:
        machine: what is known; None for nothing.
        device: ``gpu`` or ``cpu``, if nothing is known.
        bandwidth: GB/s.
        memory: GB.
        teraflops: dense 16-bit tera-operations a second.
    """
    start = machine or Machine(f"a {device.upper()}", device, None, None, None, "")
    said = {"bandwidth": bandwidth, "memory": memory, "arithmetic": teraflops}
    names = [name for name, value in said.items() if value is not None]
    if not names:
        return start
    source = "; ".join(filter(None, (start.source, f"{', '.join(names)} as given")))
    return replace(
        start,
        memory=start.memory if memory is None else memory * _GB,
        bandwidth=start.bandwidth if bandwidth is None else bandwidth * _GB,
        flops=start.flops if teraflops is None else teraflops * _TERA,
        source=source,
    )
