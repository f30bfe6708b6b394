"""SHA-256 in pieces."""

from __future__ import annotations

import hashlib

import pytest

from offline_prune import checksum


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 1000])
def test_is_the_hash_of_the_whole_file(tmp_path, monkeypatch, size):
    monkeypatch.setattr(checksum, "_PIECE", 8)
    content = bytes(i % 251 for i in range(size))
    path = tmp_path / "file"
    path.write_bytes(content)
    seen = []
    found = checksum.sha256_of(path, advance=seen.append)
    assert found == hashlib.sha256(content).hexdigest()
    assert sum(seen) == size
