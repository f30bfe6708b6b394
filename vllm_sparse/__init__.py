"""vllm-sparse: online N:M activation sparsity for vLLM, as a plugin.

Importing this package imports neither vLLM nor torch.
"""

from __future__ import annotations

__version__ = "0.1.0"

__all__ = ["__version__", "register"]


def register() -> None:
    """Entry point ``vllm.general_plugins``: called by vLLM in every process.

    Raises:
        RuntimeError: if the installed vLLM is not supported.
    """
    from vllm_sparse.plugin import register as register_plugin

    register_plugin()
