"""Put compiled CPU kernels into the wheel; everything else is in pyproject.toml.

A wheel holds one object for each level (``nmsparse/native/isa.py``) that the compiler
here can make, and is tagged ``py3-none-<platform>``: the objects have a plain C
interface and are bound to no version of Python. Without a compiler, or with
``NMSPARSE_SKIP_NATIVE=1``, it holds none and is tagged ``py3-none-any``; such a wheel
compiles on the user's machine, and so does an editable install.
"""

from __future__ import annotations

import logging
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py
from setuptools.dist import Distribution

sys.path.insert(0, str(Path(__file__).resolve().parent / "kernels"))

from nmsparse.native.build import CSRC, UNIT, compile_object, object_name
from nmsparse.native.compiler import BuildError, Compiler, find_compiler
from nmsparse.native.isa import Isa, for_machine

SKIP_ENV = "NMSPARSE_SKIP_NATIVE"

logger = logging.getLogger("vllm-sparse")


@lru_cache(maxsize=1)
def plan() -> tuple[Compiler | None, tuple[Isa, ...]]:
    """Return the compiler and the levels that go into the wheel."""
    try:
        if os.environ.get(SKIP_ENV) == "1":
            raise BuildError(f"skipped, because {SKIP_ENV}=1.")
        if not sys.platform.startswith("linux") or not (CSRC / UNIT).is_file():
            raise BuildError("none for this system: Linux and the sources are needed.")
        compiler = find_compiler()
    except BuildError as error:
        logger.warning("WHEEL WITHOUT COMPILED CPU KERNELS: %s", error)
        return None, ()
    levels = []
    for isa in for_machine():
        if compiler.accepts(isa):
            levels.append(isa)
        else:
            logger.warning("NOT IN THE WHEEL: %s; %s", isa.name, compiler.version)
    return compiler, tuple(levels)


class NativeDistribution(Distribution):
    """Decide whether the wheel is bound to a platform."""

    def has_ext_modules(self) -> bool:
        """Say whether objects go in; an editable install compiles when it runs."""
        editable = {"editable_wheel", "develop"} & set(self.commands)
        return not editable and bool(plan()[1])


class BuildWithKernels(build_py):
    """Build the packages, and the objects beside them."""

    def run(self) -> None:
        """Compile every planned level into the build folder, never into the sources.

        Raises:
            RuntimeError: if the sources do not compile.
        """
        super().run()
        compiler, levels = plan()
        if self.editable_mode or compiler is None:
            return
        folder = Path(self.build_lib) / "nmsparse" / "native" / "lib"

        def compile_level(isa: Isa) -> None:
            logger.warning("compiling CPU kernels (%s)", isa.name)
            compile_object(folder / object_name(isa), isa=isa, compiler=compiler)

        try:
            with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
                list(pool.map(compile_level, levels))
        except BuildError as error:
            raise RuntimeError(
                f"{error}\nTo build a wheel without compiled kernels: {SKIP_ENV}=1"
            ) from error


class AnyPythonWheel(bdist_wheel):
    """Tag a wheel with objects by platform alone."""

    def get_tag(self) -> tuple[str, str, str]:
        """Return ``py3-none-<platform>``, or ``py3-none-any`` without objects."""
        python, abi, platform = super().get_tag()
        return (
            (python, abi, platform) if self.root_is_pure else ("py3", "none", platform)
        )


setup(
    distclass=NativeDistribution,
    cmdclass={"bdist_wheel": AnyPythonWheel, "build_py": BuildWithKernels},
)
