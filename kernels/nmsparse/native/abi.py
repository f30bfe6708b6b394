"""The structures of ``csrc/nmsparse.h``, for ctypes: same fields, same order."""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NoReturn

import torch

from nmsparse.native import library

if TYPE_CHECKING:
    from collections.abc import Callable

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
UNION, PER_TOKEN = 0, 1

_POINTER = ctypes.c_void_p
_INT64 = ctypes.c_int64
_INT32 = ctypes.c_int32


def _fields(**groups: Any) -> list[tuple[str, Any]]:
    return [(name, kind) for names, kind in groups.values() for name in names.split()]


class SparsifyArgs(ctypes.Structure):
    """``nms_sparsify_args``."""

    _fields_ = _fields(
        pointers=(
            "x factor channel_shift token_shift values indices dense scale nonzeros",
            _POINTER,
        ),
        sizes=("tokens channels x_stride", _INT64),
        options=("dtype kept group threads", _INT32),
    )


class GatherArgs(ctypes.Structure):
    """``nms_gather_args``."""

    _fields_ = _fields(
        pointers=(
            "values indices weight out bias addend scale token_shift row_sum "
            "output_scale constant rows_read",
            _POINTER,
        ),
        sizes=(
            "tokens listed channels outputs values_stride indices_stride "
            "weight_stride out_stride",
            _INT64,
        ),
        options=("dtype strategy threads padded", _INT32),
    )


class DotArgs(ctypes.Structure):
    """``nms_dot_args``."""

    _fields_ = _fields(
        pointers=("x weight bits offsets out bias", _POINTER),
        sizes=("tokens channels outputs x_stride weight_stride out_stride", _INT64),
        options=("dtype threads", _INT32),
    )


@lru_cache(maxsize=1)
def kernels() -> ctypes.CDLL:
    """Return the loaded library with its functions declared.

    Raises:
        NativeUnavailable: if there is none.
        RuntimeError: if the library has other structures than this module.
    """
    found = library.load()
    declare(found)
    return found


def declare(library: ctypes.CDLL) -> None:
    """Declare the functions of a loaded library.

    Raises:
        RuntimeError: if the library has other structures than this module.
    """
    library.nms_isa.restype = ctypes.c_char_p
    library.nms_sizeof.restype = _INT64
    for number, structure in enumerate((SparsifyArgs, GatherArgs, DotArgs)):
        found, expected = library.nms_sizeof(number), ctypes.sizeof(structure)
        if found != expected:
            raise RuntimeError(
                f"CPU kernels: {structure.__name__} has {found} bytes in the library. "
                f"Expected {expected}: it was built from other sources. Remove it."
            )
    for name in ("nms_sparsify", "nms_gather", "nms_dot"):
        getattr(library, name).argtypes = [_POINTER]
        getattr(library, name).restype = ctypes.c_int
    library.nms_scan.argtypes = [_POINTER, _INT64, ctypes.c_int]
    library.nms_scan.restype = ctypes.c_float
    library.nms_huge_pages.argtypes = [_POINTER, _INT64]


def call(function: Callable[[Any], int], args: ctypes.Structure) -> None:
    """Run a kernel.

    Raises:
        MemoryError: if scratch memory could not be had.
        RuntimeError: if the kernel refuses its arguments.
    """
    code = function(ctypes.addressof(args))
    if code:
        fail(code, args)


def fail(code: int, args: ctypes.Structure) -> NoReturn:
    """Raise what a kernel's negative result means.

    Raises:
        MemoryError: if scratch memory could not be had.
        RuntimeError: if the kernel refuses its arguments.
    """
    if code == -2:
        raise MemoryError("CPU kernel: no memory for its scratch buffers.")
    given = {name: getattr(args, name) for name, *_ in type(args)._fields_}
    raise RuntimeError(f"CPU kernel refused its arguments: {given}.")
