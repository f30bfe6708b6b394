"""Folders become models: dense, pruned, packed, with and without a tokenizer."""

from __future__ import annotations

import tempfile

import pytest
import torch
from support import tiny
from support.pruned import prune

from offline_prune import InputError, pack
from offline_prune.evaluation.load import load_model


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return prune(tiny.build("llama", root / "dense"), root / "pruned", "2:4")


def test_a_packed_folder_computes_what_its_dense_folder_does(
    pruned, tmp_path, monkeypatch
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    packed = pack(pruned, output=tmp_path / "packed").folder
    loaded, expected = load_model(packed), load_model(pruned)
    assert (loaded.packed, expected.packed) == (True, False)
    assert not list((tmp_path / "temporary").iterdir()), "nothing is left behind"
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        assert torch.equal(loaded.model(ids).logits, expected.model(ids).logits)
    assert loaded.tokenizer("ab")["input_ids"] == expected.tokenizer("ab")["input_ids"]


def test_dtype_and_mode(pruned):
    assert load_model(pruned).model.dtype == torch.bfloat16
    model = load_model(pruned, dtype="float32").model
    assert model.dtype == torch.float32
    assert not model.training


def test_a_tokenizer_is_optional(tmp_path):
    folder = tiny.build("llama", tmp_path / "model")
    for path in folder.glob("*token*"):
        path.unlink()
    assert load_model(folder).tokenizer is None


def test_folders_that_cannot_be_loaded_are_named(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        load_model(tmp_path / "no")
    folder = tiny.build("llama", tmp_path / "model")
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"llama"', '"lama"'))
    with pytest.raises(InputError, match="transformers cannot load it"):
        load_model(folder)
