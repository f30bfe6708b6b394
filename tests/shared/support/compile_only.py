"""Compile Triton kernels for a GPU that is not there, at the launches a call makes.

The interpreter takes programs that the compiler refuses, and says nothing of registers.
A process that runs this must not have TRITON_INTERPRET set.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from triton.runtime.jit import JITFunction

_TYPES = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float8_e4m3fn: "*fp8e4nv",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.int16: "*i16",
    torch.uint8: "*u8",
    torch.bool: "*i1",
}
_OPTIONS = ("num_warps", "num_stages")


@contextlib.contextmanager
def compiling(capability: int = 90) -> Iterator[list[Any]]:
    """Compile what is launched instead of running it.

    Yields:
        The compiled kernels, in the order of their launches. Results of the calls are
        whatever was in memory.
    """
    made: list[Any] = []
    target = GPUTarget("cuda", capability, 32)

    def run(self, *args, grid, warmup=False, **given):
        options = {name: given.pop(name) for name in _OPTIONS if name in given}
        given.update(zip(self.arg_names, args, strict=False))
        signature, constants, attributes = {}, {}, {}
        for place, parameter in enumerate(self.params):
            name = parameter.name
            value = given.get(name, parameter.default)
            free = parameter.do_not_specialize
            if isinstance(value, torch.Tensor):
                signature[name] = _TYPES[value.dtype]
                attributes[place,] = [["tt.divisibility", 16]]
            elif (
                parameter.is_constexpr
                or isinstance(value, bool)
                or not isinstance(value, int | float)
                or (value == 1 and not free)
            ):
                signature[name] = "constexpr"
                constants[place,] = value
            else:
                signature[name] = "i32" if isinstance(value, int) else "fp32"
                if isinstance(value, int) and value % 16 == 0 and not free:
                    attributes[place,] = [["tt.divisibility", 16]]
        source = ASTSource(self, signature, constants, attributes)
        made.append(compile(source, target=target, options=options))

    with mock.patch.object(JITFunction, "run", run):
        yield made
