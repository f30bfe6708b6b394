"""Online sparsity of a model folder, emulated: policies side by side with dense.

A window's first half is its prompt, and its second half decode. Continuations are what
the dense model generates from those prompts; the sparse model is forced along them.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from nmsparse.config import Phase
from nmsparse.parameters import read_parameters
from nmsparse.sidecar import SIDECAR_NAME, read_sidecar
from nmsparse.suggest import unknown
from offline_prune.errors import InputError
from offline_prune.evaluation.generation import greedy
from offline_prune.evaluation.policies import Compared, Forced, View, compare
from offline_prune.evaluation.windows import TextWindows
from offline_prune.online.emulation import Emulation, attach
from offline_prune.report.measurements import OnlineResult, PolicyResult

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SKIP_FIRST = "skip-first"
POLICIES = (*(phase.value for phase in Phase), SKIP_FIRST)


def attach_sidecar(model: PreTrainedModel, folder: Path) -> Emulation | None:
    """Do to a model what its folder's sidecar says about activations.

    Args:
        model: loaded from the folder.
        folder: the model folder.

    Returns:
        None if the sidecar has no activation sparsity, or there is no sidecar.

    Raises:
        ConfigError: if the sidecar or its parameters cannot be used.
    """
    config = read_sidecar(folder)
    if config is None or not any(x.activation for x in config.groups.values()):
        return None
    file = config.parameters
    parameters = read_parameters(folder, file) if file is not None else {}
    return attach(model, config, parameters)


def under(
    emulation: Emulation, policy: str, prompt_len: int
) -> AbstractContextManager[None]:
    """Return a context in which an emulated model follows a policy.

    Args:
        emulation: the sparse layers.
        policy: one of :data:`POLICIES`.
        prompt_len: tokens of the prompt of every sequence.

    Raises:
        InputError: if there is no such policy.
    """
    if policy not in POLICIES:
        raise InputError(unknown("policy", policy, POLICIES))
    if policy == SKIP_FIRST:
        return emulation.using(
            phase=Phase.BOTH, prompt_len=prompt_len, dense_first_token=True
        )
    return emulation.using(phase=policy, prompt_len=prompt_len)


def online_result(
    model: PreTrainedModel,
    emulation: Emulation,
    *,
    windows: TextWindows,
    text: str,
    policies: Sequence[str],
    dense: PreTrainedModel | None = None,
    continuation_tokens: int = 0,
) -> OnlineResult:
    """Measure policies of a model on windows and on continuations.

    Args:
        model: the sparse model, in evaluation mode.
        emulation: its sparse layers.
        windows: of at least 4 tokens.
        text: what people call the text.
        policies: of :data:`POLICIES`.
        dense: the reference; the same weights without online sparsity if None.
        continuation_tokens: length of continuations of every window's first half; 0
            for none.

    Raises:
        InputError: if the windows are too short, or a policy is unknown.
    """
    if windows.seq_len < 4:
        raise InputError(
            f"Online sparsity: windows of {windows.seq_len} tokens. Expected at least "
            "4, a prompt and what comes after it: give a larger seq_len."
        )
    half = windows.seq_len // 2
    reference = View(model, lambda _: emulation.off()) if dense is None else View(dense)
    views = {name: View(model, partial(under, emulation, name)) for name in policies}
    whole = [Forced(window, half) for window in windows]
    found = compare(reference, views, sequences=whole)
    generated: dict[str, Compared] = {}
    if continuation_tokens:
        prompts = [window[:half] for window in windows]
        forced = continuations(reference, prompts, max_new_tokens=continuation_tokens)
        generated = compare(reference, views, sequences=forced, decode_only=True)
    return OnlineResult(
        text=text,
        sha256=windows.sha256,
        seq_len=windows.seq_len,
        prompt_len=half,
        windows=len(windows),
        tokens=found["dense"].tokens,
        bos=windows.bos,
        reference="same weights" if dense is None else "dense model",
        generated_tokens=generated["dense"].decode_tokens if generated else 0,
        policies=[
            _policy(name, found[name], generated.get(name))
            for name in ("dense", *policies)
        ],
    )


@torch.inference_mode()
def continuations(
    view: View, prompts: Sequence[torch.Tensor], *, max_new_tokens: int
) -> list[Forced]:
    """Return prompts with the greedy continuations of a model.

    Args:
        view: the model.
        prompts: int64 ``[P]`` each.
        max_new_tokens: where a continuation is cut, if it does not end before.

    Raises:
        InputError: if every continuation has less than 2 tokens.
    """
    found = []
    for prompt in prompts:
        with view.within(len(prompt)):
            ids = greedy(view.model, prompt, max_new_tokens=max_new_tokens)
        # A single new token is never an input, so it decides nothing.
        if len(ids) > len(prompt) + 1:
            found.append(Forced(ids.cpu(), len(prompt)))
    if not found:
        raise InputError(
            "Continuations: the dense model ends each of them at once. Expected at "
            "least 2 tokens of one: give another text, or more continuation tokens."
        )
    return found


def require_online(emulation: Emulation | None, folder: Path) -> None:
    """Refuse a choice of policy where there is nothing to choose.

    Raises:
        InputError: if there is no online sparsity.
    """
    if emulation is None:
        raise InputError(
            f"Model folder {folder}: a phase is given, but online sparsity is off. "
            f"Expected a folder whose {SIDECAR_NAME} has activation patterns, and no "
            "--no-online: annotate or calibrate it, or leave the phase out."
        )


def _policy(name: str, whole: Compared, generated: Compared | None) -> PolicyResult:
    assert whole.perplexity is not None
    return PolicyResult(
        policy=name,
        perplexity=whole.perplexity,
        decode_perplexity=whole.decode_perplexity,
        kl=whole.kl,
        top1_agreement=whole.top1_agreement,
        generated_kl=generated.kl if generated else None,
        generated_top1_agreement=generated.top1_agreement if generated else None,
    )
