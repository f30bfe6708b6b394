"""Finished blocks on disk, so that a run that was killed goes on where it stopped.

The work folder lies beside the output. A block is one safetensors file, written whole
or not at all; nothing is kept of a block that was under way, which is pruned again from
the same numbers.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors.torch import save

from nmsparse.json_text import parse_json
from offline_prune.errors import InputError
from offline_prune.text_file import write_bytes, write_text

_RUN = "run.json"
_RECORD = "vllm_sparse"


@dataclass(frozen=True, slots=True)
class Store:
    """The work folder of a run.

    Attributes:
        path: the folder.
        writes: whether this process may write (the first of several).
    """

    path: Path
    writes: bool = True

    @classmethod
    def beside(cls, output: Path, *, writes: bool = True) -> Store:
        """Return the store that belongs to an output folder."""
        output = output.resolve()
        return cls(output.parent / f".{output.name}.work", writes)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the store, so that two runs never share it.

        Raises:
            InputError: if another process holds it.
        """
        if not self.writes:
            yield
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{self.path}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise InputError(
                f"Another run is writing to {self.path}. Expected one run an output "
                "folder: wait for it, or choose another output."
            ) from None
        try:
            yield
        finally:
            lock.release()
            Path(lock.lock_file).unlink(missing_ok=True)

    def open(self, fingerprint: Mapping[str, Any]) -> bool:
        """Make the folder, or find it as a run of the same settings left it.

        Args:
            fingerprint: JSON data that says what the blocks depend on.

        Returns:
            Whether there is something to resume.

        Raises:
            InputError: if it belongs to a run with other settings.
        """
        text = json.dumps(fingerprint, sort_keys=True, indent=1)
        try:
            before = (self.path / _RUN).read_text(encoding="utf-8")
        except FileNotFoundError:
            if self.writes:
                self.path.mkdir(parents=True, exist_ok=True)
                write_text(self.path / _RUN, text)
            return False
        if before != text:
            changed = _difference(before, fingerprint)
            raise InputError(
                f"{self.path} is left from a run with other settings ({changed}). "
                "Expected the same, to go on with it: repeat that command, or start "
                "anew with --restart."
            )
        return True

    def remove(self) -> None:
        """Remove the folder."""
        if self.writes:
            shutil.rmtree(self.path, ignore_errors=True)

    def save(
        self, index: int, tensors: Mapping[str, torch.Tensor], record: Mapping[str, Any]
    ) -> None:
        """Write a finished block."""
        if not self.writes:
            return
        content = save(dict(tensors), metadata={_RECORD: json.dumps(record)})
        digest = hashlib.sha256(content).digest()
        # The hash comes last: a file that a full disk or a crash cut short lacks it.
        write_bytes(self._file(index), content + digest)

    def load(self, index: int) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
        """Return a finished block's tensors and record; None if it is not there."""
        path = self._file(index)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        body, digest = content[:-32], content[-32:]
        if hashlib.sha256(body).digest() != digest:
            return None
        from safetensors.torch import load

        # safetensors' load gives no metadata; its header is JSON after eight bytes.
        size = int.from_bytes(body[:8], "little")
        header = json.loads(body[8 : 8 + size])
        return load(body), json.loads(header["__metadata__"][_RECORD])

    def note(self, name: str, data: Mapping[str, Any]) -> None:
        """Write JSON data under a name."""
        if self.writes:
            write_text(self.path / f"{name}.json", json.dumps(data))

    def noted(self, name: str) -> dict[str, Any] | None:
        """Return JSON data written by :meth:`note`; None if there is none."""
        try:
            text = (self.path / f"{name}.json").read_text(encoding="utf-8")
            data: dict[str, Any] = parse_json(text)
        except (FileNotFoundError, ValueError):
            return None
        return data

    def _file(self, index: int) -> Path:
        return self.path / f"block-{index:05d}.bin"


def _difference(before: str, fingerprint: Mapping[str, Any]) -> str:
    """Name the first setting that changed."""
    try:
        old = json.loads(before)
    except ValueError:
        return "its record is damaged"
    return _changed(old, json.loads(json.dumps(fingerprint)), "")


def _changed(old: Any, new: Any, where: str) -> str:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            if old.get(key) != new.get(key):
                name = f"{where}.{key}" if where else key
                return _changed(old.get(key), new.get(key), name)
    return f"{where}: {old!r} before, {new!r} now"
