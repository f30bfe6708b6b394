"""``vllm-sparse doctor``: what is installed, what works here, and why not the rest."""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from nmsparse.dispatch import BACKENDS, explain
from nmsparse.pattern import NMPattern
from vllm_sparse import __version__
from vllm_sparse.compat import check_vllm, installed_vllm, supported_range

_PACKAGES = ("torch", "transformers", "triton", "compressed-tensors", "pydantic")
_CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report; ``ok`` is None for plain information."""

    subject: str
    found: str
    ok: bool | None = None


def doctor(arguments: Sequence[str]) -> int:
    """Print the report; return 1 if something needed does not work."""
    parser = argparse.ArgumentParser(prog="vllm-sparse doctor", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args(arguments)
    checks = [*_versions(), *_hardware(), *_plugin(), *_backends()]
    if args.json:
        rows = [{"subject": c.subject, "found": c.found, "ok": c.ok} for c in checks]
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
    else:
        signs = {True: "ok", False: "FAIL", None: "--"}
        for check in checks:
            line = f"{signs[check.ok]:>4}  {check.subject:<22} {check.found}\n"
            sys.stdout.write(line)
    return 1 if any(check.ok is False for check in checks) else 0


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _versions() -> list[Check]:
    found = installed_vllm()
    try:
        check_vllm(found)
        verdict = Check("vllm", f"{found} (supported: {supported_range()})", True)
    except RuntimeError as error:
        verdict = Check("vllm", str(error), False)
    return [
        Check("vllm-sparse", __version__, True),
        verdict,
        Check("python", platform.python_version()),
        *(Check(name, _version(name)) for name in _PACKAGES),
    ]


def _hardware() -> list[Check]:
    import torch

    flags: set[str] = set()
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "flags":
                flags = set(value.split())
            elif key.strip() == "model name":
                name = value.strip()
    present = [flag for flag in _CPU_FLAGS if flag in flags]
    checks = [Check("cpu", f"{name}; {', '.join(present) or 'no known vector flags'}")]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            major, minor = torch.cuda.get_device_capability(index)
            title = torch.cuda.get_device_name(index)
            checks.append(Check(f"gpu {index}", f"{title}, sm_{major}{minor}"))
    else:
        checks.append(Check("gpu", "none visible to torch"))
    return checks


def _plugin() -> list[Check]:
    points = metadata.entry_points(group="vllm.general_plugins")
    ours = [point for point in points if point.name == "vllm_sparse"]
    if not ours:
        remedy = "reinstall vllm-sparse: pip install --force-reinstall --no-deps ."
        return [Check("plugin", f"entry point missing; {remedy}", False)]
    if installed_vllm() is None:
        return [Check("plugin", "registered, but vLLM is missing", False)]
    try:
        from vllm_sparse import register

        register()
    except Exception as error:
        # Whatever vLLM's import raises is the finding.
        return [Check("plugin", f"register() failed: {error}", False)]
    return [Check("plugin", "registers its layers and worker methods", True)]


def _backends() -> list[Check]:
    import torch

    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    pattern = NMPattern(8, 16)
    checks: list[Check] = []
    for op in BACKENDS:
        for device in devices:
            chosen: Any = explain(op, device=device, pattern=pattern)
            text = f"{chosen.backend}: {chosen.reason}"
            checks.append(Check(f"{op} on {device}", text, True))
            checks.extend(
                Check(f"{op} on {device}", f"{name} not used: {why}")
                for name, why in chosen.rejected
            )
    return checks
