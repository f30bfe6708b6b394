"""A folder in memory where there is one: a million cases would wear out a disk."""

from __future__ import annotations

import tempfile
from pathlib import Path

_MEMORY = Path("/dev/shm")


class Folder:
    """A private folder whose files are replaced for each case."""

    def __init__(self) -> None:
        root = _MEMORY if _MEMORY.is_dir() else None
        self._owner = tempfile.TemporaryDirectory(dir=root, prefix="fuzzing-")
        self.path = Path(self._owner.name)

    def fill(self, files: dict[str, bytes]) -> Path:
        """Make ``files`` the only content."""
        for path in self.path.iterdir():
            if path.name not in files:
                path.unlink()
        for name, content in files.items():
            (self.path / name).write_bytes(content)
        return self.path
