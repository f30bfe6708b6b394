"""Flags of ``vllm-sparse serve`` that say how layers are executed."""

from __future__ import annotations

import argparse

from nmsparse.config import ConfigError
from vllm_sparse.execution import CANARY, CHOICES, ON, check_share

_HELP = {
    "kernels": "Kernels of the plugin: where they were measured to be faster than "
    "vLLM's own (auto, the default), always for few tokens (on), never (off).",
    "dense_fallback": "Keep vLLM's own layout of a weight beside the plugin's, fastest "
    "for prompts (keep, the default), or drop it to use half the memory (drop).",
    "sparse_weights": "Pack pruned weights in memory, so that decoding reads fewer "
    "bytes (auto, the default once sparsity is on), or not (off). 'auto' alone "
    "activates the plugin for a pruned model without a sidecar.",
    "dense_weights": "Give layers without any sparsity the plugin's layout too, which "
    "is read faster at few tokens and gives the dense result (auto), or leave them to "
    "vLLM (off, the default). 'auto' alone activates the plugin for a dense model.",
    "sparse_steps": "Which steps of layers with kernels of the plugin are sparse: all "
    "of the phase, or those that a sparse kernel makes faster, while larger ones run "
    "dense (fast). auto, the default: fast on a GPU, all on a CPU. With fast, how a "
    "token is computed depends on how many tokens are in its step.",
    "shared_lists": "On a GPU: let 3 to 16 tokens, all sparse, share one list of "
    "channels where that is fastest (auto), or never (off, the default). With auto a "
    "token's result depends on its neighbours.",
    "kernel_timing": "On a CPU: time one call of 61 of layers with kernels of the "
    "plugin, for the histogram vllm_sparse_kernel_seconds (on; the flag alone means "
    "that), or none (off, the default).",
}
# Flags that need no value.
_SWITCHES = ("kernel_timing",)


def add_execution_arguments(group: argparse._ArgumentGroup) -> None:
    """Add a flag for every field of :class:`~vllm_sparse.execution.Execution`."""
    for name, text in _HELP.items():
        group.add_argument(
            f"--{name.replace('_', '-')}",
            choices=CHOICES[name],
            default=None,
            nargs="?" if name in _SWITCHES else None,
            const=ON if name in _SWITCHES else None,
            help=text,
        )
    group.add_argument(
        f"--{CANARY}",
        metavar="SHARE",
        type=_share,
        default=None,
        help="Share of the decode steps, above 0 and at most 1, in which one token of "
        "a few layers is also computed dense: metrics show how far the results are "
        "apart. Off by default; 0.001 is enough for a busy server.",
    )


def _share(text: str) -> float:
    """Return the value of ``--canary``."""
    try:
        value: float | str = float(text)
    except ValueError:
        value = text
    try:
        return check_share(value, f"--{CANARY}")
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
