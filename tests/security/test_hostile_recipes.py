"""Recipes and model folders that an operator got from somebody else."""

from __future__ import annotations

import json

import pytest
import torch
import yaml
from safetensors.torch import save_file

from offline_prune.annotation import copy_model
from offline_prune.errors import InputError
from offline_prune.packing.folder import ModelFolder
from offline_prune.recipes import read_recipe, recipe_names, recipe_text
from offline_prune.report.card import split_card
from offline_prune.yaml_text import load_yaml

BOMB = "\n".join(
    ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
)
FAULTS = [
    *(
        BOMB,
        "x: !!python/object/apply:os.system ['true']",
        "x: !!python/name:os.system",
    ),
    *("x: 2020-13-45", "x: !!int ''", "x: !!bool x", "x: !!timestamp x"),
    *("[" * 1200, "x: 1\nx: 2", "? [a]\n: b", "x: " + "9" * 5000, "a: x" * 200_000),
]


@pytest.mark.parametrize("text", FAULTS, ids=range(len(FAULTS)))
def test_a_hostile_recipe_is_refused(tmp_path, text):
    with pytest.raises(yaml.YAMLError):
        load_yaml(text)
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match="cannot be read") as caught:
        read_recipe(path)
    assert len(str(caught.value)) < 5000
    head = text.partition("\n---\n")[0]
    card = f"---\n{head}\n---\nText"
    assert split_card(card) == ({}, card)


def test_our_recipes_are_read_as_before():
    for name in recipe_names():
        assert load_yaml(recipe_text(name)) == yaml.safe_load(recipe_text(name))


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "model"
    path.mkdir()
    save_file({"x": torch.ones(1)}, path / "model.safetensors")
    (path / "config.json").write_text('{"model_type": "llama"}')
    return path


def test_a_private_file_is_not_copied_into_an_output(folder, tmp_path):
    secret = tmp_path / "id_ed25519"
    secret.write_text("private")
    (folder / "notes.txt").symlink_to(secret)
    with pytest.raises(InputError, match="outside the folder"):
        ModelFolder.open(folder).others()
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="outside the folder"):
        copy_model(folder, tmp_path / "out", label="x")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": ' + "9" * 5000 + "}", "\x1b"])
def test_a_hostile_config_is_an_error_of_ours(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(InputError, match="cannot be read"):
        ModelFolder.open(folder)


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "/etc/passwd", "..", "a\0b", 3]
)
def test_an_index_cannot_name_files_elsewhere(folder, name):
    index = {"weight_map": {"x": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="names of files beside it"):
        ModelFolder.open(folder)
