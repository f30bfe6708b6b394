"""Compiled kernels are loaded only from a folder nobody else can write to."""

from __future__ import annotations

import os
import tempfile

import pytest

from nmsparse.native import private
from nmsparse.native.private import make_private, not_ours
from vllm_sparse import table


def mode(path):
    return path.stat().st_mode & 0o777


def test_a_new_folder_is_private(tmp_path):
    old = os.umask(0)
    try:
        make_private(tmp_path / "a" / "native")
    finally:
        os.umask(old)
    assert mode(tmp_path / "a" / "native") == 0o700


@pytest.mark.parametrize("open_to", [0o770, 0o777, 0o702])
def test_a_folder_others_could_write_to_is_closed_and_emptied(
    tmp_path, open_to, caplog
):
    (tmp_path / "planted.so").write_bytes(b"\x7fELF")
    (tmp_path / "link.so").symlink_to("/bin/true")
    tmp_path.chmod(open_to)
    make_private(tmp_path)
    assert mode(tmp_path) == 0o700
    assert list(tmp_path.iterdir()) == []
    assert "others could write" in caplog.text


def test_a_private_folder_keeps_its_content(tmp_path):
    (tmp_path / "ours.so").write_bytes(b"x")
    tmp_path.chmod(0o755)
    make_private(tmp_path)
    assert (tmp_path / "ours.so").exists()


def test_a_folder_of_another_user_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(private, "_trusted", lambda: (tmp_path.stat().st_uid + 1, -1))
    with pytest.raises(PermissionError, match="belongs to user"):
        make_private(tmp_path)


def test_an_object_that_is_a_link_is_not_ours(tmp_path, monkeypatch):
    real = tmp_path / "real.so"
    real.write_bytes(b"x")
    assert not_ours(real) is None
    assert not_ours(tmp_path / "missing.so") is None
    link = tmp_path / "link.so"
    link.symlink_to(real)
    assert "no file of this user" in not_ours(link)
    monkeypatch.setattr(private, "_trusted", lambda: (real.stat().st_uid + 1, -1))
    assert "no file of this user" in not_ours(real)


@pytest.mark.parametrize("planted", ["open folder", "file", "link"])
def test_tables_without_a_home_are_not_read_from_a_planted_folder(
    planted, monkeypatch, tmp_path
):
    def no_home():
        raise RuntimeError("no home")

    for name in (table.CACHE_ENV, "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(table.Path, "home", no_home)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    ours = tmp_path / f"vllm-sparse-{os.geteuid()}"
    if planted == "file":
        ours.touch()
    elif planted == "link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        ours.symlink_to(tmp_path / "elsewhere")
    else:
        ours.mkdir()
        ours.chmod(0o777)
    table._temporary_folder.cache_clear()
    folder = table.cache_folder()
    table._temporary_folder.cache_clear()
    assert not folder.is_relative_to(tmp_path)
    cache = table.TableCache(folder, {})
    cache.put("x", {1: {"dense": 1.0}})  # says that it cannot, and goes on
    assert cache.get("x") is None or not cache.path.exists()
