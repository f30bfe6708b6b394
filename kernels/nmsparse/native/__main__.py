"""``python -m nmsparse.native``: compile the CPU kernels now, and show what there is.

With ``--sanitize -- PROGRAM ...`` the program runs with kernels that carry
AddressSanitizer and UndefinedBehaviorSanitizer.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from nmsparse.native import build
from nmsparse.native.compiler import BuildError, Compiler, find_compiler
from nmsparse.native.isa import Isa, for_machine, missing, supported
from nmsparse.native.library import SANITIZE_ENV, status


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile and report; return 1 if the kernels cannot be used."""
    parser = argparse.ArgumentParser(
        prog="python -m nmsparse.native", description=__doc__
    )
    parser.add_argument(
        "--all", action="store_true", help="compile every level, not only the best"
    )
    parser.add_argument(
        "--sanitize", action="store_true", help="with ASan and UBSan (needs g++)"
    )
    parser.add_argument(
        "program", nargs="*", help="with --sanitize: what to run with these kernels"
    )
    args = parser.parse_args(arguments)
    if args.program and not args.sanitize:
        parser.error(f"unexpected {args.program[0]!r}: a program needs --sanitize")
    try:
        if args.program:
            _run_sanitized(args.program)
        if args.all or args.sanitize:
            return _compile(every=args.all, sanitize=args.sanitize)
        return _report()
    except (ValueError, RuntimeError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1


def _row(subject: str, text: object) -> None:
    sys.stdout.write(f"{subject:<12} {text}\n")


def _report() -> int:
    found = status()
    if not found.available:
        _row("unavailable", found.reason)
        return 1
    _row("isa", found.isa)
    _row("origin", found.origin)
    _row("object", found.path)
    _row("openmp", found.openmp)
    return 0


def _compile(*, every: bool, sanitize: bool) -> int:
    compiler = find_compiler()
    _row("compiler", compiler.version)
    failed = False
    for isa in for_machine() if every else supported()[:1]:
        lacks = ", ".join(missing(isa))
        runs = f"this CPU lacks {lacks}" if lacks else "runs here"
        made, text = _object(isa, compiler, sanitize)
        failed = failed or not made
        _row(isa.name, f"{text} ({runs})")
    return int(failed)


def _object(isa: Isa, compiler: Compiler, sanitize: bool) -> tuple[bool, str]:
    if not compiler.accepts(isa):
        return True, "the compiler does not know this level"
    try:
        return True, str(build.cached(isa, compiler=compiler, sanitize=sanitize))
    except BuildError as error:
        return False, str(error)


def _run_sanitized(program: Sequence[str]) -> None:
    """Become ``program``, with the sanitizers preloaded and their kernels compiled.

    Raises:
        BuildError: if the compiler lacks the sanitizers, or fails.
        RuntimeError: if the program cannot be run.
    """
    compiler = find_compiler()
    # libstdc++ too: ASan looks for its exceptions when the process starts, and Python
    # alone does not load it.
    runtime = [str(compiler.library(name)) for name in ("libasan.so", "libstdc++.so")]
    # Here and not in the program: a compiler is slow under the sanitizers.
    build.cached(supported()[0], compiler=compiler, sanitize=True)
    environment = os.environ | {
        SANITIZE_ENV: "1",
        "LD_PRELOAD": " ".join([*runtime, os.environ.get("LD_PRELOAD", "")]).strip(),
        # Python's own allocator hands out pieces that ASan cannot tell apart.
        "PYTHONMALLOC": "malloc",
        # Python and torch keep memory until the process ends.
        "ASAN_OPTIONS": os.environ.get("ASAN_OPTIONS") or "detect_leaks=0",
        "UBSAN_OPTIONS": os.environ.get("UBSAN_OPTIONS") or "print_stacktrace=1",
    }
    try:
        os.execvpe(program[0], list(program), environment)
    except OSError as error:
        raise RuntimeError(
            f"Program {program[0]} cannot be run ({error}). Expected a command."
        ) from error


if __name__ == "__main__":
    sys.exit(main())
