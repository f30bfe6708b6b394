"""The CPU kernels are compiled once, shipped, and never half-made.

A stand-in of a few lines takes the place of the kernels, so nothing here takes long.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from nmsparse.native import __main__ as command
from nmsparse.native import build, isa, library, openmp
from nmsparse.native.compiler import BuildError, Compiler, find_compiler
from nmsparse.native.library import NativeUnavailable, load, status

STAND_IN = """
#define NMS_API extern "C" __attribute__((visibility("default")))
NMS_API int nms_abi_version(void) { return 3; }
NMS_API const char* nms_isa(void) {
#if defined(__AVX512BF16__)
  return "avx512bf16";
#elif defined(__AVX512F__)
  return "avx512";
#elif defined(__AVX2__)
  return "avx2";
#else
  return "portable";
#endif
}
NMS_API int nms_team(int threads) {
  int members = 0;
#pragma omp parallel num_threads(threads)
#pragma omp atomic
  ++members;
  return members;
}
"""

needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None or sys.platform != "linux", reason="needs g++ on Linux"
)


@pytest.fixture
def native(tmp_path, monkeypatch):
    """Put the stand-in in place of the kernels, with no object in wheel or cache."""
    for name in (isa.ISA_ENV, library.NATIVE_ENV, library.SANITIZE_ENV, "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = tmp_path / "csrc"
    source.mkdir()
    (source / build.UNIT).write_text(STAND_IN)
    monkeypatch.setattr(build, "CSRC", source)
    monkeypatch.setattr(build, "PREBUILT", tmp_path / "lib")
    library._attempt.cache_clear()
    yield tmp_path
    library._attempt.cache_clear()


@pytest.fixture
def cxx(native, monkeypatch):
    """Return a function that makes CXX a script around g++ and counts compilations."""

    def wrap(when_compiling=""):
        script, log = native / "cxx", native / "cxx.log"
        script.write_text(
            '#!/bin/sh\ncase " $* " in *" -c "*)\n'
            f"echo compiled >> {log}\n{when_compiling}\nesac\n"
            'exec g++ "$@"\n'
        )
        script.chmod(0o755)
        monkeypatch.setenv("CXX", str(script))
        return lambda: log.read_text().count("compiled") if log.exists() else 0

    return wrap


def leftovers(native):
    folder = native / "cache" / "vllm-sparse" / "native"
    return sorted(p.name for p in folder.iterdir() if p.suffix != ".lock")


def python(program, *arguments):
    """Run a program in a fresh process; return what it wrote."""
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        env={k: v for k, v in os.environ.items() if k != "LD_PRELOAD"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_compiler
def test_compiled_once_then_cached(native, cxx, caplog):
    compilations = cxx()
    assert load() is load()
    found = status()
    assert (found.available, found.origin, found.reason) == (True, "compiled", None)
    assert found.path.is_file()
    assert f"compiling CPU kernels ({found.isa}), about 15 s, once" in caplog.text
    library._attempt.cache_clear()
    assert status() == found
    assert compilations() == 1
    assert leftovers(native) == sorted([found.path.name, found.path.stem + ".json"])


@needs_compiler
def test_changed_sources_and_flags_are_other_objects(native, cxx, monkeypatch):
    compilations = cxx()
    first = status()
    (build.CSRC / "more.h").write_text("// changed")
    library._attempt.cache_clear()
    second = status()
    monkeypatch.setenv(isa.ISA_ENV, "portable")
    library._attempt.cache_clear()
    third = status()
    assert third.isa == "portable"
    assert len({first.path, second.path, third.path}) == 3
    assert compilations() == 3


@needs_compiler
@pytest.mark.parametrize("damage", ["cut", "no record", "garbled record"])
def test_damaged_object_is_compiled_again(native, cxx, damage, caplog):
    compilations = cxx()
    path = build.cached(isa.LEVELS[-1], compiler=find_compiler())
    whole = path.read_bytes()
    if damage == "cut":  # loading this would end the process
        path.write_bytes(whole[:1000])
    elif damage == "no record":
        path.with_suffix(".json").unlink()
    else:
        path.with_suffix(".json").write_text("[")
    assert build.cached(isa.LEVELS[-1], compiler=find_compiler()) == path
    assert build.problem(path, build.source_hash()) is None
    assert path.stat().st_size == len(whole)
    assert compilations() == 2
    assert ": again)" in caplog.text


@needs_compiler
def test_one_of_two_processes_compiles(native, cxx):
    compilations = cxx("sleep 1")
    program = """if True:
        import pathlib, sys
        from nmsparse.native import build, compiler, isa
        build.CSRC = pathlib.Path(sys.argv[1])
        made = build.cached(isa.LEVELS[-1], compiler=compiler.find_compiler())
        sys.stdout.write(str(made))
    """
    with ThreadPoolExecutor() as pool:
        made = list(pool.map(python, [program] * 2, [build.CSRC] * 2))
    assert made[0] == made[1]
    assert compilations() == 1


@needs_compiler
def test_failing_compiler_is_told_once_and_leaves_nothing(native, cxx):
    compilations = cxx("echo 'error: out of luck'; exit 3")
    with pytest.raises(
        NativeUnavailable,
        match=r"(?s)failed with status 3.*Expected.*error: out of luck",
    ):
        load()
    with pytest.raises(NativeUnavailable, match="out of luck"):
        load()
    assert status().reason is not None
    assert not status().available
    assert compilations() == 1
    assert leftovers(native) == []


@needs_compiler
def test_broken_sources_are_told_with_the_compilers_words(native):
    (build.CSRC / build.UNIT).write_text('#include "absent.h"\n')
    assert "absent.h: No such file" in status().reason
    assert leftovers(native) == []


@needs_compiler
def test_level_the_compiler_does_not_know_is_passed_over(native, caplog, monkeypatch):
    accepts = Compiler.accepts
    best = isa.supported()[0]
    monkeypatch.setattr(
        Compiler, "accepts", lambda self, level: level != best and accepts(self, level)
    )
    found = status()
    if best.name == "portable":
        assert "takes the flags of none of: portable" in found.reason
    else:
        assert found.available
        assert f"cannot make {best.name}" in caplog.text


def test_no_compiler(native, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler -x")
    assert "CXX='no-such-compiler -x' does not run. Expected" in status().reason
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(native))
    with pytest.raises(
        BuildError, match=r"C\+\+ compiler: none\. Expected one of g\+\+"
    ):
        find_compiler()


def test_no_sources(native):
    (build.CSRC / build.UNIT).unlink()
    assert re.search(r"csrc holds no nmsparse\.cpp\. Expected", status().reason)


@needs_compiler
def test_cache_that_cannot_be_written(native):
    (native / "cache").write_text("a file where the folder should be")
    assert "cannot be used" in status().reason
    assert "set XDG_CACHE_HOME" in status().reason


def test_disabled(native, monkeypatch):
    monkeypatch.setenv(library.NATIVE_ENV, "0")
    with pytest.raises(NativeUnavailable, match="disabled by NMSPARSE_NATIVE=0"):
        load()
    assert not (native / "cache").exists()
    monkeypatch.setenv(library.NATIVE_ENV, "no")
    library._attempt.cache_clear()
    with pytest.raises(ValueError, match=r"NMSPARSE_NATIVE='no'.*Expected 0 or 1"):
        status()


def test_other_systems_are_refused(native, monkeypatch):
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    assert "this system is Darwin. Expected Linux" in status().reason


def test_sanitized_kernels_need_their_runtime(native, monkeypatch):
    monkeypatch.setenv(library.SANITIZE_ENV, "1")
    monkeypatch.setattr(openmp, "mapped", list)
    assert "libasan is not preloaded. Run the program with" in status().reason


@needs_compiler
@pytest.mark.parametrize(
    ("found", "instead"),
    [("return 3;", "return 4;"), ('return "', 'return "other'), ("int nms_a", "int a")],
)
def test_object_of_another_interface_is_refused(native, found, instead):
    (build.CSRC / build.UNIT).write_text(STAND_IN.replace(found, instead))
    assert not status().available
    assert ".so" in status().reason


@needs_compiler
def test_wheels_object_comes_first_if_it_fits_the_sources(native, cxx, caplog):
    compilations = cxx()
    best = isa.supported()[0]
    output = build.PREBUILT / build.object_name(best)
    build.compile_object(output, isa=best, compiler=find_compiler())
    assert (status().origin, status().path, compilations()) == ("wheel", output, 1)
    (build.CSRC / "more.h").write_text("// newer than the object")
    library._attempt.cache_clear()
    assert (status().origin, compilations()) == ("compiled", 2)
    assert "was compiled from other sources than those installed" in caplog.text


@needs_compiler
def test_objects_name_no_openmp_library(native):
    path = build.cached(isa.LEVELS[-1], compiler=find_compiler())
    content = path.read_bytes()
    assert b"GOMP_parallel\0" in content
    assert b"libgomp" not in content


@needs_compiler
def test_kernels_run_on_torchs_threads(native):
    program = """if True:
        import json, os, pathlib, sys, torch
        from nmsparse.native import build, library
        build.CSRC = pathlib.Path(sys.argv[1])
        build.PREBUILT = build.CSRC / "lib"
        kernels = library.load()
        torch.set_num_threads(3)
        torch.randn(1 << 20).exp_()
        before = len(os.listdir("/proc/self/task"))
        team = kernels.nms_team(3)
        after = len(os.listdir("/proc/self/task"))
        found = [before, team, after, library.status().openmp]
        sys.stdout.write(json.dumps(found))
    """
    before, team, after, runtime = json.loads(python(program, build.CSRC))
    assert team == 3
    assert after == before, "the kernels started a thread pool of their own"
    assert openmp._RUNTIME.search(runtime)


def test_openmp_of_the_process_becomes_global_or_is_refused():
    # A process whose torch keeps its runtime to itself, as some builds do.
    program = """if True:
        import ctypes, sys, types
        sys.modules["torch"] = types.SimpleNamespace(__file__="/nowhere/torch.py")
        from nmsparse.native import openmp
        openmp._SYSTEM = "libnosuch.so"
        try:
            openmp.ensure()
        except openmp.OpenMPMissing as error:
            assert "OpenMP runtime: no GOMP_parallel" in str(error)
        else:
            raise AssertionError
        ctypes.CDLL(sys.argv[1])
        assert openmp.resolve() is None
        sys.stdout.write(openmp.ensure())
    """
    runtime = openmp.ensure()
    assert os.path.realpath(python(program, runtime)) == os.path.realpath(runtime)


@needs_compiler
def test_command_reports(native, capsys, monkeypatch):
    assert command.main([]) == 0
    assert str(status().path) in capsys.readouterr().out
    assert command.main(["--all"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(isa.for_machine())
    monkeypatch.setenv(isa.ISA_ENV, "nothing")
    library._attempt.cache_clear()
    assert command.main([]) == 1
    assert "NMSPARSE_ISA='nothing'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command.main(["pytest"])


@needs_compiler
def test_command_runs_a_program_with_sanitized_kernels(native, monkeypatch):
    ran = {}
    monkeypatch.setattr(os, "execvpe", lambda *call: ran.update(call=call))
    assert command.main(["--sanitize", "--", "true", "-q"]) == 0
    program, arguments, environment = ran["call"]
    assert (program, arguments) == ("true", ["true", "-q"])
    assert environment[library.SANITIZE_ENV] == "1"
    assert "libasan" in environment["LD_PRELOAD"]
    assert environment["ASAN_OPTIONS"] == "detect_leaks=0"
    assert any("-sanitize-" in name for name in leftovers(native))
