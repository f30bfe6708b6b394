"""The CPU kernels at every ISA level, their refusals, and their C interface.

A level is compiled once for a machine and its user, about 20 s each.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest
import torch
from support.cpu_kernels import bits, guarded, kernels, random

from nmsparse import dispatch
from nmsparse.dispatch import BACKEND_ENV, explain
from nmsparse.native import abi, build, isa, library
from nmsparse.native.compiler import find_compiler
from nmsparse.ops.linear import linear
from nmsparse.ops.packed import packed_linear
from nmsparse.ops.sparsify import compact, sparsify
from nmsparse.packed import PackedWeight
from nmsparse.pattern import NMPattern

OPS = ("sparsify", "compact", "online", "linear", "packed")
COMPARISONS = [
    f"tests/nmsparse/test_cpu_{name}.py"
    for name in ("sparsify", "correction", "online", "linear", "planned", "packed")
]


@pytest.fixture(autouse=True)
def _kernels(monkeypatch):
    monkeypatch.delenv(BACKEND_ENV, raising=False)
    with kernels():
        yield


def python(*arguments, cwd, **environment):
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("level", [level.name for level in isa.LEVELS])
def test_every_level_passes_the_comparisons(level, repo_root):
    """About 10 s a level, and 20 s more where it has to be compiled."""
    if level == library.status().isa:
        pytest.skip("this process runs it: see the other files")
    if os.environ.get(library.SANITIZE_ENV) == "1":
        pytest.skip(f"each takes minutes to compile; choose one with {isa.ISA_ENV}")
    able = [each for each in isa.for_machine() if not isa.missing(each)]
    if not build.PREBUILT.is_dir():
        able = [each for each in able if find_compiler().accepts(each)]
    if level not in {each.name for each in able}:
        pytest.skip(f"this CPU cannot run {level}, or the compiler does not know it")
    options = ("-q", "-x", "-p", "no:cacheprovider", *COMPARISONS)
    said = python("-m", "pytest", *options, cwd=repo_root, **{isa.ISA_ENV: level})
    assert " passed" in said
    assert "skipped" not in said


def test_a_level_is_what_it_says():
    assert abi.kernels().nms_isa().decode() == library.status().isa


@pytest.mark.parametrize("op", OPS)
def test_the_kernel_takes_what_it_can(op):
    for dtype in ("bfloat16", "float16", "float32"):
        for tokens in (0, 1, 1000):
            decision = explain(op, dtype=dtype, tokens=tokens, criterion="magnitude")
            assert decision.backend == "cpu"
            assert decision.rejected == ()


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"device": "cuda"}, "the tensor is on cuda"),
        ({"device": "meta"}, "the tensor is on meta"),
        ({"dtype": "float64"}, "no kernel for float64"),
        ({"dtype": "int8"}, "no kernel for int8"),
        ({"criterion": "gradient"}, "criterion gradient is not in the kernel"),
    ],
    ids=lambda x: "" if isinstance(x, str) else str(x),
)
def test_refusals_are_told(op, given, why, monkeypatch):
    decision = explain(op, **given)
    assert decision.backend == "reference"
    assert ("cpu", why) in decision.rejected
    monkeypatch.setenv(BACKEND_ENV, "cpu")
    with pytest.raises(RuntimeError, match=rf"{op}: no backend .*cpu: {why}"):
        explain(op, **given)


def test_other_dtypes_and_devices_reach_the_reference():
    with pytest.raises(TypeError, match="float64"):
        sparsify(torch.ones(1, 4).double(), NMPattern(2, 4))
    dense = sparsify(torch.ones(1, 4).double(), NMPattern(4, 4))
    assert torch.equal(dense, torch.ones(1, 4).double())
    assert sparsify(torch.ones(1, 4, device="meta"), NMPattern(2, 4)).is_meta


@pytest.mark.parametrize("name", ["cpu", "reference"])
def test_a_forced_backend_runs(name, monkeypatch):
    ran = []
    load = dispatch._load
    monkeypatch.setattr(
        dispatch, "_load", lambda target: ran.append(target) or load(target)
    )
    monkeypatch.setenv(BACKEND_ENV, name)
    x, weight = random(3, 32), random(8, 32, seed=1)
    dense = sparsify(x, NMPattern(8, 16))
    found = linear(compact(x, NMPattern(8, 16)), weight.t())
    torch.testing.assert_close(found, dense @ weight.t())
    found = packed_linear(x, PackedWeight.pack(weight))
    torch.testing.assert_close(found, x @ weight.t())
    assert len(ran) == 4
    assert all(f"{name}:" in target for target in ran)
    assert all(explain(op).backend == name for op in OPS)


def test_without_the_kernels_the_reference_runs(repo_root):
    program = """if True:
        import sys, torch
        from nmsparse import NMPattern, compact, explain, linear, sparsify
        x = torch.randn(2, 16)
        y = linear(compact(x, NMPattern(2, 4)), torch.eye(16))
        assert torch.equal(y, sparsify(x, NMPattern(2, 4)))
        sys.stdout.write(str(explain("linear", dtype="float32")))
    """
    said = python("-c", program, cwd=repo_root, **{library.NATIVE_ENV: "0"})
    assert said.startswith("linear: reference")
    assert "[cpu: disabled by NMSPARSE_NATIVE=0; triton: " in said


def test_structures_have_the_size_the_library_says():
    found = abi.kernels()
    structures = (abi.SparsifyArgs, abi.GatherArgs, abi.DotArgs)
    for number, structure in enumerate(structures):
        assert found.nms_sizeof(number) == ctypes.sizeof(structure)
    assert found.nms_sizeof(len(structures)) == found.nms_sizeof(-1) == -1


def test_a_library_of_other_structures_is_refused(monkeypatch):
    monkeypatch.setattr(abi, "DotArgs", type("DotArgs", (ctypes.Structure,), {}))
    with pytest.raises(RuntimeError, match=r"DotArgs has \d+ bytes.*Expected 0"):
        abi.declare(ctypes.CDLL(str(library.status().path)))


def calls(out):
    """Return a good call of each function; each writes to ``out``."""
    keep = [random(64), random(64), torch.zeros(64, dtype=torch.int32)]
    x, weight, indices = (t.data_ptr() for t in keep)
    stride = {"tokens": 2, "threads": 1, "dtype": 0}
    product = {"weight": weight, "channels": 4, "outputs": 4, "weight_stride": 4}
    sparsify_args = {"x": x, "dense": out, "channels": 4, "x_stride": 4}
    gather_args = {"values": x, "indices": indices, "listed": 2, "values_stride": 2}
    return keep, {
        "nms_sparsify": abi.SparsifyArgs(**sparsify_args, kept=2, group=4, **stride),
        "nms_gather": abi.GatherArgs(
            **gather_args, **product, indices_stride=2, out=out, out_stride=4, **stride
        ),
        "nms_dot": abi.DotArgs(
            x=x, **product, x_stride=4, out=out, out_stride=4, **stride
        ),
    }


@pytest.mark.parametrize(
    ("function", "wrong"),
    [
        *(("nms_sparsify", {name: -1}) for name in ("tokens", "channels", "kept")),
        *(("nms_sparsify", {"group": bad}) for bad in (-4, 0, 3)),
        *(("nms_sparsify", {"kept": bad}) for bad in (0, 5)),
        ("nms_sparsify", {"channels": 0}),
        ("nms_sparsify", {"values": "out"}),
        ("nms_sparsify", {"indices": "out"}),
        *(("nms_gather", {n: -1}) for n in ("tokens", "outputs", "channels", "listed")),
        ("nms_gather", {"weight_stride": 3}),
        ("nms_gather", {"indices": None}),
        ("nms_gather", {"token_shift": "out"}),
        *(("nms_dot", {name: -1}) for name in ("tokens", "outputs", "channels")),
        ("nms_dot", {"bits": "out"}),
        *((f, {"dtype": d}) for f in calls(0)[1] for d in (-1, 3)),
    ],
    ids=str,
)
def test_a_refused_call_names_its_arguments_and_writes_nothing(function, wrong):
    out = guarded(64, torch.float32)
    before = bits(out).clone()
    _keep, good = calls(out.data_ptr())
    args = good[function]
    for name, value in wrong.items():
        setattr(args, name, out.data_ptr() if value == "out" else value)
    with pytest.raises(RuntimeError, match="kernel refused its arguments") as refused:
        abi.call(getattr(abi.kernels(), function), args)
    for name, *_ in type(args)._fields_:
        assert f"'{name}': {getattr(args, name)}" in str(refused.value)
    assert torch.equal(bits(out), before)


@pytest.mark.parametrize("function", ["nms_sparsify", "nms_gather", "nms_dot"])
def test_the_same_call_without_the_mistake_is_taken(function):
    out = guarded(8, torch.float32)
    _keep, good = calls(out.data_ptr())
    abi.call(getattr(abi.kernels(), function), good[function])
    assert out.isfinite().all()


def test_no_memory_is_a_memory_error():
    _keep, good = calls(0)
    with pytest.raises(MemoryError, match="scratch"):
        abi.call(lambda address: -2, good["nms_dot"])


@pytest.mark.parametrize("count", [1, 2])
def test_scan_reads_everything(count):
    data = torch.ones(1 << 14)
    found = abi.kernels().nms_scan(data.data_ptr(), data.numel(), count)
    assert found == data.numel()
