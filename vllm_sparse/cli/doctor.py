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
from nmsparse.json_text import parse_json
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
    parser.add_argument(
        "--model",
        metavar="FOLDER",
        help="also: memory of the linear layers of this model (a folder, or a Hugging "
        "Face id in the local cache) with activation sparsity on a CPU",
    )
    args = parser.parse_args(arguments)
    checks = [*_versions(), *_hardware(), *_plugin()]
    checks += [*_native(), *_gpu(), *_backends(), *_tables()]
    if args.model is not None:
        checks += _memory(args.model)
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


def _native() -> list[Check]:
    """Say which CPU kernels are loaded; this compiles them if need be."""
    from nmsparse.native import library

    try:
        found = library.status()
    except (ValueError, RuntimeError) as error:  # a setting that cannot be obeyed
        return [Check("cpu kernels", str(error), False)]
    if not found.available:
        return [Check("cpu kernels", f"none: {found.reason}")]
    origin = "from the wheel" if found.origin == "wheel" else "compiled here"
    return [
        Check("cpu kernels", f"{found.isa}, {origin}: {found.path}", True),
        Check("openmp", f"{found.openmp}"),
    ]


def _gpu() -> list[Check]:
    """Say whether layers of a GPU engine would run kernels of ours, and why not."""
    subject = "gpu kernels"
    try:
        from vllm_sparse.gpu.support import engine_problem, installed_triton
    except Exception as error:  # whatever torch's import raises
        return [Check(subject, f"not looked for: {error}")]
    problem, triton = engine_problem(), installed_triton()
    if problem is not None:
        have = "" if triton is None else f" (triton {triton} is importable)"
        return [Check(subject, f"none: {problem}{have}")]
    return [
        Check(
            subject,
            f"triton {triton}: unquantized layers gather rows where that was measured "
            "to win; others select exactly and read every weight",
            True,
        )
    ]


def _backends() -> list[Check]:
    import torch

    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    pattern = NMPattern(8, 16)
    checks: list[Check] = []
    for op in BACKENDS:
        for device in devices:
            subject = f"{op} on {device}"
            try:
                chosen: Any = explain(op, device=device, pattern=pattern)
            except (ValueError, RuntimeError) as error:
                checks.append(Check(subject, str(error), False))
                continue
            checks.append(Check(subject, f"{chosen.backend}: {chosen.reason}", True))
            checks.extend(
                Check(subject, f"{name} not used: {why}")
                for name, why in chosen.rejected
            )
    return checks


def _tables() -> list[Check]:
    """List what was measured about kernels on this machine."""
    subject = "dispatch cache"
    try:
        from vllm_sparse.table import cache_folder
    except Exception as error:  # whatever vLLM's import raises
        return [Check(subject, f"not looked for: {error}")]
    files = sorted(cache_folder().glob("dispatch-*.json"))
    if not files:
        where = cache_folder()
        return [Check(subject, f"none in {where}: the first start measures")]
    return [Check(subject, f"{file}: {_table(file)}") for file in files]


def _table(file: Path) -> str:
    try:
        data = parse_json(file.read_text(encoding="utf-8"))
        about, shapes = data["context"], len(data["tables"])
        if "gpu" in about:
            where = f"{about['gpu']}, triton {about['triton']}"
        else:
            where = f"{about['isa']}, {about['threads']} threads"
        versions = f"torch {about['torch']}, vllm {about['vllm']}"
        return f"{shapes} layer shapes, {where}, {versions}"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"cannot be read ({error!r}); the next start writes it anew"


def _memory(model: str) -> list[Check]:
    from vllm_sparse.cli.memory import estimate

    try:
        return [Check(f"memory {name}", text) for name, text in estimate(model)]
    except ValueError as error:
        return [Check("memory", str(error), False)]
