"""Compiled kernels are loaded only from a folder nobody else can write to."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

import pytest

from nmsparse.native import build, isa, private
from nmsparse.native.compiler import BuildError, Compiler
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


def test_a_folder_that_cannot_be_closed_is_refused_and_left_as_it_is(
    tmp_path, monkeypatch
):
    # As on a mount that ignores chmod: other processes may be at work here.
    folder = tmp_path / "vllm-sparse" / "native"
    folder.mkdir(parents=True)
    (folder / "theirs.lock").touch()
    folder.chmod(0o777)
    monkeypatch.setattr(private.Path, "chmod", lambda *_: None)
    for _ in range(2):
        with pytest.raises(PermissionError, match="ignores chmod"):
            make_private(folder)
    assert [path.name for path in folder.iterdir()] == ["theirs.lock"]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compiler = Compiler(("c++",), "c++ 1")
    with pytest.raises(BuildError, match=r"ignores chmod.*set XDG_CACHE_HOME"):
        build.cached(isa.supported()[0], compiler=compiler)


def test_a_process_killed_while_it_empties_leaves_no_trusted_file(
    tmp_path, monkeypatch
):
    (tmp_path / "planted.so").write_bytes(b"\x7fELF")
    tmp_path.chmod(0o770)

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(private.Path, "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            make_private(tmp_path)
    assert mode(tmp_path) == 0o700, "closed already"
    assert (tmp_path / "planted.so").exists()
    make_private(tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "ours.so").write_bytes(b"x")
    make_private(tmp_path)
    assert (tmp_path / "ours.so").exists()


def test_of_processes_that_start_together_one_empties_the_folder(tmp_path):
    # Each compiles at once after it found the folder private: what it made must stay.
    code = (
        "import sys; from pathlib import Path; from nmsparse.native.private import *\n"
        "folder = Path(sys.argv[1]); sys.stdin.read(1); make_private(folder)\n"
        "assert not (folder / 'planted0.so').exists()\n"
        "(folder / f'ours{sys.argv[2]}').touch()\n"
    )
    for number in range(300):
        (tmp_path / f"planted{number}.so").touch()
    tmp_path.chmod(0o770)
    command = [sys.executable, "-c", code, str(tmp_path)]
    started = [
        subprocess.Popen([*command, str(number)], stdin=subprocess.PIPE)
        for number in range(4)
    ]
    for process in started:
        process.stdin.close()
    assert [process.wait(60) for process in started] == [0] * 4
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"ours{number}" for number in range(4)
    ]


def test_a_folder_that_stays_locked_is_refused(tmp_path, monkeypatch):
    tmp_path.chmod(0o770)
    monkeypatch.setattr(private, "_LOCK_S", 0.1)
    with private._locked(tmp_path), pytest.raises(TimeoutError, match="is locked"):
        make_private(tmp_path)
    make_private(tmp_path)
    assert mode(tmp_path) == 0o700


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
