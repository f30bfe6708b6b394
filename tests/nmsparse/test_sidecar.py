"""The sidecar file: whole or not at all, readable by others, and clear errors."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from nmsparse.config import ConfigError, SparsityConfig
from nmsparse.sidecar import SIDECAR_NAME, read_config, read_sidecar, write_sidecar

CONFIG = SparsityConfig.uniform("8:16")


def test_round_trip(tmp_path):
    path = write_sidecar(tmp_path, CONFIG)
    assert path == tmp_path / SIDECAR_NAME
    assert read_sidecar(tmp_path) == CONFIG
    assert read_config(path) == CONFIG
    assert json.loads(path.read_text())["groups"]["default"]["activation"] == {
        "pattern": "8:16",
        "criterion": "magnitude",
        "mitigation": [],
    }


def test_a_second_write_replaces_the_first(tmp_path):
    write_sidecar(tmp_path, CONFIG)
    other = SparsityConfig.uniform("2:4")
    write_sidecar(tmp_path, other)
    assert read_sidecar(tmp_path) == other
    assert [path.name for path in tmp_path.iterdir()] == [SIDECAR_NAME]


@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path, monkeypatch, step
):
    write_sidecar(tmp_path, CONFIG)
    before = (tmp_path / SIDECAR_NAME).read_bytes()

    def fail(*args, **kwargs):
        raise OSError("disk full")

    def open_on_a_full_disk(handle, *args, **kwargs):
        os.write(handle, b'{"groups": ')
        os.close(handle)
        fail()

    if step == "write":
        monkeypatch.setattr(os, "fdopen", open_on_a_full_disk)
    elif step == "fsync":
        monkeypatch.setattr(os, "fsync", fail)
    else:
        monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_sidecar(tmp_path, SparsityConfig.uniform("2:4"))
    assert [path.name for path in tmp_path.iterdir()] == [SIDECAR_NAME]
    assert (tmp_path / SIDECAR_NAME).read_bytes() == before


def test_the_file_is_readable_by_others(tmp_path):
    old = os.umask(0o077)
    try:
        path = write_sidecar(tmp_path, CONFIG)
    finally:
        os.umask(old)
    assert path.stat().st_mode & 0o777 == 0o644


def test_the_file_replaces_a_link_and_not_its_target(tmp_path):
    # Model folders of the hub cache are links into a shared blob store.
    blob = tmp_path / "blob"
    blob.write_text("{}")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / SIDECAR_NAME).symlink_to(blob)
    write_sidecar(folder, CONFIG)
    assert blob.read_text() == "{}"
    assert read_sidecar(folder) == CONFIG


def test_no_sidecar(tmp_path):
    assert read_sidecar(tmp_path) is None
    assert read_sidecar(tmp_path / "missing") is None


def test_missing_file(tmp_path):
    path = tmp_path / "none.json"
    with pytest.raises(
        ConfigError, match=rf"Sparsity config {path} does not exist\. .*check the path"
    ):
        read_config(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", r"cannot be read \(.*\)\. Expected a JSON file"),
        (b"", "cannot be read"),
        (b"\xff\xfe", "cannot be read .*codec"),
        (b"[1]", r"holds a list\. Expected a JSON object"),
        (b"null", r"holds a NoneType\. Expected a JSON object"),
        (b'{"grups": {}}', r"Unknown key 'grups'\. Did you mean: groups\?"),
    ],
    ids=["broken", "empty", "binary", "list", "null", "unknown key"],
)
def test_unusable_content_names_the_file(tmp_path, content, message):
    path = tmp_path / SIDECAR_NAME
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        read_sidecar(tmp_path)
    assert str(path) in str(caught.value)


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        read_config(tmp_path)


def test_write_needs_an_existing_folder(tmp_path):
    folder = tmp_path / "missing"
    with pytest.raises(
        ConfigError,
        match=rf"Model folder {folder} does not exist\. Expected an existing",
    ):
        write_sidecar(folder, CONFIG)
    assert not folder.exists()
