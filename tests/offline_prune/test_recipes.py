"""Recipes that come with the package are valid, and say when to use them."""

from __future__ import annotations

import re

import pytest
import yaml

from offline_prune.config import PruneConfig
from offline_prune.errors import InputError
from offline_prune.methods import find_method
from offline_prune.recipes import recipe_names, recipe_text

NAMES = recipe_names()


def test_there_are_some():
    assert {"wanda-50", "sparsegpt-2of4", "owl-70"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_is_a_configuration(name):
    PruneConfig.parse(yaml.safe_load(recipe_text(name)), source=name)


@pytest.mark.parametrize("name", NAMES)
def test_options_belong_to_their_methods(name):
    data = yaml.safe_load(recipe_text(name))
    options = dict(data.get("compensation_options") or {})
    for key in ("scorer", "allocator", "correction", "channels"):
        if data.get(key):
            prefix = "channel" if key == "channels" else key
            options[data[key]] = data.get(f"{prefix}_options") or {}
    for method, given in options.items():
        known = {option.name for option in find_method(method).options}
        assert set(given) <= known, method


@pytest.mark.parametrize("name", NAMES)
def test_header_says_when_and_from_where(name):
    text = recipe_text(name)
    header = text[: text.index("\nscorer:")]
    assert all(line.startswith("# ") for line in header.splitlines())
    assert re.search(r"^# When: ", header, re.M)
    assert re.search(r"^# Papers?: ", header, re.M)
    assert max(map(len, text.splitlines())) <= 88


@pytest.mark.parametrize("name", NAMES)
def test_name_says_the_target(name):
    config = PruneConfig.parse(yaml.safe_load(recipe_text(name)), source=name)
    if config.nm is not None:
        assert config.nm.slug in name
    else:
        assert name.endswith(f"-{100 * config.sparsity:.0f}")


def test_name_with_suffix_and_unknown_name():
    assert recipe_text("wanda-50.yaml") == recipe_text("wanda-50")
    with pytest.raises(InputError, match="Did you mean: wanda-50"):
        recipe_text("wanda50")
