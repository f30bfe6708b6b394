"""Readers written a second time, plainly, to judge what was accepted."""

from __future__ import annotations

import json

import numpy as np
from fuzzing.case import Finding

_ITEM = {"U8": 1, "F16": 2, "BF16": 2, "F32": 4}
# Type, shape and bytes of a tensor.
Stored = tuple[str, list[int], bytes]


def parse_safetensors(content: bytes) -> dict[str, Stored]:
    """Return the tensors of a file.

    Raises:
        Finding: if the file is not well formed.
    """
    size = int.from_bytes(content[:8], "little")
    if size > len(content) - 8:
        raise Finding("the header is longer than the file")
    data = content[8 + size :]
    found = {}
    for name, item in json.loads(content[8 : 8 + size]).items():
        if name == "__metadata__":
            continue
        start, stop = item["data_offsets"]
        if not 0 <= start <= stop <= len(data):
            raise Finding(f"{name} lies outside the file")
        found[name] = item["dtype"], item["shape"], data[start:stop]
    return found


def dense_bits(
    *parts: str | list[int] | bytes | tuple[int, int],
) -> np.ndarray:
    """Return the dense weight as integers ``[O, K]``, from the six parts of a pair.

    Args:
        *parts: type, shape and bytes of the bitmask; of the values; ``(O, K)``.

    Raises:
        Finding: if the two do not make a weight of that shape.
    """
    kind, size, mask, value_kind, count, content, (rows, columns) = parts
    if (
        kind != "U8"
        or size != [rows, -(-columns // 8)]
        or len(mask) != size[0] * size[1]
    ):
        raise Finding(f"a bitmask {kind} {size} for {rows} x {columns}")
    if value_kind not in ("F16", "BF16", "F32") or len(count) != 1:
        raise Finding(f"values {value_kind} {count}")
    if len(content) != count[0] * _ITEM[value_kind]:
        raise Finding("the values have another size than their shape says")
    dtype = np.int32 if value_kind == "F32" else np.int16
    values = iter(np.frombuffer(content, dtype))
    dense = np.zeros((rows, columns), dtype)
    for row in range(rows):
        for column in range(8 * size[1]):
            if mask[row * size[1] + column // 8] >> column % 8 & 1:
                if column >= columns:
                    raise Finding(f"bit {column} of {columns} is set")
                value = next(values, None)
                if value is None:
                    raise Finding("more bits than values")
                dense[row, column] = value
    if next(values, None) is not None:
        raise Finding("more values than bits")
    return dense
