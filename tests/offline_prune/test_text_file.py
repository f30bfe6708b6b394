"""Text files appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from offline_prune.text_file import write_text


def test_writes_text_as_it_is(tmp_path):
    path = write_text(tmp_path / "a.md", "é\r\nb\n")
    assert path.read_bytes() == "é\r\nb\n".encode()
    assert path.stat().st_mode & 0o777 == 0o644
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.md"]


def test_failure_keeps_the_earlier_file(tmp_path, monkeypatch):
    path = write_text(tmp_path / "a.md", "before")

    def fail(self, target):
        raise OSError("no space left")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        write_text(path, "after")
    assert path.read_text() == "before"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.md"]
