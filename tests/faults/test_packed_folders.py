"""Damaged packed folders: refused by name before the engine starts, or seen by verify.

A damaged folder never loads with other shapes than its ``config.json`` promises.
"""

from __future__ import annotations

import json
import random
import shutil

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from nmsparse.packed_format import decode
from nmsparse.packed_manifest import (
    BITMASK,
    VALUES,
    PackedFormatError,
    PackedManifest,
)
from offline_prune.verification.verify import verify
from vllm_sparse.packed.headers import read_headers

WEIGHTS = "model.safetensors"
UP = "model.layers.0.mlp.up_proj"


@pytest.fixture
def folder(packed, tmp_path):
    return shutil.copytree(packed, tmp_path / "copy")


def header_bytes(path):
    """Return how many bytes the header of a safetensors file takes, its size too."""
    with path.open("rb") as file:
        return 8 + int.from_bytes(file.read(8), "little")


def flip(path, position, bit):
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    path.write_bytes(content)


def cut_last_byte(folder):
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:-1])


def cut_in_the_header(folder):
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes()[: header_bytes(path) // 2])


def empty(folder):
    (folder / WEIGHTS).write_bytes(b"")


def flip_the_header_size(folder):
    flip(folder / WEIGHTS, 5, 3)


def flip_the_header(folder):
    flip(folder / WEIGHTS, 8, 1)  # the brace that opens it


def another_shape(folder):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"]["modules"][UP] = [256, 120]
    path.write_text(json.dumps(config))


def fewer_rows(folder):
    tensors = load_file(folder / WEIGHTS)
    tensors[UP + BITMASK] = tensors[UP + BITMASK][:-1].clone()
    save_file(tensors, folder / WEIGHTS)


def missing_shard(folder):
    names = dict.fromkeys(load_file(folder / WEIGHTS), "model-00002.safetensors")
    index = {"metadata": {}, "weight_map": names}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))


def missing_tensor(folder):
    tensors = load_file(folder / WEIGHTS)
    del tensors[UP + VALUES]
    save_file(tensors, folder / WEIGHTS)


def text_for_a_size(folder):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"]["modules"][UP] = ["256", 128]
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (cut_last_byte, WEIGHTS),
        (cut_in_the_header, WEIGHTS),
        (empty, WEIGHTS),
        (flip_the_header_size, WEIGHTS),
        (flip_the_header, WEIGHTS),
        (another_shape, UP + BITMASK),
        (fewer_rows, UP + BITMASK),
        (missing_shard, "model-00002.safetensors"),
        (missing_tensor, UP + VALUES),
        (text_for_a_size, UP),
    ],
)
def test_damage_stops_before_the_engine(serve, folder, damage, named):
    damage(folder)
    status, said = serve(folder)
    assert status == 2
    assert named in said
    assert said.startswith("vllm-sparse serve: error: ")
    assert "Traceback" not in said


def test_an_undamaged_folder_gets_to_the_engine(serve, folder):
    with pytest.raises(AssertionError, match="about to start"):
        serve(folder)


def test_flipped_bits_of_the_header_never_change_a_shape(folder):
    """A flip is refused, or what was accepted is what ``config.json`` says."""
    path = folder / WEIGHTS
    whole = path.read_bytes()
    config = json.loads((folder / "config.json").read_text())
    manifest = PackedManifest.parse(config["quantization_config"], source="config")
    rng = random.Random(0)
    refused = 0
    for _ in range(400):
        content = bytearray(whole)
        content[rng.randrange(header_bytes(path))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
        try:
            headers = read_headers(folder)
            manifest.check_headers(headers, source="folder")
        except PackedFormatError:
            refused += 1
            continue
        finally:
            path.write_bytes(whole)
        for name, (rows, columns) in manifest.modules.items():
            assert headers[name + BITMASK] == ("U8", (rows, columns // 8))
            assert len(headers[name + VALUES][1]) == 1
    assert refused > 300


def test_every_flipped_bit_of_a_bitmask_is_refused(packed):
    with safe_open(packed / WEIGHTS, framework="pt") as file:
        bitmask, values = (file.get_tensor(UP + x) for x in (BITMASK, VALUES))
    rng = random.Random(0)
    for _ in range(300):
        damaged = bitmask.clone()
        place = rng.randrange(256), rng.randrange(16)
        damaged[place] ^= 1 << rng.randrange(8)
        with pytest.raises(PackedFormatError, match=UP):
            decode(UP, damaged, values, shape=(256, 128))


def test_verify_sees_a_flipped_bit_of_a_value(saved_packed, tmp_path):
    """No engine can see it: the file is as valid as before."""
    folder = shutil.copytree(saved_packed, tmp_path / "copy")
    assert verify(folder).ok
    flip(folder / WEIGHTS, -1, 0)
    found = verify(folder)
    assert not found.ok
    assert any(x.startswith(f"{WEIGHTS} was changed") for x in found.problems)
