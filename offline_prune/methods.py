"""Every method the pruner knows, read from the registries: for tables and help.

Nothing about a method is written here: name, title, paper, needs and options are those
of its class.
"""

from __future__ import annotations

import importlib
import inspect
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pydantic.fields import FieldInfo

from nmsparse.registry import Registry
from nmsparse.suggest import unknown
from offline_prune.errors import InputError
from offline_prune.options import Options

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

# The key of a recipe that takes a name of the registry, and where the registry is.
_REGISTRIES: Final = {
    "scorer": "offline_prune.scorers:scorers",
    "allocator": "offline_prune.allocators:allocators",
    "correction": "offline_prune.allocators:corrections",
    "channels": "offline_prune.channels:channels",
    "compensation": "offline_prune.compensation:compensations",
}


@dataclass(frozen=True, slots=True)
class MethodOption:
    """One option of a method: its name, its type and default as text, what it does."""

    name: str
    type: str
    default: str
    description: str


@dataclass(frozen=True, slots=True)
class Method:
    """One method.

    Attributes:
        kind: the key of a recipe that names it, such as ``scorer``.
        name: the value of that key.
        title: what people call it.
        summary: what it does, in a line.
        paper: where it comes from.
        needs: statistics of the linears' inputs that its defaults need; empty if none.
            A method without them may still run the model on calibration text.
        options: in the order of the class.
    """

    kind: str
    name: str
    title: str
    summary: str
    paper: str
    needs: tuple[str, ...]
    options: tuple[MethodOption, ...]


def list_methods(kind: str | None = None) -> list[Method]:
    """Return all methods, by kind, then by name.

    Imports every method, and so torch.

    Args:
        kind: ``scorer``, ``allocator``, ``correction``, ``channels`` or
            ``compensation``; None for all.

    Raises:
        InputError: if the kind is unknown.
    """
    if kind is not None and kind not in _REGISTRIES:
        raise InputError(unknown("kind of method", kind, _REGISTRIES))
    kinds = _REGISTRIES if kind is None else (kind,)
    return [describe(k, cls) for k in kinds for cls in _classes(_REGISTRIES[k])]


def find_method(name: str) -> Method:
    """Return the method called ``name``.

    Raises:
        InputError: if there is none.
    """
    methods = {method.name: method for method in list_methods()}
    if name not in methods:
        raise InputError(unknown("method", name, methods))
    return methods[name]


def describe(kind: str, cls: type[Options]) -> Method:
    """Return what a method's class says about itself."""
    needs: frozenset[Any] = getattr(cls, "needs", frozenset())
    return Method(
        kind=kind,
        name=str(getattr(cls, "name", cls.__name__.lower())),
        title=str(getattr(cls, "title", "")),
        summary=(inspect.getdoc(cls) or "").partition("\n")[0],
        paper=str(getattr(cls, "paper", "")),
        needs=tuple(sorted(str(getattr(need, "value", need)) for need in needs)),
        options=tuple(_option(k, field) for k, field in cls.model_fields.items()),
    )


def methods_table(methods: Sequence[Method]) -> Table:
    """Return one line a method, for a terminal."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for column in ("Kind", "Name", "What it does", "Statistics", "Source"):
        table.add_column(column, overflow="fold")
    previous = None
    for method in methods:
        if previous not in (None, method.kind):
            table.add_row()
        cells = (
            method.kind if method.kind != previous else "",
            method.name,
            method.summary,
            ", ".join(method.needs) or "none",
            method.paper,
        )
        # Text, because brackets are not markup here.
        table.add_row(*map(Text, cells))
        previous = method.kind
    return table


def method_details(method: Method) -> Group:
    """Return one method with all its options, for a terminal."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    head = (
        f"{method.title} ({method.kind}: {method.name})\n{method.summary}\n"
        f"Source: {method.paper}\n"
        f"Statistics of its inputs: {', '.join(method.needs) or 'none'}\n"
    )
    if not method.options:
        return Group(Text(head), Text("It has no options."))
    table = Table(box=None, pad_edge=False)
    for column in ("Option", "Type", "Default", "Meaning"):
        table.add_column(column, overflow="fold")
    for option in method.options:
        cells = (option.name, option.type, option.default, option.description)
        table.add_row(*map(Text, cells))
    return Group(Text(head), table)


def _classes(target: str) -> list[type[Options]]:
    """Return the classes of the registry ``module:attribute``, by name."""
    module, _, attribute = target.partition(":")
    registry: Registry[type[Options]] = getattr(
        importlib.import_module(module), attribute
    )
    return [registry.get(name) for name in registry]


def _option(name: str, field: FieldInfo) -> MethodOption:
    if field.is_required():
        default = "required"
    else:
        default = _text(field.get_default(call_default_factory=True))
    return MethodOption(name, _type(field.annotation), default, field.description or "")


def _text(value: Any) -> str:
    """Return a default as a recipe would write it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def _type(annotation: Any) -> str:
    """Return a type for people: choices as they are, no module names."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _type(arguments[0])
    if origin is typing.Literal:
        return " | ".join(_text(choice) for choice in arguments)
    if origin in (typing.Union, types.UnionType):
        return " | ".join(_type(part) for part in arguments)
    if annotation is type(None):
        return "null"
    if arguments:
        inner = ", ".join(_type(part) for part in arguments if part is not Ellipsis)
        return f"{getattr(origin, '__name__', origin)}[{inner}]"
    return str(getattr(annotation, "__name__", annotation))
