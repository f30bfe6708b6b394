"""The methods of vLLM's model runners that are wrapped: see ``patches.md``.

No plugin interface of vLLM 0.30 to 0.33 tells a layer, once a step and outside CUDA
graphs, which tokens are prompt and which are generated. The runners know when they
prepare a step's inputs, so their preparing methods are wrapped to publish it. They are
wrapped only in worker processes whose engine has activation sparsity on.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from vllm_sparse.phases import TokenPhases

FindPhases = Callable[[Any], TokenPhases | None]
# Called with an engine's configuration and its model, before its cache is allocated.
Prepare = Callable[[Any, torch.nn.Module], None]

_WRAPPED = "_vllm_sparse_wrapped"


def install(find_phases: FindPhases, prepare: Prepare) -> None:
    """Wrap both runners' methods, once in a process.

    Args:
        find_phases: gives the phases of a ``VllmConfig``; None if not active there.
        prepare: is told when an engine's model is loaded.

    Raises:
        RuntimeError: if a method is missing in this vLLM.
    """
    from vllm.triton_utils import HAS_TRITON
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    _wrap(GPUModelRunner, "_prepare_inputs", _publish_v1, find_phases)
    _wrap(GPUModelRunner, "_dummy_run", _clear, find_phases, before=True)

    def loaded(phases: TokenPhases, runner: Any, result: Any, args: Any) -> None:
        prepare(runner.vllm_config, runner.get_model())

    _wrap(GPUModelRunner, "initialize_kv_cache", loaded, find_phases, before=True)
    if HAS_TRITON:
        # Runner V2 needs Triton even to be imported.
        from vllm.v1.worker.gpu.model_runner import GPUModelRunner as GPUModelRunnerV2

        _wrap(GPUModelRunnerV2, "prepare_inputs", _publish_v2, find_phases)
        _wrap(GPUModelRunnerV2, "_dummy_run", _clear, find_phases, before=True)


def _wrap(
    runner: type,
    method: str,
    publish: Callable[[TokenPhases, Any, Any, tuple[Any, ...]], None],
    find_phases: FindPhases,
    *,
    before: bool = False,
) -> None:
    original = getattr(runner, method, None)
    if original is None:
        raise RuntimeError(
            f"vllm-sparse: {runner.__module__}.{runner.__name__} has no {method}. "
            "Expected it in vLLM 0.30 to 0.33: install a supported version."
        )
    if hasattr(original, _WRAPPED):
        return

    @functools.wraps(original)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        phases = find_phases(self.vllm_config)
        if phases is not None and before:
            publish(phases, self, None, args)
        result = original(self, *args, **kwargs)
        if phases is not None and not before:
            publish(phases, self, result, args)
        return result

    setattr(wrapper, _WRAPPED, True)
    setattr(runner, method, wrapper)


def install_start(
    worker: type, find_phases: FindPhases, start: Callable[[Any], None]
) -> None:
    """Wrap the last method of a worker's start-up, once in a process.

    Start-up runs steps of its own, under runner V2 also with requests: what they count
    is to be forgotten.

    Args:
        worker: class of the engine's workers.
        find_phases: gives the phases of a ``VllmConfig``; None if not active there.
        start: called with an engine's configuration when its start-up has ended.

    Raises:
        RuntimeError: if the method is missing in this vLLM.
    """

    def ended(phases: TokenPhases, worker: Any, result: Any, args: Any) -> None:
        start(worker.vllm_config)

    _wrap(worker, "compile_or_warm_up_model", ended, find_phases)


def _clear(
    phases: TokenPhases, runner: Any, result: Any, args: tuple[Any, ...]
) -> None:
    """Before dummy tokens (profiling, capture, idle data-parallel ranks): no phase."""
    phases.clear()


def _publish_v1(
    phases: TokenPhases, runner: Any, result: Any, args: tuple[Any, ...]
) -> None:
    """Runner V1 (CPU always; GPU without Triton or with features V2 lacks)."""
    scheduled: np.ndarray[Any, Any] = args[1]
    prompt_lens = runner.input_batch.num_prompt_tokens[: len(scheduled)]
    # Positions are exact on the device, also under asynchronous scheduling.
    per_token = torch.from_numpy(np.repeat(prompt_lens, scheduled))
    positions = runner.positions[: per_token.shape[0]]
    if positions.is_cuda:
        # From pageable memory the copy would wait for the stream.
        per_token = per_token.pin_memory().to(positions.device, non_blocking=True)
    phases.publish(positions, per_token)


def _publish_v2(
    phases: TokenPhases, runner: Any, batch: Any, args: tuple[Any, ...]
) -> None:
    """Runner V2 (the default on GPUs): everything stays on the device."""
    positions = batch.positions[: batch.num_tokens]
    ends = batch.query_start_loc[1 : batch.num_reqs + 1]
    token = torch.arange(positions.shape[0], device=ends.device, dtype=ends.dtype)
    request = torch.searchsorted(ends, token, right=True)
    request.clamp_(max=batch.num_reqs - 1)
    slots = batch.idx_mapping[: batch.num_reqs].long()
    prompt_lens = runner.req_states.prompt_len.gpu[slots]
    rows = getattr(batch, "num_tokens_after_padding", None)
    phases.publish(positions, prompt_lens[request], rows)
