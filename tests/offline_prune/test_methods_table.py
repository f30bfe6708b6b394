"""The table of methods: what the registries hold, in words."""

from __future__ import annotations

import importlib
import io
import sys
import types
from enum import Enum
from typing import ClassVar, Literal

import pytest
from pydantic import Field
from rich.console import Console

from nmsparse.registry import Registry
from offline_prune import methods
from offline_prune.errors import InputError
from offline_prune.options import Options


class Stand(str, Enum):
    GRAM = "gram"
    MOMENTS = "moments"


class Example(Options):
    """A method that never was."""

    name: ClassVar[str] = "example"
    title: ClassVar[str] = "An example"
    paper: ClassVar[str] = "Nobody 2026 [draft]"
    needs: ClassVar[frozenset[Stand]] = frozenset({Stand.MOMENTS, Stand.GRAM})

    share: float = Field(default=0.5, ge=0.0, description="How much [of it].")
    compare: Literal["row", "layer"] | None = Field(default=None, description="Group.")
    fast: bool = True
    sizes: list[int] = Field(default_factory=lambda: [1, 2])
    file: str


class Plain(Options):
    """A method without options and data."""

    name: ClassVar[str] = "plain"
    title: ClassVar[str] = "Nothing"
    paper: ClassVar[str] = "None"


def shown(renderable, width=120):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(renderable)
    return console.export_text()


@pytest.fixture
def rooms(monkeypatch):
    """Put two registries in the place of the real ones."""
    module = types.ModuleType("rooms_that_never_were")
    module.first, module.second = Registry("scorer"), Registry("allocator")
    module.first.add("example", Example)
    module.second.add("plain", Plain)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    places = {
        "scorer": f"{module.__name__}:first",
        "allocator": f"{module.__name__}:second",
    }
    monkeypatch.setattr(methods, "_REGISTRIES", places)


def test_describe():
    found = methods.describe("scorer", Example)
    assert (found.name, found.title) == ("example", "An example")
    assert found.summary == "A method that never was."
    assert found.needs == ("gram", "moments")
    assert [(o.name, o.type, o.default, o.description) for o in found.options] == [
        ("share", "float", "0.5", "How much [of it]."),
        ("compare", "row | layer | null", "null", "Group."),
        ("fast", "bool", "true", ""),
        ("sizes", "list[int]", "[1, 2]", ""),
        ("file", "str", "required", ""),
    ]


def test_list_and_find(rooms):
    assert [m.name for m in methods.list_methods()] == ["example", "plain"]
    assert [m.name for m in methods.list_methods("allocator")] == ["plain"]
    assert methods.find_method("plain").kind == "allocator"
    with pytest.raises(InputError, match="Did you mean: example"):
        methods.find_method("exampel")
    with pytest.raises(InputError, match="Unknown kind of method 'score'"):
        methods.list_methods("score")


def test_table_names_everything(rooms):
    text = shown(methods.methods_table(methods.list_methods()))
    for word in (
        "scorer",
        "example",
        "never was",
        "gram, moments",
        "Nobody 2026 [draft]",
        "none",
    ):
        assert word in text


def test_details_show_options_with_brackets(rooms):
    text = shown(methods.method_details(methods.find_method("example")))
    assert "How much [of it]." in text
    assert "row | layer | null" in text
    assert "It has no options." in shown(
        methods.method_details(methods.find_method("plain"))
    )


def test_real_methods_say_what_they_are():
    found = methods.list_methods()
    names = [method.name for method in found]
    assert len(set(names)) == len(names), "find_method goes by name alone"
    assert {m.kind for m in found} == {
        "scorer",
        "allocator",
        "correction",
        "channels",
        "compensation",
    }
    for method in found:
        assert method.title
        assert method.summary.endswith(".")
        assert len(method.summary) < 100
        assert method.paper
        for option in method.options:
            assert option.description, f"{method.name}.{option.name}"


def test_names_are_those_of_the_registries():
    for kind, target in methods._REGISTRIES.items():
        module, _, attribute = target.partition(":")
        registry = getattr(importlib.import_module(module), attribute)
        assert [m.name for m in methods.list_methods(kind)] == list(registry)
