"""The C++ compiler: which one, what it accepts, and one object of the kernels."""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nmsparse.native.isa import Isa

COMPILER_ENV = "CXX"
TIMEOUT_S = 600

_NAMES = ("g++", "c++", "clang++")
_COMMON = [
    "-std=c++17",
    "-fPIC",
    "-fopenmp",
    "-fno-math-errno",
    "-ffp-contract=fast",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
]
_FAST = ["-O3"]
# A finding ends the program: a test that goes on after one would pass.
_SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
_DEBUG = ["-O1", "-g", "-fno-omit-frame-pointer"]
# No -fopenmp here: the object must not name an OpenMP library. The GOMP_* symbols stay
# open and bind, on loading, to the runtime torch uses; a second one would be a second
# thread pool, which vLLM's binding of threads to cores does not reach.
_LINK = ["-shared", "-Wl,--as-needed"]
_MAX_LINES = 40

logger = logging.getLogger(__name__)


class BuildError(RuntimeError):
    """The kernels could not be compiled; the message says why and what to do."""


def flags(isa: Isa, *, sanitize: bool = False) -> list[str]:
    """Return every flag that decides what an object contains, in order."""
    return [*(_DEBUG + _SANITIZE if sanitize else _FAST), *_COMMON, *isa.flags]


@dataclass(frozen=True, slots=True)
class Compiler:
    """A compiler that runs.

    Attributes:
        command: the program and the arguments that ``CXX`` gives it.
        version: the first line it says about itself.
    """

    command: tuple[str, ...]
    version: str

    def accepts(self, isa: Isa) -> bool:
        """Say whether it knows the flags of a level, by compiling nothing at all."""
        probe = [*flags(isa), "-fsyntax-only", "-x", "c++", os.devnull]
        return _run([*self.command, *probe]).returncode == 0

    def library(self, name: str) -> Path:
        """Return where the compiler keeps a shared library of its own.

        Raises:
            BuildError: if it has none of that name.
        """
        found = _run([*self.command, f"-print-file-name={name}"]).stdout.strip()
        if not Path(found).is_absolute():
            raise BuildError(
                f"CPU kernels: {self.version} has no {name}. Expected g++ with its "
                f"sanitizers: install them, or set {COMPILER_ENV}."
            )
        return Path(found).resolve()

    def build(
        self, unit: Path, output: Path, *, isa: Isa, sanitize: bool = False
    ) -> None:
        """Compile ``unit`` to the shared object ``output``.

        Raises:
            BuildError: if the compiler or the linker fails, with what it said.
        """
        made = output.with_suffix(".o")
        compile_ = ["-c", str(unit), "-o", str(made)]
        self._step(isa, [*flags(isa, sanitize=sanitize), *compile_])
        link = [*(_SANITIZE if sanitize else ()), *_LINK, str(made)]
        self._step(isa, [*link, "-o", str(output)])

    def _step(self, isa: Isa, arguments: Sequence[str]) -> None:
        command = [*self.command, *arguments]
        done = _run(command)
        said = "\n".join((done.stderr + done.stdout).strip().splitlines()[:_MAX_LINES])
        if done.returncode:
            raise BuildError(
                f"CPU kernels ({isa.name}): {self.version} failed with status "
                f"{done.returncode}. Expected a compiler for C++17 with OpenMP: set "
                f"{COMPILER_ENV} to another. It was run as\n{shlex.join(command)}\n"
                f"and said\n{said}"
            )
        if said:
            logger.info("CPU kernels (%s): the compiler said\n%s", isa.name, said)


def find_compiler() -> Compiler:
    """Return the compiler in ``CXX``, or the first of g++, c++ and clang++.

    Raises:
        BuildError: if there is none, or the one in ``CXX`` does not run.
    """
    asked = shlex.split(os.environ.get(COMPILER_ENV, ""))
    candidates = [asked] if asked else [[name] for name in _NAMES]
    for command in candidates:
        if shutil.which(command[0]) is None:
            continue
        done = _run([*command, "--version"])
        if done.returncode == 0:
            return Compiler(tuple(command), (done.stdout.splitlines() or [""])[0])
    found = f"{COMPILER_ENV}={shlex.join(asked)!r} does not run" if asked else "none"
    raise BuildError(
        f"CPU kernels: C++ compiler: {found}. Expected one of {', '.join(_NAMES)} on "
        f"PATH: install g++, or set {COMPILER_ENV}."
    )


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run the compiler: in plain English, and without what is preloaded here."""
    environment = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}
    try:
        return subprocess.run(
            command,
            env=environment | {"LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(command, 1, "", str(error))
