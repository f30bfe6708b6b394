"""What ``register()`` does: check vLLM, register layers, formats and worker methods.

It runs in every vLLM process, possibly more than once, so every step is idempotent.
"""

from __future__ import annotations

import vllm
from vllm.logger import init_logger

from vllm_sparse import __version__
from vllm_sparse.compat import check_vllm

# vLLM configures only the ``vllm`` logger tree; INFO lines elsewhere are lost.
logger = init_logger("vllm." + __name__)


def register() -> None:
    """Make sparse linear layers and the statistics available to vLLM.

    Nothing changes for an engine whose configuration does not ask for sparsity.

    Raises:
        RuntimeError: if this vLLM version is not supported.
    """
    check_vllm(vllm.__version__)

    from vllm_sparse.layers import register_layers
    from vllm_sparse.packed import register_packed
    from vllm_sparse.stats import register_worker_methods

    skipped = register_layers()
    register_packed()
    register_worker_methods()
    if skipped:
        logger.warning(
            "vllm-sparse: another plugin owns the layer classes %s; they stay as they "
            "are and are not sparsified.",
            ", ".join(skipped),
        )
    logger.debug("vllm-sparse %s registered", __version__)
