"""Objects of the kernels and their records: compiled once, kept in the user's cache.

Beside every object lies a record, a JSON file with the hash of the sources it was made
from and the hash of the object itself. An object without a matching record is never
loaded: it may be of other sources, or cut short, and loading that crashes the process.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import tempfile
from pathlib import Path
from typing import Any

from nmsparse.native.compiler import TIMEOUT_S, BuildError, Compiler, flags
from nmsparse.native.isa import Isa
from nmsparse.native.private import make_private, not_ours

CSRC = Path(__file__).resolve().parent.parent / "csrc"
PREBUILT = Path(__file__).resolve().parent / "lib"
UNIT = "nmsparse.cpp"
ABOUT_SECONDS = {"": 15, "-sanitize": 100}

logger = logging.getLogger(__name__)


def object_name(isa: Isa) -> str:
    """Return the file name of an object in the wheel."""
    return f"nmsparse_{isa.name}.so"


def cache_folder() -> Path:
    """Return where compiled objects are kept: the user's cache, XDG rules."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache).absolute() / "vllm-sparse" / "native"


def source_hash(source: Path | None = None) -> str:
    """Return the hash of the sources in a folder, by default ``csrc``.

    Raises:
        BuildError: if the folder lacks the translation unit.
    """
    source = source or CSRC
    if not (source / UNIT).is_file():
        raise BuildError(
            f"CPU kernels: {source} holds no {UNIT}. Expected the folder csrc of the "
            "package nmsparse: install vllm-sparse again."
        )
    digest = hashlib.sha256()
    for path in sorted(source.iterdir()):
        if path.suffix in {".cpp", ".h"}:
            text = path.read_bytes()
            digest.update(f"{path.name} {len(text)}\n".encode() + text)
    return digest.hexdigest()


def problem(path: Path, sources: str) -> str | None:
    """Return why an object must not be loaded, or None if it may be."""
    try:
        record = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        content = hashlib.sha256(path.read_bytes()).hexdigest()
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} does not exist"
    except (OSError, ValueError) as error:
        return f"{path.name} or its record cannot be read ({error})"
    if not isinstance(record, dict) or record.get("object") != content:
        return f"{path.name} is not the file its record describes"
    if record.get("sources") != sources:
        return f"{path.name} was compiled from other sources than those installed"
    return None


def compile_object(
    output: Path,
    *,
    isa: Isa,
    compiler: Compiler,
    source: Path | None = None,
    sanitize: bool = False,
) -> None:
    """Compile one level to ``output`` and write its record; both atomically.

    Raises:
        BuildError: if there are no sources, or the compiler fails.
        OSError: if the folder of ``output`` cannot be written.
    """
    sources = source_hash(source)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".build-") as folder:
        made = Path(folder) / output.name
        unit = (source or CSRC) / UNIT
        compiler.build(unit, made, isa=isa, sanitize=sanitize)
        if source_hash(source) != sources:
            raise BuildError(
                f"CPU kernels ({isa.name}): {unit.parent} changed while it was "
                "compiled. Expected sources that stay the same: try again."
            )
        record: dict[str, Any] = {
            "isa": isa.name,
            "sources": sources,
            "object": hashlib.sha256(made.read_bytes()).hexdigest(),
            "compiler": compiler.version,
            "flags": flags(isa, sanitize=sanitize),
        }
        described = made.with_suffix(".json")
        described.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        # Between the two renames the old record does not match, and nothing is loaded.
        made.replace(output)
        described.replace(output.with_suffix(".json"))


def cached(isa: Isa, *, compiler: Compiler, sanitize: bool = False) -> Path:
    """Return the object of a level from the user's cache, compiling it if need be.

    One process compiles; others that want the same object wait for it.

    Raises:
        BuildError: if it cannot be compiled, or the cache cannot be written.
    """
    try:
        return _cached(isa, compiler, sanitize)
    except (OSError, RuntimeError) as error:  # RuntimeError: no home folder
        if isinstance(error, BuildError):
            raise
        raise BuildError(
            f"CPU kernels ({isa.name}): the cache of compiled kernels cannot be used "
            f"({error}). Expected a folder that this user can write to, and nobody "
            "else: set XDG_CACHE_HOME to another one."
        ) from error


def _cached(isa: Isa, compiler: Compiler, sanitize: bool) -> Path:
    from filelock import FileLock

    sources = source_hash()
    variant = "-sanitize" if sanitize else ""
    key = _key(sources, *compiler.command, compiler.version, *flags(isa), variant)
    path = cache_folder() / f"nmsparse_{isa.name}{variant}-{key}.so"
    make_private(path.parent)
    if (not_ours(path) or problem(path, sources)) is None:
        return path
    with FileLock(path.with_suffix(".lock"), timeout=TIMEOUT_S):
        why = not_ours(path) or problem(path, sources)
        if why is None:  # another process made it while this one waited
            return path
        again = f" ({why}: again)" if path.exists() else ""
        # A warning, because a process that stands still must say so even where nobody
        # configured logging.
        logger.warning(
            "compiling CPU kernels (%s), about %d s, once%s",
            isa.name,
            ABOUT_SECONDS[variant],
            again,
        )
        compile_object(path, isa=isa, compiler=compiler, sanitize=sanitize)
    return path


def _key(*parts: str) -> str:
    """Hash what decides an object, and the machine and C library it is bound to."""
    libc = "".join(platform.libc_ver())
    text = json.dumps([*parts, platform.machine(), libc])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
