"""Compile the gather kernels for GPUs and describe the code as JSON on stdout."""

import json
import re
import sys

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from nmsparse.ops.linear.shared_triton import shared_kernel
from nmsparse.ops.linear.token_triton import token_kernel

FP8 = {"weight": "*fp8e4nv", "UNIT": 16, "BLOCK_O": 128}
TERMS = {
    "weight_scale": "*fp32",
    "scale": "*fp32",
    "output_scale": "*fp32",
    "token_shift": "*fp32",
    "row_sum": "*fp32",
    "constant": "*fp32",
    "addend": "*bf16",
    "bias": "*bf16",
    "sparse": "*u8",
}
NO_TERMS = dict.fromkeys(TERMS)
CONSTANTS = {
    "UNIT": 8,
    "SCALAR_WEIGHT_SCALE": False,
    "BLOCK_O": 256,
    "BLOCK_K": 32,
    "SPLITS": 4,
    "STAGES": 1,
}
SHARED = {"BLOCK_T": 16, "WIDEN": False, "LIST_UNIT": 8, "BLOCK_O": 64, "STAGES": 3}
POINTERS = {
    "out": "*bf16",
    "values": "*bf16",
    "indices": "*i16",
    "counts": "*i32",
    "weight": "*bf16",
    "partials": "*fp32",
    "tickets": "*i32",
}


def described(kernel, arch=90, **changes):
    given = {**POINTERS, **NO_TERMS, **CONSTANTS}
    given |= (SHARED if kernel is shared_kernel else {}) | changes
    if given["SPLITS"] == 1:
        given |= {"partials": None, "tickets": None}
    signature, constants, aligned = {}, {}, {}
    for place, parameter in enumerate(kernel.params):
        value = given.get(parameter.name, "i32")
        if isinstance(value, str):
            signature[parameter.name] = value
            if value[0] == "*" and not parameter.do_not_specialize_on_alignment:
                aligned[(place,)] = [["tt.divisibility", 16]]
        else:
            signature[parameter.name] = "constexpr"
            constants[(place,)] = value
    source = ASTSource(kernel, signature, constants, aligned)
    options = {"num_warps": 4, "enable_fp_fusion": True}
    made = compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    assert made.asm["cubin"]
    text = made.asm["ptx"]
    # From a label to the first branch back to it: the loop over the list.
    loop = re.search(r"\n(\$\w+):(.*?)\bbra\S*\s+\1;", text, re.DOTALL)
    assert loop
    # One entry a load: 16 bytes are v4.b32.
    return {
        "rows": re.findall(r"ld\.global\.L1::evict_first\S*", text),
        "barriers_in_loop": len(re.findall(r"bar\.sync", loop[2])),
        "loads_in_loop": len(re.findall(r"ld\.global", loop[2])),
        "fused": len(re.findall(r"fma\.rn\.f32", text)),
        "order": re.findall(r"st\.global|bar\.sync|atom\S+|ld\.global\.cg", text),
        "rounds": re.findall(r"cvt\.\w+\.bf16\w*\.f32", text),
        "mma": len(re.findall(r"mma\.sync\S*f32\.bf16\.bf16\.f32", text)),
    }


def changing(kernel):
    """Return how Triton specialises on each argument: by value, by alignment."""
    return {
        parameter.name: [
            parameter.do_not_specialize,
            parameter.do_not_specialize_on_alignment,
        ]
        for parameter in kernel.params
        if not parameter.is_constexpr
    }


if __name__ == "__main__":
    every = {
        "token": described(token_kernel),
        "token terms": described(token_kernel, **TERMS),
        "token float8": described(token_kernel, **FP8, **TERMS),
        "token one split": described(token_kernel, SPLITS=1),
        "token stages": described(token_kernel, STAGES=3),
        "token odd": described(token_kernel, UNIT=1),
        "token sm_80": described(token_kernel, arch=80),
        "shared": described(shared_kernel),
        "shared float8": described(shared_kernel, **FP8, **TERMS),
        "shared one split": described(shared_kernel, SPLITS=1),
        "arguments": [changing(token_kernel), changing(shared_kernel)],
    }
    sys.stdout.write(json.dumps(every))
