"""Hostile variants of valid files: of their bytes, and of the JSON in them."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from typing import Any

DEEP = "DEEP"  # stands for a nesting that json.dumps cannot write
HUGE_INT = "HUGE"  # and for a number that Python refuses to read

# Numbers that are boundaries somewhere.
NUMBERS: list[Any] = [
    *(0, 1, -1, 2, 7, 8, 9, 63, 64, 65, 255, 65535, 65536, 65537),
    *(2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**63)),
    *(10**30, 0.5, -0.0, 1e308, float("nan"), float("inf"), float("-inf")),
]
TEXTS = [
    *("", " ", "\x00", "a\x00b", "..", "../../etc/passwd", "/etc/passwd", "a/b"),
    *("\ud800", "\U0010ffff", "é", "\u202e", "\x1b[2J", "line\nINFO forged", "re:"),
    *("re:(", "re:(a+)+$", "re:(.*a){20}x", "re:(x+x+)+y", "re:" + "(" * 300),
    *("re:(?:(?:a{99}){99}){99}", "re:a{99999999999}", "re:(?R)", "re:[", "re:.*"),
    *("8:16", "0:4", "5:4", "8:65536", "8:65537", "50%", "100%", "99.99%", "-1%"),
    *("\u0668:\u0661\u0666", "1" * 5000 + ":4", "9" * 400 + "%", "nan%", "1e5%"),
    *(
        "__import__('os')",
        "{{7*7}}",
        "${jndi:x}",
        "!!python/object:os.system",
        "x" * 9999,
    ),
]


def value(rng: random.Random) -> Any:
    """Return a hostile JSON value."""
    kind = rng.randrange(8)
    if kind < 2:
        return rng.choice(NUMBERS)
    if kind < 4:
        return rng.choice(TEXTS)
    if kind == 4:
        return rng.choice([None, True, False, [], {}, [[]], {"": None}])
    if kind == 5:
        return [rng.choice(NUMBERS) for _ in range(rng.randrange(5))]
    if kind == 6:
        return {rng.choice(TEXTS): rng.choice(TEXTS + NUMBERS)}
    return DEEP if rng.random() < 0.5 else HUGE_INT


def _places(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of every member."""
    items: Any = ()
    if isinstance(data, dict):
        items = data.items()
    elif isinstance(data, list):
        items = enumerate(data)
    found = []
    for key, member in items:
        found += [(*path, key), *_places(member, (*path, key))]
    return found


def mutate_json(rng: random.Random, seed: Any) -> str:
    """Return JSON text (or nearly) of a changed copy of ``seed``."""
    data = copy.deepcopy(seed)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = _places(data)
        if not places or rng.random() < 0.02:
            data = value(rng)
            continue
        *way, last = rng.choice(places)
        parent = data
        for key in way:
            parent = parent[key]
        change = rng.randrange(6)
        if change < 3:
            parent[last] = value(rng)
        elif change == 3:
            del parent[last]
        elif isinstance(parent, dict):
            name = rng.choice([*TEXTS, "targets", "pattern", "file", "modules", last])
            parent[name] = parent[last] if change == 4 else value(rng)
        else:
            parent.insert(rng.randrange(len(parent) + 1), value(rng))
    return _text(rng, data)


def _text(rng: random.Random, data: Any) -> str:
    text = json.dumps(data, indent=rng.choice((None, 2)))
    depth = rng.choice((40, 500, 100_000))
    text = text.replace(f'"{DEEP}"', "[" * depth + "]" * depth)
    text = text.replace(f'"{HUGE_INT}"', "9" * rng.choice((400, 5000)))
    if rng.random() < 0.05 and isinstance(data, dict) and data:  # a key twice
        key = rng.choice(list(data))
        text = (
            text[: text.rindex("}")]
            + f", {json.dumps(key)}: {rng.choice((0, [], {}))}}}"
        )
    return text


def mutate_bytes(rng: random.Random, data: bytes) -> bytes:
    """Return ``data`` with a few bytes changed, added or removed."""
    content = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        rng.choice(_CHANGES)(rng, content)
    return bytes(content)


def _flip(rng: random.Random, content: bytearray) -> None:
    if content:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)


def _number(rng: random.Random, content: bytearray) -> None:
    size = rng.choice((1, 2, 4, 8))
    number = rng.choice([x for x in NUMBERS if isinstance(x, int)]) % (1 << 8 * size)
    at = rng.randrange(max(1, len(content) - size + 1))
    content[at : at + size] = number.to_bytes(size, "little")


def _cut(rng: random.Random, content: bytearray) -> None:
    del content[rng.randrange(len(content) + 1) :]


def _remove(rng: random.Random, content: bytearray) -> None:
    at = rng.randrange(len(content) + 1)
    del content[at : at + rng.choice((1, 2, 8, 64))]


def _insert(rng: random.Random, content: bytearray) -> None:
    at = rng.randrange(len(content) + 1)
    content[at:at] = rng.randbytes(rng.choice((1, 2, 8, 64)))


def _repeat(rng: random.Random, content: bytearray) -> None:
    at = rng.randrange(len(content) + 1)
    part = content[at : at + rng.choice((1, 8, 64))]
    content[at:at] = part * rng.choice((1, 2, 50))


_CHANGES: list[Callable[[random.Random, bytearray], None]] = [
    *(_flip, _flip, _flip, _number, _cut, _remove, _insert, _repeat),
]
