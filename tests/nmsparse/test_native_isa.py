"""Levels follow the processor, unless one is forced."""

from __future__ import annotations

import pytest

from nmsparse.native import compiler, isa

AVX2 = "fpu sse2 avx avx2 fma f16c bmi1 bmi2 popcnt abm"
AVX512 = AVX2 + " avx512f avx512bw avx512vl avx512dq avx512cd"
BF16 = AVX512 + " avx512vbmi avx512_vbmi2 avx512_bf16"


@pytest.fixture
def cpu(tmp_path, monkeypatch):
    """Return a function that sets what this processor can do."""

    def pretend(flags, machine="x86_64"):
        text = f"processor\t: 0\nflags\t\t: {flags}\n\nprocessor\t: 1\nflags\t\t: x\n"
        (tmp_path / "cpuinfo").write_text(text)
        monkeypatch.setattr(isa, "_CPUINFO", tmp_path / "cpuinfo")
        monkeypatch.setattr("platform.machine", lambda: machine)
        isa.cpu_flags.cache_clear()

    monkeypatch.delenv(isa.ISA_ENV, raising=False)
    yield pretend
    isa.cpu_flags.cache_clear()


def levels():
    return " ".join(level.name for level in isa.supported())


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (BF16, "avx512bf16 avx512 avx2 portable"),
        (BF16.replace("avx512_vbmi2", ""), "avx512 avx2 portable"),
        (AVX512, "avx512 avx2 portable"),
        (AVX2, "avx2 portable"),
        (AVX2.replace("abm", ""), "portable"),
    ],
)
def test_levels_follow_the_processor(cpu, flags, expected):
    cpu(flags)
    assert levels() == expected


def test_other_machines_run_the_portable_level(cpu, monkeypatch, tmp_path):
    cpu(BF16, machine="aarch64")
    assert levels() == "portable"
    cpu(BF16, machine="AMD64")
    monkeypatch.setattr(isa, "_CPUINFO", tmp_path / "no such file")
    assert levels() == "portable"


def test_levels_are_fixed_flags():
    for level in isa.LEVELS:
        assert not {"-march=native", "-mtune=native"} & set(compiler.flags(level))
    assert isa.LEVELS[-1].flags == ()
    bf16, avx512, avx2, _ = (set(level.flags) for level in isa.LEVELS)
    assert bf16 - avx512 == {"-mavx512vbmi", "-mavx512vbmi2", "-mavx512bf16"}
    assert avx2 < avx512


def test_forced_level(cpu, monkeypatch):
    cpu(BF16)
    monkeypatch.setenv(isa.ISA_ENV, "avx2")
    assert levels() == "avx2"
    monkeypatch.setenv(isa.ISA_ENV, "")
    assert len(isa.supported()) == 4
    monkeypatch.setenv(isa.ISA_ENV, "avx215")
    with pytest.raises(
        ValueError, match=r"NMSPARSE_ISA='avx215': .*Did you mean: avx2"
    ):
        isa.supported()


@pytest.mark.parametrize(
    ("machine", "lacks"), [("x86_64", "avx512_bf16"), ("aarch64", "an x86-64 CPU")]
)
def test_forced_level_the_processor_cannot_run(cpu, monkeypatch, machine, lacks):
    cpu(AVX512, machine=machine)
    monkeypatch.setenv(isa.ISA_ENV, "avx512bf16")
    with pytest.raises(RuntimeError, match=rf"lacks .*{lacks}.*Expected one of.*Unset"):
        isa.supported()
