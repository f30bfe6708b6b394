"""The registry: lazy entries, duplicates, unknown names."""

from __future__ import annotations

import sys

import pytest

from nmsparse.registry import Registry


def test_listing_imports_nothing():
    registry: Registry[object] = Registry("thing")
    registry.add("late", "no_such_module_anywhere:attribute")
    assert list(registry) == ["late"]
    assert "late" in registry
    assert "other" not in registry
    with pytest.raises(ModuleNotFoundError, match="no_such_module_anywhere"):
        registry.get("late")


def test_lazy_entry_is_imported_once(tmp_path, monkeypatch):
    (tmp_path / "lazy_entry_module.py").write_text("value = object()\n")
    monkeypatch.syspath_prepend(tmp_path)
    registry: Registry[object] = Registry("thing")
    registry.add("lazy", "lazy_entry_module:value")
    assert "lazy_entry_module" not in sys.modules
    first = registry.get("lazy")
    sys.modules.pop("lazy_entry_module")
    assert registry.get("lazy") is first
    assert "lazy_entry_module" not in sys.modules


def test_objects_are_returned_as_given_and_names_are_sorted():
    registry: Registry[object] = Registry("thing")
    registry.add("b", len)
    registry.add("a", max)
    assert registry.get("b") is len
    assert list(registry) == ["a", "b"]


def test_duplicate_names_both_entries():
    registry: Registry[object] = Registry("criterion")
    registry.add("magnitude", "one:a")
    with pytest.raises(
        ValueError,
        match=r"criterion 'magnitude' is registered twice \('one:a' and 'two:b'\)\. "
        "Choose another name",
    ):
        registry.add("magnitude", "two:b")
    assert list(registry) == ["magnitude"]


def test_unknown_name_gets_a_suggestion():
    registry: Registry[object] = Registry("criterion")
    registry.add("magnitude", len)
    with pytest.raises(
        ValueError, match=r"Unknown criterion 'magnitud'\. Did you mean: magnitude\?"
    ):
        registry.get("magnitud")
