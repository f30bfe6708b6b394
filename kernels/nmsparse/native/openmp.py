"""The OpenMP runtime of the process: the kernels must share torch's.

The objects name no OpenMP library, so their ``GOMP_*`` symbols bind to whatever is in
the process's global scope when they are loaded: ``libiomp5`` if it is preloaded, as
vLLM recommends for Intel, else the ``libgomp`` that torch brings. Then there is one
thread pool, and the cores vLLM binds its threads to are the kernels' cores too.
"""

from __future__ import annotations

import ctypes
import re
from pathlib import Path
from typing import Any

SYMBOL = "GOMP_parallel"

_MAPS = Path("/proc/self/maps")
_RUNTIME = re.compile(r"/lib(?:gomp|iomp5|omp)[-.][^/]*$")
_SYSTEM = "libgomp.so.1"


class OpenMPMissing(RuntimeError):
    """No OpenMP runtime could be found."""


class _DlInfo(ctypes.Structure):
    _fields_ = (
        ("path", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("symbol", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
    )


def mapped() -> list[str]:
    """Return the files mapped into this process, each once, in the order of maps."""
    try:
        lines = _MAPS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    # Address, permissions, offset, device and inode come before the path.
    paths = (line.split(maxsplit=5)[5:] for line in lines)
    return list(dict.fromkeys(path[0] for path in paths if path))


def resolve(library: str | None = None) -> str | None:
    """Return the file that ``GOMP_parallel`` comes from, or None if nowhere.

    Args:
        library: search this library and those it needs; by default the global scope,
            which is where an object without an OpenMP library of its own looks.
    """
    try:
        function: Any = getattr(ctypes.CDLL(library), SYMBOL)
    except (OSError, AttributeError):
        return None
    info = _DlInfo()
    address = ctypes.cast(function, ctypes.c_void_p)
    if not ctypes.CDLL(None).dladdr(address, ctypes.byref(info)) or not info.path:
        return None
    return str(info.path, "utf-8", "replace")


def ensure() -> str:
    """Put the runtime that torch uses into the global scope; return its file.

    Raises:
        OpenMPMissing: if there is none, in the process or on the system.
    """
    import torch  # for its runtime: whatever it loads must be there before we look

    found = resolve()
    if found is not None:
        return found
    files = mapped()
    torch_cpu = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    linked = resolve(str(torch_cpu)) if str(torch_cpu) in files else None
    others = (path for path in files if _RUNTIME.search(path))
    for path in (*([linked] if linked else []), *others, _SYSTEM):
        try:
            ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
        except OSError:
            continue
        found = resolve()
        if found is not None:
            return found
    raise OpenMPMissing(
        f"CPU kernels: OpenMP runtime: no {SYMBOL} in this process, nor in {_SYSTEM} "
        "of the system. Expected torch's own: install libgomp1."
    )
