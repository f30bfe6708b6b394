"""How layers are executed, as opposed to what is sparse: options of one engine.

They change speed and memory, and results only by rounding; ``sparse_steps`` and
``shared_lists`` also say which steps are sparse, and how. They fit a machine, so they
are no part of the sparsity configuration that travels with a model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from nmsparse.config import ConfigError
from nmsparse.suggest import unknown

AUTO, ON, OFF = "auto", "on", "off"
KEEP, DROP = "keep", "drop"
ALL, FAST = "all", "fast"
# Packing pays from about this share of zeros: below it, bits and values together are
# nearly as many bytes as the dense weight.
MIN_SPARSITY = 0.4
# On a CPU, which holds one form, gathering rows must save this share of the bytes over
# a packed weight to be chosen: a packed weight helps prefill too, and several tokens
# share it.
ROWS_GAIN = 0.1

CHOICES: dict[str, tuple[str, ...]] = {
    "kernels": (AUTO, ON, OFF),
    "dense_fallback": (KEEP, DROP),
    "sparse_weights": (AUTO, OFF),
    "dense_weights": (AUTO, OFF),
    "sparse_steps": (AUTO, ALL, FAST),
    "shared_lists": (OFF, AUTO),
    "kernel_timing": (OFF, ON),
}
CANARY = "canary"


@dataclass(frozen=True, slots=True)
class Execution:
    """Choices about kernels and memory.

    Attributes:
        kernels: ``auto`` uses a kernel of ours where it was measured to be faster than
            vLLM's own; ``on`` always, for few tokens; ``off`` never.
        dense_fallback: ``keep`` vLLM's own layout of a weight beside ours, for steps
            with many tokens (twice the memory of such a layer); ``drop`` it.
        sparse_weights: ``auto`` packs weights that hold enough zeros; ``off`` never.
        dense_weights: ``auto`` gives layers without any sparsity our layout too, which
            is read faster at few tokens, for the memory ``dense_fallback`` says;
            ``off`` leaves them to vLLM.
        sparse_steps: of layers with kernels of ours. ``all`` steps are sparse as the
            configuration says; ``fast``: steps of more tokens than a sparse kernel
            wins at run dense, so that how a token is computed depends on how many
            tokens are in its step; ``auto`` is ``fast`` on a GPU, ``all`` on a CPU.
        shared_lists: ``auto`` lets 3 to 16 tokens that are all sparse share one list of
            channels on a GPU where that is fastest, so that a token's result depends on
            its neighbours; ``off`` never.
        kernel_timing: ``on`` times a sample of the calls of layers with kernels of
            ours, on a CPU; ``off`` does not.
        canary: share of the decode steps that compare a token of some layers with the
            dense result (``vllm_sparse/canary``); 0 for none.
    """

    kernels: str = AUTO
    dense_fallback: str = KEEP
    sparse_weights: str = AUTO
    dense_weights: str = OFF
    sparse_steps: str = AUTO
    shared_lists: str = OFF
    kernel_timing: str = OFF
    canary: float = 0.0

    @classmethod
    def parse(cls, options: Mapping[str, Any], where: str) -> Execution:
        """Read the options that are ours from a mapping; other keys are ignored.

        Raises:
            ConfigError: for a value that is not one of the choices, or no share.
        """
        given = {f.name: options[f.name] for f in fields(cls) if f.name in options}
        for name, value in given.items():
            if name == CANARY:
                check_share(value, f"{where}.{name}")
            elif value not in CHOICES[name]:
                raise ConfigError(
                    f"{where}.{name}: {unknown('value', str(value), CHOICES[name])}"
                )
        return cls(**given)

    def leaves_steps_dense(self, device: str) -> bool:
        """Return whether steps that no sparse kernel wins at run dense.

        Args:
            device: type of the engine's device.
        """
        if self.sparse_steps == AUTO:
            return device != "cpu"
        return self.sparse_steps == FAST

    @property
    def may_pack_on_gpu(self) -> bool:
        """Whether a packed copy may be held on a GPU: only one that was measured."""
        return self.sparse_weights == AUTO and self.kernels == AUTO


def check_share(value: Any, where: str) -> float:
    """Return a share of the decode steps.

    Raises:
        ConfigError: if it is not a number above 0 and at most 1.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value <= 1:
        raise ConfigError(
            f"{where} is {value!r}. Expected the share of decode steps to check, a "
            "number above 0 and at most 1, for example 0.001; leave it out for none."
        )
    return float(value)


DEFAULT = Execution()
# Names of everything above in ``additional_config``.
EXECUTION_KEYS = (*CHOICES, CANARY)
