from __future__ import annotations

import os
import stat

import pytest

from offline_prune.staging import staged_folder


def test_output_appears_only_at_the_end(tmp_path):
    output = tmp_path / "a" / "b"
    with staged_folder(output) as staging:
        (staging / "file").write_text("new")
        assert not output.exists()
        assert staging.parent == output.parent
    assert (output / "file").read_text() == "new"
    assert [path.name for path in output.parent.iterdir()] == ["b"]


def test_failure_keeps_what_was_there(tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    (output / "file").write_text("old")

    def build():
        with staged_folder(output) as staging:
            (staging / "file").write_text("new")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        build()
    assert (output / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_old_output_is_replaced_whole(tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    (output / "stale").write_text("old")
    with staged_folder(output) as staging:
        (staging / "file").write_text("new")
    assert [path.name for path in output.iterdir()] == ["file"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_last_of_two_builders_wins(tmp_path):
    output = tmp_path / "out"
    with staged_folder(output) as slow:
        (slow / "file").write_text("slow")
        with staged_folder(output) as fast:
            (fast / "file").write_text("fast")
        assert (output / "file").read_text() == "fast"
    assert (output / "file").read_text() == "slow"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_others_may_read_the_folder_as_the_umask_allows(tmp_path):
    previous = os.umask(0o027)
    try:
        with staged_folder(tmp_path / "out"):
            pass
    finally:
        os.umask(previous)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o750
