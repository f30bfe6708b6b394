"""Folders whose files are links: read as they are, and not copied from elsewhere."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from nmsparse import sparsify
from nmsparse.config import ConfigError, SparsityConfig
from nmsparse.parameters import read_parameters, write_parameters
from nmsparse.pattern import NMPattern
from nmsparse.sidecar import SIDECAR_NAME, read_sidecar, write_sidecar
from offline_prune.annotation import annotate, copy_model
from offline_prune.errors import InputError
from offline_prune.packing import pack
from offline_prune.packing.folder import ModelFolder
from vllm_sparse.options import resolve_options
from vllm_sparse.packed.headers import read_headers
from vllm_sparse.plan.stored import read_model

MODULE = "model.layers.0.mlp.up_proj"
INDEX = "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def local_dir(store, folder):
    """Link to the blobs of the cache: ``local_dir`` of older huggingface_hub."""
    blobs = store / "hub" / "models--org--name" / "blobs"
    blobs.mkdir(parents=True)
    folder.mkdir()
    for number, path in enumerate(sorted(store.glob("files/*"))):
        path.rename(blobs / f"{number:064x}")
        (folder / path.name).symlink_to(blobs / f"{number:064x}")


def shared_store(store, folder):
    """Link to a folder that a volume mounts, by relative paths."""
    folder.mkdir()
    for path in store.glob("files/*"):
        (folder / path.name).symlink_to(f"../{store.name}/files/{path.name}")


@pytest.fixture(params=[local_dir, shared_store], ids=lambda layout: layout.__name__)
def linked(request, tmp_path):
    """A folder of links to config, index, two weight files, sidecar and parameters."""
    store = tmp_path / "store"
    files = store / "files"
    files.mkdir(parents=True)
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    sizes = {"hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": 1}
    config |= sizes | {"num_attention_heads": 2, "vocab_size": 8}
    (files / "config.json").write_text(json.dumps(config))
    weight = sparsify(torch.randn(16, 32), NMPattern(2, 4))
    save_file({f"{MODULE}.weight": weight}, files / SHARDS[0])
    save_file({"model.norm.weight": torch.ones(32)}, files / SHARDS[1])
    names = {f"{MODULE}.weight": SHARDS[0], "model.norm.weight": SHARDS[1]}
    (files / INDEX).write_text(json.dumps({"weight_map": names}))
    parameters = write_parameters(files, {MODULE: {"channel_shift": torch.ones(32)}})
    sparse = SparsityConfig.uniform("8:16")
    write_sidecar(files, sparse.model_copy(update={"parameters": parameters}))
    folder = tmp_path / "model"
    request.param(store, folder)
    assert all(path.is_symlink() for path in folder.iterdir())
    return folder


def test_a_linked_sidecar_and_its_parameters_are_read(linked):
    found = resolve_options(None, linked)
    assert found.config == read_sidecar(linked)
    read = read_parameters(found.folder, found.config.parameters)
    assert torch.equal(read[MODULE]["channel_shift"], torch.ones(32))


def test_the_hash_holds_for_what_a_link_points_to(linked):
    config = read_sidecar(linked)
    path = linked / config.parameters.file
    path.resolve().write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(ConfigError, match="has sha256"):
        read_parameters(linked, config.parameters)


def test_linked_dense_weights_are_planned(linked):
    expected = {
        f"{MODULE}.weight": ("F32", (16, 32)),
        "model.norm.weight": ("F32", (32,)),
    }
    assert read_headers(linked) == expected
    assert read_model(str(linked)).tensors == expected
    (linked / INDEX).unlink()
    assert read_headers(linked) == expected


def test_linked_weights_are_packed_and_the_packed_ones_read(linked, tmp_path):
    for name in ("config.json", INDEX):
        content = (linked / name).read_bytes()
        (linked / name).unlink()
        (linked / name).write_bytes(content)
    for name in (SIDECAR_NAME, read_sidecar(linked).parameters.file):
        (linked / name).unlink()
    packed = tmp_path / "packed"
    pack(linked, output=packed)
    assert not any(path.is_symlink() for path in packed.iterdir())
    assert f"{MODULE}.weight_bitmask" in load_file(packed / SHARDS[0])
    again = tmp_path / "again"
    again.mkdir()
    for path in packed.iterdir():
        (again / path.name).symlink_to(path)
    assert read_headers(again) == read_headers(packed)


@pytest.mark.parametrize("name", ["config.json", INDEX, SIDECAR_NAME])
def test_what_is_copied_is_not_brought_in_by_a_link(linked, tmp_path, name):
    for path in [*linked.iterdir()]:
        if path.name != name:
            content = path.read_bytes()
            path.unlink()
            path.write_bytes(content)
    model = ModelFolder.open(linked)
    assert len(model.headers()) == 2
    assert len(model.names()) == 2
    with pytest.raises(InputError, match=r"outside the folder.*cp -rL"):
        model.others()
    with pytest.raises(InputError, match="outside the folder"):
        copy_model(linked, tmp_path / "out", label="x")
    # In place nothing is copied: the new sidecar is a file of the folder.
    annotate(linked, pattern="2:4")
    assert not (linked / SIDECAR_NAME).is_symlink()


@pytest.mark.parametrize("target", ["/etc", "."])
def test_a_linked_folder_is_not_copied(tmp_path, target):
    source = tmp_path / "model"
    source.mkdir()
    (source / "folder").symlink_to(target)
    with pytest.raises(InputError, match=r"outside the folder|link to a folder"):
        copy_model(source, tmp_path / "out", label="x")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["../store/files/x", "/etc/passwd"])
def test_a_name_in_an_index_stays_in_a_linked_folder(linked, name):
    (linked / INDEX).unlink()
    (linked / INDEX).write_text(json.dumps({"weight_map": {"x": name}}))
    with pytest.raises(ValueError, match="without directories"):
        read_headers(linked)
    with pytest.raises(InputError, match="names of files beside it"):
        ModelFolder.open(linked)
