"""What the compiler makes of the gather kernels for a GPU that need not be there.

Triton compiles for any device of its wheel. Here a program of its own does, because
Triton of this process may interpret.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import pytest


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    if importlib.util.find_spec("triton.backends.nvidia") is None:
        pytest.skip("this Triton has no NVIDIA backend")
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("c"))}
    environment.pop("TRITON_INTERPRET", None)
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-m", "support.gather_ptx"],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    "name",
    ["token", "token terms", "token float8", "token one split", "token sm_80"],
)
def test_rows_are_read_sixteen_bytes_at_a_time(made, name):
    assert made[name]["rows"]
    assert all(load.endswith(".v4.b32") for load in made[name]["rows"])


def test_odd_widths_are_read_narrowly(made):
    """The other side of the test above: it can tell."""
    assert all(load.endswith(".b16") for load in made["token odd"]["rows"])


@pytest.mark.parametrize("name", ["token", "token terms"])
def test_the_loop_waits_for_nobody(made, name):
    assert made[name]["barriers_in_loop"] == 0
    # Eight rows, eight channel numbers and eight values a thread.
    assert made[name]["loads_in_loop"] == 24
    assert made[name]["fused"] >= 64


@pytest.mark.parametrize("name", ["token", "token float8", "token stages", "shared"])
def test_partial_sums_are_released_before_they_are_read(made, name):
    order = made[name]["order"]
    (atom,) = (i for i, word in enumerate(order) if word.startswith("atom"))
    assert order[atom] == "atom.global.gpu.acq_rel.add.u32"
    stores = [i for i, word in enumerate(order[:atom]) if word == "st.global"]
    loads = [i for i, word in enumerate(order) if word == "ld.global.cg"]
    assert stores
    assert "bar.sync" in order[stores[-1] : atom]
    assert min(loads) > atom
    assert "bar.sync" in order[atom : min(loads)]


@pytest.mark.parametrize("name", ["token one split", "shared one split"])
def test_one_split_takes_no_ticket(made, name):
    assert not [word for word in made[name]["order"] if word.startswith("atom")]


@pytest.mark.parametrize("name", ["token", "token sm_80", "shared"])
def test_results_are_rounded_to_nearest(made, name):
    """Which the interpreter does not do for bfloat16."""
    assert made[name]["rounds"]
    assert all(word.startswith("cvt.rn.") for word in made[name]["rounds"])


@pytest.mark.parametrize("name", ["shared", "shared float8"])
def test_a_shared_list_uses_tensor_cores(made, name):
    assert made[name]["mma"] > 0


def test_a_step_compiles_nothing_anew(made):
    """Numbers are not specialised on, nor addresses of what each step makes."""
    for number, arguments in enumerate(made["arguments"]):
        sizes = {"tokens", "columns", "index_stride", "row_units", "addend_stride"}
        sizes |= {"list_units", "value_units"} if number else {"listed", "value_stride"}
        assert {name for name, (size, _) in arguments.items() if size} == sizes
        step = {"indices", "counts", "scale", "token_shift", "sparse"}
        step |= set() if number else {"values"}
        assert {name for name, (_, place) in arguments.items() if place} == step
