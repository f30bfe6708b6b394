"""A small registry: names to lazily imported objects.

Listing names imports nothing, a duplicate raises, an unknown name gets a
did-you-mean. Criteria and op backends are found through it; scorers and allocators
of the pruner will be too.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Generic, TypeVar, cast

from nmsparse.suggest import unknown

T = TypeVar("T")


class Registry(Generic[T]):
    """Map names to objects given directly or as a lazy ``"module:attribute"``.

    Args:
        kind: what an entry is, for error messages ("criterion").
    """

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._entries: dict[str, T | str] = {}

    def add(self, name: str, target: T | str) -> None:
        """Register ``target`` under ``name``.

        Raises:
            ValueError: if the name is taken.
        """
        if name in self._entries:
            raise ValueError(
                f"{self._kind} {name!r} is registered twice "
                f"({self._entries[name]!r} and {target!r}). Choose another name."
            )
        self._entries[name] = target

    def get(self, name: str) -> T:
        """Return the object, importing it on first use.

        Raises:
            ValueError: if the name is unknown.
        """
        if name not in self._entries:
            raise ValueError(unknown(self._kind, name, self._entries))
        entry = self._entries[name]
        if isinstance(entry, str):
            module, _, attribute = entry.partition(":")
            entry = cast(T, getattr(importlib.import_module(module), attribute))
            self._entries[name] = entry
        return entry

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))
