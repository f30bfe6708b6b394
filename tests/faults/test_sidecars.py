"""Damaged sidecars and parameters: one clear error, status 2, no engine."""

from __future__ import annotations

import json
import random
import shutil

import pytest
import torch
from support import tiny

from nmsparse.config import ConfigError, SparsityConfig
from nmsparse.parameters import PARAMETERS_NAME, read_parameters, write_parameters
from nmsparse.sidecar import SIDECAR_NAME, read_sidecar, write_sidecar

DOWN = "model.layers.0.mlp.down_proj"


@pytest.fixture(scope="module")
def annotated(tmp_path_factory):
    """Return a folder with a sidecar and a parameters file."""
    folder = tiny.build(
        "llama", tmp_path_factory.mktemp("models") / "llama", num_hidden_layers=1
    )
    written = write_parameters(folder, {DOWN: {"channel_shift": torch.zeros(256)}})
    activation = {"pattern": "8:16", "mitigation": ["s_pts"]}
    groups = {"down": {"targets": [DOWN], "activation": activation}}
    data = {"groups": groups, "parameters": written.model_dump()}
    write_sidecar(folder, SparsityConfig.parse(data, source="test"))
    return folder


@pytest.fixture
def folder(annotated, tmp_path):
    return shutil.copytree(annotated, tmp_path / "copy")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"schema_version": 2, "groups": {"a": {"tar',
        b"\x00" * 64,
        b'{"groups": "\xff\xfe"}',
        b"[]",
        b'{"schema_version": "two"}',
        b'{"groups": []}',
        b'{"groups": {"a": {"targets": "Linear", "activation": {"pattern": "2:4"}}}}',
        b'{"groups": {"a": {"targets": ["Linear"], "activation": {"pattern": 8}}}}',
        b'{"groups": {"a": {"targets": ["Linear"], "activation": "8:16"}}}',
        b'{"phase": 1}',
        b"[" * 100_000,
    ],
    ids=[
        *("empty", "truncated", "zeros", "utf-8", "list", "version", "groups"),
        *("targets", "pattern", "activation", "phase", "deep"),
    ],
)
def test_a_damaged_sidecar_stops_before_the_engine(serve, folder, content):
    (folder / SIDECAR_NAME).write_bytes(content)
    status, said = serve(folder)
    assert status == 2
    assert SIDECAR_NAME in said
    assert "Expected" in said or "Input should" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("keep", [0, 20, -1], ids=["empty", "header", "last byte"])
def test_truncated_parameters_stop_before_the_engine(serve, folder, keep):
    path = folder / PARAMETERS_NAME
    path.write_bytes(path.read_bytes()[:keep])
    status, said = serve(folder)
    assert status == 2
    assert PARAMETERS_NAME in said
    assert "sha256" in said


def test_an_undamaged_folder_gets_to_the_engine(serve, folder):
    with pytest.raises(AssertionError, match="about to start"):
        serve(folder)


def test_flipped_bits_of_a_sidecar(folder):
    """Each is an error, or another valid configuration; most are errors."""
    path = folder / SIDECAR_NAME
    whole = path.read_bytes()
    rng = random.Random(0)
    refused = 0
    for _ in range(400):
        content = bytearray(whole)
        content[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
        try:
            config = read_sidecar(folder)
        except ConfigError as error:
            refused += SIDECAR_NAME in str(error)
        else:
            assert json.loads(config.to_json())
    assert refused > 200


def test_every_flipped_bit_of_the_parameters_is_refused(folder):
    config = read_sidecar(folder)
    path = folder / PARAMETERS_NAME
    whole = path.read_bytes()
    rng = random.Random(0)
    for _ in range(100):
        content = bytearray(whole)
        content[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
        with pytest.raises(ConfigError, match="has sha256"):
            read_parameters(folder, config.parameters)
