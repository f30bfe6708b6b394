"""Learned tensors of online sparsity: per layer in memory, and their file.

Importing this loads no torch.
"""

from __future__ import annotations

from nmsparse.parameters.file import (
    PARAMETERS_NAME,
    read_parameters,
    write_parameters,
)
from nmsparse.parameters.fuse import fuse
from nmsparse.parameters.layer import NO_PARAMETERS, Parameters
from nmsparse.parameters.tensors import PARAMETERS

__all__ = [
    "NO_PARAMETERS",
    "PARAMETERS",
    "PARAMETERS_NAME",
    "Parameters",
    "fuse",
    "read_parameters",
    "write_parameters",
]
