"""2:4 products on sparse tensor cores, through cuSPARSELt as torch ships it.

cuSPARSELt multiplies a compressed 2:4 matrix by a dense one, ``[m, k] @ [k, n]``, the
sparse one always first. It takes float16 and bfloat16 here, sizes of the sparse matrix
that are multiples of 16, and a dense one whose sizes are multiples of 8. Tokens are
padded with zeros to fit; features are not, because a copy of a weight is no padding.

Weights 2:4: ``y = (W x^T)^T``, with the transposition done by cuSPARSELt. Activations
2:4: ``y = x W^T``, with x compressed at every call. Compression believes that its input
is 2:4. For weights that is checked once, for activations never: sparsify them first.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import torch

from nmsparse.keep import verify
from nmsparse.pattern import NMPattern

PATTERN: Final = NMPattern(2, 4)
DTYPES: Final = (torch.float16, torch.bfloat16)
# What torch asks of these dtypes (torch.sparse.semi_structured): of both sides of the
# sparse matrix, and of both sides of the dense one.
SPARSE_MULTIPLE: Final = 16
DENSE_MULTIPLE: Final = 8
# First NVIDIA generation with sparse tensor cores.
_CAPABILITY = (8, 0)


@dataclass(frozen=True, slots=True, eq=False)
class SemiStructured:
    """A 2:4 weight ``[O, K]``, compressed.

    Attributes:
        compressed: ``[O, ...]`` values and their places, in cuSPARSELt's own order.
        in_features: K.
        algorithm: number of cuSPARSELt's algorithm; 0 is its default.
    """

    compressed: torch.Tensor
    in_features: int
    algorithm: int = 0

    @classmethod
    def compress(cls, weight: torch.Tensor, *, algorithm: int = 0) -> SemiStructured:
        """Compress a weight, once, at load.

        Args:
            weight: ``[O, K]`` float16 or bfloat16 on a GPU, at most 2 non-zeros in
                every 4 consecutive channels. Not modified.
            algorithm: number of cuSPARSELt's algorithm.

        Raises:
            ValueError: if ``weight`` is not 2:4, or has a shape that does not fit.
            RuntimeError: if cuSPARSELt cannot run here.
        """
        _expect_matrix("weight", weight, "[O, K]")
        shape = (weight.shape[0], weight.shape[1])
        _raise_if_refused(refusal(weight.device, weight.dtype, shape))
        if not verify(weight, PATTERN):
            raise ValueError(
                f"SemiStructured: the weight {shape} has more than 2 non-zeros in a "
                "group of 4. Expected a 2:4 weight: prune it with pattern 2:4."
            )
        compressed = torch._cslt_compress(weight.contiguous())
        return cls(compressed, shape[1], algorithm)

    @property
    def shape(self) -> tuple[int, int]:
        """``(O, K)``."""
        return self.compressed.shape[0], self.in_features

    @property
    def dtype(self) -> torch.dtype:
        """Type of the values."""
        return self.compressed.dtype

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self.compressed.nbytes


def refusal(
    device: torch.device | str,
    dtype: torch.dtype,
    shape: tuple[int, int] | None = None,
    *,
    sparse: str = "weight",
) -> str | None:
    """Return why cuSPARSELt cannot run a linear layer; None if it can.

    Args:
        device: where the tensors are.
        dtype: of the tensors.
        shape: ``(O, K)`` of the weight; None to leave shapes out.
        sparse: what is 2:4, ``weight`` or ``activation``.

    Raises:
        ValueError: for another ``sparse``.
    """
    if sparse not in ("weight", "activation"):
        raise ValueError(f"sparse is {sparse!r}. Expected 'weight' or 'activation'.")
    device = torch.device(device)
    if device.type != "cuda":
        return f"the tensor is on {device.type}, cuSPARSELt needs a GPU"
    if why_not := _missing(device):
        return why_not
    if dtype not in DTYPES:
        name = str(dtype).removeprefix("torch.")
        return f"dtype {name}, cuSPARSELt takes float16 and bfloat16 here"
    if shape is None:
        return None
    of_outputs = SPARSE_MULTIPLE if sparse == "weight" else DENSE_MULTIPLE
    sides = (
        ("out_features", shape[0], of_outputs),
        ("in_features", shape[1], SPARSE_MULTIPLE),
    )
    for name, size, multiple in sides:
        if size <= 0 or size % multiple:
            return f"{name} {size} is not a positive multiple of {multiple}"
    return None


def available(device: torch.device | str = "cuda") -> bool:
    """Return whether cuSPARSELt can run on ``device`` at all."""
    return refusal(device, DTYPES[0]) is None


def semi_structured_linear(
    x: torch.Tensor, weight: SemiStructured, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """Multiply tokens by a 2:4 weight.

    Args:
        x: ``[T, K]`` in the dtype of the weight, any strides. Not modified.
        weight: ``[O, K]``, compressed.
        bias: ``[O]`` or None.

    Returns:
        ``[T, O]`` in the dtype of ``x``.

    Raises:
        ValueError: if shapes disagree.
        TypeError: if dtypes disagree.
    """
    out_features, in_features = weight.shape
    _expect_matrix("x", x, "[T, K]")
    _expect_sizes(x, bias, in_features, out_features, weight.dtype)
    tokens = x.shape[0]
    if not tokens:
        return x.new_empty(0, out_features)
    out = torch._cslt_sparse_mm(
        weight.compressed,
        pad_tokens(x, DENSE_MULTIPLE).t(),
        bias=None if bias is None else bias.to(x.dtype),  # of the sparse matrix's rows
        transpose_result=True,
        alg_id=weight.algorithm,
    )
    return out[:tokens]


def semi_structured_activation_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    algorithm: int = 0,
) -> torch.Tensor:
    """Multiply 2:4 tokens by a dense weight.

    Args:
        x: ``[T, K]`` float16 or bfloat16 on a GPU, any strides, at most 2 non-zeros in
            every 4 consecutive channels. **Not checked**: for other tokens the result
            is undefined. Not modified.
        weight: ``[O, K]`` in the dtype of ``x``; it or its transpose is contiguous.
        bias: ``[O]`` or None.
        algorithm: number of cuSPARSELt's algorithm; 0 is its default.

    Returns:
        ``[T, O]`` in the dtype of ``x``.

    Raises:
        ValueError: if shapes disagree or do not fit, or the weight has gaps.
        TypeError: if dtypes disagree.
        RuntimeError: if cuSPARSELt cannot run here.
    """
    _expect_matrix("weight", weight, "[O, K]")
    _expect_matrix("x", x, "[T, K]")
    shape = (weight.shape[0], weight.shape[1])
    _expect_sizes(x, bias, shape[1], shape[0], weight.dtype)
    _raise_if_refused(refusal(x.device, x.dtype, shape, sparse="activation"))
    if not (weight.is_contiguous() or weight.t().is_contiguous()):
        raise ValueError(
            f"semi_structured: weight {shape} has strides {weight.stride()}. Expected "
            "rows or columns without gaps: make it contiguous once, at load."
        )
    tokens = x.shape[0]
    if not tokens:
        return x.new_empty(0, shape[0])
    compressed = torch._cslt_compress(pad_tokens(x, SPARSE_MULTIPLE))
    out = torch._cslt_sparse_mm(compressed, weight.t(), alg_id=algorithm)[:tokens]
    # cuSPARSELt adds a bias to the rows of the sparse matrix: tokens, not outputs.
    return out if bias is None else out + bias.to(x.dtype)


def pad_tokens(x: torch.Tensor, multiple: int) -> torch.Tensor:
    """Return ``x`` (``[T, K]``) with rows of zeros up to a multiple, contiguous.

    torch passes a matrix on without its strides, so gaps between rows would be read as
    channels.
    """
    missing = -x.shape[0] % multiple
    return torch.nn.functional.pad(x, (0, 0, 0, missing)).contiguous()


@lru_cache(maxsize=16)
def _missing(device: torch.device) -> str | None:
    """Return what a GPU or torch lacks for cuSPARSELt."""
    if not torch.cuda.is_available():
        return "torch sees no GPU"
    if not torch.backends.cusparselt.is_available():
        return f"torch {torch.__version__} was built without cuSPARSELt"
    capability = torch.cuda.get_device_capability(device)
    if torch.version.hip is None and capability < _CAPABILITY:
        major, minor = capability
        return f"the GPU has compute capability {major}.{minor}, 2:4 needs 8.0"
    return None


def _raise_if_refused(why_not: str | None) -> None:
    if why_not is not None:
        error = ValueError if "multiple of" in why_not else RuntimeError
        raise error(
            f"semi_structured: {why_not}. Expected a GPU with sparse tensor cores, "
            f"float16 or bfloat16, and sizes in multiples of {SPARSE_MULTIPLE}: use "
            "the dense weight or PackedWeight."
        )


def _expect_matrix(name: str, found: torch.Tensor, expected: str) -> None:
    if found.dim() != 2:
        raise ValueError(
            f"semi_structured: {name} has shape {tuple(found.shape)}. Expected "
            f"{expected}."
        )


def _expect_sizes(
    x: torch.Tensor,
    bias: torch.Tensor | None,
    in_features: int,
    out_features: int,
    dtype: torch.dtype,
) -> None:
    """Refuse tokens or a bias that do not belong to the weight."""
    if x.shape[1] != in_features:
        raise ValueError(
            f"semi_structured: x has shape {tuple(x.shape)}. Expected [T, K] = "
            f"[T, {in_features}]."
        )
    if x.dtype != dtype:
        raise TypeError(
            f"semi_structured: x is {x.dtype}, the weight {dtype}. Expected one dtype."
        )
    if bias is not None and bias.shape != (out_features,):
        raise ValueError(
            f"semi_structured: bias has shape {tuple(bias.shape)}. Expected "
            f"[{out_features}]."
        )
