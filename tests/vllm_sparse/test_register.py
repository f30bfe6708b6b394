"""``register()``: idempotent, polite to other plugins, strict about versions.

Registration is global to a process, so a child process does it and reports.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

CHILD = """
import json, sys
import vllm
from vllm.model_executor.custom_op import PluggableLayer, op_registry_oot
from vllm.model_executor.layers.linear import RowParallelLinear
from vllm.v1.worker.worker_base import WorkerBase
import vllm_sparse
from vllm_sparse import plugin

report = {}
version, vllm.__version__ = vllm.__version__, "0.34.0"
try:
    vllm_sparse.register()
    report["refusal"] = None
except RuntimeError as error:
    report["refusal"] = str(error)
report["after_refusal"] = [sorted(op_registry_oot), hasattr(WorkerBase, METHOD)]
vllm.__version__ = version

class Foreign(RowParallelLinear):
    pass

PluggableLayer.register_oot(Foreign, name="RowParallelLinear")
warnings = []
plugin.logger.warning = lambda text, *args: warnings.append(text % args)
vllm_sparse.register()
first = dict(op_registry_oot), WorkerBase.vllm_sparse_stats
vllm_sparse.register()
report["idempotent"] = first == (dict(op_registry_oot), WorkerBase.vllm_sparse_stats)
report["warnings"] = warnings
report["owners"] = {k: v.__name__ for k, v in op_registry_oot.items()}

from vllm_sparse.layers import LAYERS, register_layers
report["skipped"] = register_layers()
report["bases"] = {k: v.__mro__[2].__name__ for k, v in LAYERS.items()}
from vllm_sparse.stats import collect
report["method"] = WorkerBase.vllm_sparse_stats is collect
with open(sys.argv[1], "w") as file:
    json.dump(report, file)
"""
NAMES = {
    "ColumnParallelLinear",
    "MergedColumnParallelLinear",
    "QKVParallelLinear",
    "ReplicatedLinear",
    "RowParallelLinear",
}


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    path = tmp_path_factory.mktemp("register") / "report.json"
    code = CHILD.replace("METHOD", repr("vllm_sparse_stats"))
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(path.read_text())


def test_unsupported_version_is_refused_before_anything_is_registered(report):
    assert "vLLM 0.34.0 is not supported" in report["refusal"]
    layers, has_method = report["after_refusal"]
    assert not NAMES & set(layers)
    assert not has_method


def test_all_linear_classes_but_the_foreign_one_are_ours(report):
    ours = {name: f"Sparse{name}" for name in NAMES}
    owners = {name: report["owners"][name] for name in NAMES}
    assert owners == ours | {"RowParallelLinear": "Foreign"}


def test_the_foreign_owner_is_respected_and_reported(report):
    assert report["skipped"] == ["RowParallelLinear"]
    assert report["warnings"]
    for warning in report["warnings"]:
        assert "another plugin owns the layer classes RowParallelLinear" in warning
        assert "not sparsified" in warning


def test_a_second_call_changes_nothing(report):
    assert report["idempotent"]


def test_each_class_stands_before_the_one_it_replaces(report):
    assert report["bases"] == {name: name for name in NAMES}


def test_workers_answer_for_their_statistics(report):
    assert report["method"]


def test_isinstance_answers_as_without_the_plugin():
    """vLLM's LoRA code asks about in-tree subclasses that are not replaced."""
    script = """
from vllm.model_executor.custom_op import maybe_get_oot_by_class
from vllm.model_executor.layers import linear
from vllm_sparse import register
from vllm_sparse.layers import LAYERS

classes = [c for c in vars(linear).values() if isinstance(c, type)]
register()
for name in LAYERS:
    in_tree = getattr(linear, name)
    ours = maybe_get_oot_by_class(in_tree)
    assert ours is LAYERS[name]
    for subclass in (c for c in classes if issubclass(c, linear.LinearBase)):
        instance = subclass.__new__(subclass)
        assert isinstance(instance, ours) == isinstance(instance, in_tree), (
            subclass, name
        )
    assert not isinstance(object(), ours)
print("same")
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.stdout.endswith("same\n"), done.stderr
