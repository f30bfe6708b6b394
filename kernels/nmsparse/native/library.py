"""Load the CPU kernels: the wheel's object, else one compiled here, else the reason.

``load`` and ``status`` do the work once per process and remember the result, a failure
too: nothing is tried again for every call.
"""

from __future__ import annotations

import ctypes
import logging
import os
import platform
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from nmsparse.native import build, openmp
from nmsparse.native.compiler import BuildError, find_compiler
from nmsparse.native.isa import Isa, supported

ABI_VERSION = 3
NATIVE_ENV = "NMSPARSE_NATIVE"
SANITIZE_ENV = "NMSPARSE_NATIVE_SANITIZE"

Origin = Literal["wheel", "compiled"]

logger = logging.getLogger(__name__)


class NativeUnavailable(RuntimeError):
    """There are no CPU kernels in this process; the message says why."""


@dataclass(frozen=True, slots=True)
class NativeStatus:
    """What was loaded, or why nothing was.

    Attributes:
        available: whether :func:`load` returns a library.
        isa: the level it was compiled for.
        path: the shared object.
        origin: ``wheel``, or ``compiled`` on this machine.
        openmp: the file of the OpenMP runtime the kernels share with torch.
        reason: why there is no library; None if there is one.
    """

    available: bool
    isa: str | None = None
    path: Path | None = None
    origin: Origin | None = None
    openmp: str | None = None
    reason: str | None = None


def load() -> ctypes.CDLL:
    """Return the kernels, compiling them first if the wheel brought none.

    Raises:
        NativeUnavailable: if there is no usable object, with the reason.
        ValueError: if one of our environment variables has an unknown value.
        RuntimeError: if ``NMSPARSE_ISA`` names a level this CPU cannot run.
    """
    library, status = _attempt()
    if library is None:
        raise NativeUnavailable(status.reason)
    return library


def status() -> NativeStatus:
    """Load the kernels as :func:`load` does, and report instead of raising.

    Raises:
        ValueError: if one of our environment variables has an unknown value.
        RuntimeError: if ``NMSPARSE_ISA`` names a level this CPU cannot run.
    """
    return _attempt()[1]


@lru_cache(maxsize=1)
def _attempt() -> tuple[ctypes.CDLL | None, NativeStatus]:
    if not _switch(NATIVE_ENV, default=True):
        return None, NativeStatus(False, reason=f"disabled by {NATIVE_ENV}=0")
    if platform.system() != "Linux":
        reason = f"CPU kernels: this system is {platform.system()}. Expected Linux."
        return None, NativeStatus(False, reason=reason)
    levels = supported()
    sanitize = _switch(SANITIZE_ENV, default=False)
    try:
        path, isa, origin = _find(levels, sanitize=sanitize)
        runtime = openmp.ensure()
        library = _open(path, isa)
    except (BuildError, NativeUnavailable, openmp.OpenMPMissing) as error:
        return None, NativeStatus(False, reason=str(error))
    return library, NativeStatus(True, isa.name, path, origin, runtime)


def _switch(name: str, *, default: bool) -> bool:
    value = os.environ.get(name) or str(int(default))
    if value not in {"0", "1"}:
        raise ValueError(f"{name}={value!r}: unknown value. Expected 0 or 1.")
    return value == "1"


def _find(levels: tuple[Isa, ...], *, sanitize: bool) -> tuple[Path, Isa, Origin]:
    """Return the best object there is, compiling one if the wheel brought none."""
    if sanitize and not any("/libasan." in path for path in openmp.mapped()):
        # The dynamic loader would end the process otherwise.
        raise NativeUnavailable(
            f"{SANITIZE_ENV}=1: libasan is not preloaded. Run the program with: "
            "python -m nmsparse.native --sanitize -- PROGRAM"
        )
    if not sanitize and build.PREBUILT.is_dir():
        sources = build.source_hash()
        for isa in levels:
            path = build.PREBUILT / build.object_name(isa)
            why = build.problem(path, sources)
            if why is None:
                return path, isa, "wheel"
            logger.warning("CPU kernels of the wheel not used: %s", why)
    compiler = find_compiler()
    for isa in levels:
        if compiler.accepts(isa):
            path = build.cached(isa, compiler=compiler, sanitize=sanitize)
            return path, isa, "compiled"
        logger.warning("CPU kernels: %s cannot make %s", compiler.version, isa.name)
    raise BuildError(
        f"CPU kernels: {compiler.version} takes the flags of none of: "
        f"{', '.join(isa.name for isa in levels)}. Expected g++ or clang++: set CXX."
    )


def _open(path: Path, isa: Isa) -> ctypes.CDLL:
    """Load an object and check that it is what it should be.

    Raises:
        NativeUnavailable: if it does not load, or is of another interface or level.
    """
    try:
        library = ctypes.CDLL(str(path))
        version = int(library.nms_abi_version())
        library.nms_isa.restype = ctypes.c_char_p
        made_for = library.nms_isa().decode()
    except (OSError, AttributeError) as error:
        hint = (
            "It was made by clang and needs libiomp5 in the process: set CXX=g++."
            if "__kmpc_" in str(error)
            else "Remove it, or set XDG_CACHE_HOME to a folder that allows programs."
        )
        raise NativeUnavailable(
            f"CPU kernels: {path} does not load ({error}). {hint}"
        ) from error
    if version != ABI_VERSION or made_for != isa.name:
        raise NativeUnavailable(
            f"CPU kernels: {path} has interface {version} for {made_for}. Expected "
            f"interface {ABI_VERSION} for {isa.name}: sources and Python files are of "
            "different versions, or CXX carries -m flags. Install vllm-sparse again."
        )
    return library
