"""The wrapped runner methods: both input formats, wrapping once, and drift of vLLM."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_sparse import runner_hooks
from vllm_sparse.phases import DECODE, PADDING, PREFILL, TokenPhases

SLOTS = 16
V1 = "vllm.v1.worker.gpu_model_runner"
V2 = "vllm.v1.worker.gpu.model_runner"
# (prompt length, first position, tokens) of every request of a step.
MIXED = [(4, 7, 1), (5, 1, 3), (2, 2, 1), (3, 2, 2)]
MIXED_CODES = [DECODE, *[PREFILL] * 3, DECODE, PREFILL, DECODE]


def flat_positions(requests, padded=SLOTS):
    positions = [p for _, first, n in requests for p in range(first, first + n)]
    return torch.tensor(positions + [-1] * (padded - len(positions)))


def v1_codes(requests):
    """Publish through the format of runner V1."""
    phases = TokenPhases(SLOTS, torch.device("cpu"))
    prompts = np.zeros(SLOTS, dtype=np.int32)
    prompts[: len(requests)] = [prompt for prompt, _, _ in requests]
    prompts[len(requests) :] = 1000  # slots of no request must not be read
    runner = SimpleNamespace(
        input_batch=SimpleNamespace(num_prompt_tokens=prompts),
        positions=flat_positions(requests),
    )
    scheduled = np.array([n for _, _, n in requests], dtype=np.int32)
    runner_hooks._publish_v1(phases, runner, None, (None, scheduled))
    return phases.codes.tolist()


def v2_codes(requests, slots=None, extra=0):
    """Publish through the format of runner V2; requests live in scattered slots."""
    phases = TokenPhases(SLOTS, torch.device("cpu"))
    slots = slots or [(5 * i + 3) % SLOTS for i in range(len(requests))]
    prompts = torch.full((SLOTS,), 1000, dtype=torch.int32)
    prompts[slots] = torch.tensor([r[0] for r in requests], dtype=torch.int32)
    tokens = [n for _, _, n in requests]
    ends = np.cumsum([0, *tokens])
    starts = torch.full((SLOTS + 1,), int(ends[-1]), dtype=torch.int32)
    starts[: len(ends)] = torch.from_numpy(ends)
    mapping = torch.zeros(SLOTS, dtype=torch.int32)
    mapping[: len(slots)] = torch.tensor(slots)
    batch = SimpleNamespace(
        positions=flat_positions(requests),
        num_tokens=sum(tokens) + extra,
        num_reqs=len(requests),
        query_start_loc=starts,
        idx_mapping=mapping,
    )
    runner = SimpleNamespace(
        req_states=SimpleNamespace(prompt_len=SimpleNamespace(gpu=prompts))
    )
    runner_hooks._publish_v2(phases, runner, batch, ())
    return phases.codes.tolist()


@pytest.mark.parametrize("codes", [v1_codes, v2_codes], ids=["V1", "V2"])
def test_mixed_batch(codes):
    expected = MIXED_CODES + [PADDING] * (SLOTS - len(MIXED_CODES))
    assert codes(MIXED) == expected


def test_v2_follows_the_slot_mapping():
    expected = v2_codes(MIXED)
    assert v2_codes(MIXED, slots=[0, 1, 2, 3]) == expected
    assert v2_codes(MIXED, slots=[15, 0, 7, 1]) == expected


@pytest.mark.parametrize(
    "where", [0, 1, 2, 4], ids=["first", "second", "third", "last"]
)
def test_v2_request_without_tokens(where):
    requests = [*MIXED[:where], (1000, 0, 0), *MIXED[where:]]
    assert v2_codes(requests) == v2_codes(MIXED)


def test_v2_tokens_beyond_the_last_request_stay_in_bounds():
    assert v2_codes(MIXED, extra=2)[: len(MIXED_CODES)] == MIXED_CODES


REQUESTS = st.lists(
    st.tuples(st.integers(1, 6), st.integers(0, 8), st.integers(1, 4)),
    min_size=1,
    max_size=4,
)


@given(REQUESTS)
@settings(deadline=None)
def test_both_formats_agree_with_the_definition(requests):
    expected = [
        DECODE if position >= prompt else PREFILL
        for prompt, first, n in requests
        for position in range(first, first + n)
    ]
    expected += [PADDING] * (SLOTS - len(expected))
    assert v1_codes(requests) == expected
    assert v2_codes(requests) == expected


def make_runner_class():
    class Runner:
        vllm_config = "the engine"

        def prepare(self, output, scheduled, extra=0):
            """Prepare."""
            self.prepared = (output, scheduled, extra)
            return "result"

    return Runner


def test_the_original_runs_first_and_its_result_is_passed_on():
    runner_class, calls = make_runner_class(), []

    def publish(phases, runner, result, args):
        calls.append((phases, runner.prepared, result, args))

    def find(config):
        return f"phases of {config}"

    runner_hooks._wrap(runner_class, "prepare", publish, find)
    assert runner_class().prepare("output", [1], extra=2) == "result"
    assert calls == [
        ("phases of the engine", ("output", [1], 2), "result", ("output", [1]))
    ]
    assert runner_class.prepare.__doc__ == "Prepare."


def test_an_engine_without_sparsity_is_left_alone():
    runner_class, calls = make_runner_class(), []
    runner_hooks._wrap(
        runner_class, "prepare", lambda *args: calls.append(args), lambda config: None
    )
    assert runner_class().prepare("output", [1]) == "result"
    assert calls == []


def test_wrapping_twice_publishes_once():
    runner_class, calls = make_runner_class(), []
    for _ in range(2):
        runner_hooks._wrap(
            runner_class, "prepare", lambda *args: calls.append(args), lambda c: "x"
        )
    runner_class().prepare("output", [1])
    assert len(calls) == 1


def test_a_subclass_of_a_wrapped_runner_is_not_wrapped_again():
    runner_class, calls = make_runner_class(), []
    subclass = type("CpuRunner", (runner_class,), {})
    for each in (runner_class, subclass):
        runner_hooks._wrap(
            each, "prepare", lambda *args: calls.append(args), lambda c: "x"
        )
    subclass().prepare("output", [1])
    assert len(calls) == 1


def test_an_error_of_the_original_passes_and_publishes_nothing():
    runner_class, calls = make_runner_class(), []

    def fail(self):
        raise KeyError("of vLLM")

    runner_class.prepare = fail
    runner_hooks._wrap(
        runner_class, "prepare", lambda *args: calls.append(args), lambda c: "x"
    )
    with pytest.raises(KeyError, match="of vLLM"):
        runner_class().prepare()
    assert calls == []


def test_missing_method_names_the_class_and_the_versions():
    with pytest.raises(
        RuntimeError,
        match=r"vllm-sparse: .*\.Runner has no _prepare_inputs\. Expected it in vLLM "
        r"0\.30 to 0\.33: install a supported version",
    ):
        runner_hooks._wrap(
            make_runner_class(), "_prepare_inputs", lambda *a: None, lambda c: None
        )


@pytest.mark.parametrize("before", [False, True], ids=["after", "before"])
def test_publishing_before_or_after_the_original(before):
    runner_class, calls = make_runner_class(), []

    def publish(phases, runner, result, args):
        calls.append((hasattr(runner, "prepared"), result, args))

    runner_hooks._wrap(
        runner_class, "prepare", publish, lambda config: "x", before=before
    )
    assert runner_class().prepare("output", [1]) == "result"
    assert calls == [(not before, None if before else "result", ("output", [1]))]


def fake_runner(prepare):
    """Return a runner class that notes the codes its dummy run sees."""

    def dummy_run(self, tokens):
        self.seen = self.phases.codes.tolist()

    methods = {
        prepare: lambda self: None,
        "_dummy_run": dummy_run,
        "initialize_kv_cache": lambda self, config: "cache",
        "get_model": lambda self: "model",
    }
    return type("GPUModelRunner", (), methods)


@pytest.fixture(params=[False, True], ids=["V1 only", "V1 and V2"])
def runners(request, monkeypatch):
    """Put fakes in the place of vLLM's runners, with or without Triton."""
    first, second = fake_runner("_prepare_inputs"), fake_runner("prepare_inputs")
    for name, content in (
        ("vllm.triton_utils", {"HAS_TRITON": request.param}),
        (V1, {"GPUModelRunner": first}),
        (V2, {"GPUModelRunner": second}),
    ):
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    return first, second, request.param


def test_install_wraps_the_runners_there_are(runners):
    first, second, has_triton = runners
    runner_hooks.install(lambda config: None, lambda config, model: None)
    for wrapped in (first._prepare_inputs, first._dummy_run):
        assert hasattr(wrapped, runner_hooks._WRAPPED)
    for wrapped in (second.prepare_inputs, second._dummy_run):
        assert hasattr(wrapped, runner_hooks._WRAPPED) is has_triton


def test_dummy_tokens_have_no_phase(runners):
    first, second, has_triton = runners
    runner_hooks.install(lambda config: config, lambda config, model: None)
    for runner_class in (first, second) if has_triton else (first,):
        runner = runner_class()
        runner.phases = runner.vllm_config = TokenPhases(4, torch.device("cpu"))
        runner.phases.codes.fill_(DECODE)
        runner._dummy_run(3)
        assert runner.seen == [PADDING] * 4


def test_the_loaded_model_is_prepared_before_its_cache(runners):
    first, _, _ = runners
    prepared = []
    runner_hooks.install(lambda config: config, lambda *args: prepared.append(args))
    runner = first()
    runner.vllm_config = TokenPhases(4, torch.device("cpu"))
    assert runner.initialize_kv_cache("config") == "cache"
    assert prepared == [(runner.vllm_config, "model")]


def test_counting_starts_when_the_workers_start_up_has_ended():
    class Worker:
        vllm_config = "the engine"

        def compile_or_warm_up_model(self):
            started.append("warming up")
            return "times"

    class Inherits(Worker):
        pass

    started = []
    for worker in (Worker, Inherits):
        runner_hooks.install_start(worker, lambda config: "phases", started.append)
    assert Inherits().compile_or_warm_up_model() == "times"
    assert started == ["warming up", "the engine"]
    started.clear()

    class Dense(Worker):
        compile_or_warm_up_model = Worker.compile_or_warm_up_model.__wrapped__

    runner_hooks.install_start(Dense, lambda config: None, started.append)
    Dense().compile_or_warm_up_model()
    assert started == ["warming up"]


@pytest.mark.parametrize(
    ("module", "worker"),
    [
        ("vllm.v1.worker.cpu_worker", "CPUWorker"),
        ("vllm.v1.worker.gpu_worker", "Worker"),
    ],
)
def test_vllm_still_warms_up_last(module, worker):
    function_in(source_of(module), worker, "compile_or_warm_up_model")
    core = ast.unparse(source_of("vllm.v1.engine.core"))
    assert core.index("initialize_from_config") < core.index("compile_or_warm_up_model")


def source_of(module):
    """Parse a module of the installed vLLM without importing it (it may need CUDA)."""
    folder = Path(importlib.util.find_spec("vllm").origin).parent
    path = folder.joinpath(*module.split(".")[1:]).with_suffix(".py")
    return ast.parse(path.read_text())


def function_in(tree, class_name, name):
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == class_name:
            for item in node.body:
                if isinstance(item, ast.FunctionDef) and item.name == name:
                    return item
    raise AssertionError(f"vLLM's {class_name} has no {name}")


def test_vllm_v1_still_prepares_inputs_as_we_read_them():
    tree = source_of(V1)
    method = function_in(tree, "GPUModelRunner", "_prepare_inputs")
    names = [argument.arg for argument in method.args.args]
    assert names == ["self", "scheduler_output", "num_scheduled_tokens"]
    calls = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func).endswith("._prepare_inputs")
    ]
    # The hook reads the second argument by its place.
    assert calls
    assert all(len(call.args) == 2 for call in calls)
    text = ast.unparse(tree)
    assert "self.positions[:total_num_scheduled_tokens]" in text
    # Prompt lengths are a NumPy array, by the request's place in the batch.
    assert re.search(
        r"self\.num_prompt_tokens = (np\.|.*\.numpy\(\)\n)",
        ast.unparse(source_of("vllm.v1.worker.gpu_input_batch")),
    )


@pytest.mark.parametrize("module", [V1, V2], ids=["V1", "V2"])
def test_vllm_still_has_dummy_runs(module):
    function_in(source_of(module), "GPUModelRunner", "_dummy_run")


def test_vllm_v2_still_prepares_inputs_as_we_read_them():
    function_in(source_of(V2), "GPUModelRunner", "prepare_inputs")
    batch = next(
        node
        for node in source_of("vllm.v1.worker.gpu.input_batch").body
        if isinstance(node, ast.ClassDef) and node.name == "InputBatch"
    )
    fields = {node.target.id for node in batch.body if isinstance(node, ast.AnnAssign)}
    read = {"positions", "num_tokens", "num_reqs", "query_start_loc", "idx_mapping"}
    assert read <= fields
    assert "num_tokens_after_padding" in fields, "rows of a step, with padding"
    states = ast.unparse(source_of("vllm.v1.worker.gpu.states"))
    assert "self.prompt_len = UvaBackedTensor(self.max_num_reqs" in states
