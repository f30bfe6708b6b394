"""A folder appears whole or not at all: built beside its place, then renamed."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def staged_folder(output: Path) -> Iterator[Path]:
    """Yield an empty temporary folder that becomes ``output`` when the block succeeds.

    An existing ``output`` is replaced, so the caller must have checked that it may be.
    A failure in the block removes the temporary folder and leaves ``output`` as it was.
    Two processes may build the same ``output``: the last one to finish wins.

    Args:
        output: the final folder; its parents are made.
    """
    output = output.resolve()
    output.parent.mkdir(parents=True, exist_ok=True)
    # Beside the output, because a rename works only within one file system.
    staging = Path(tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name}.tmp-"))
    try:
        yield staging
        # mkdtemp is private to the user; a model folder is read by others.
        staging.chmod(0o777 & ~_umask())
        _sync(staging)
        _replace(staging, output)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _replace(staging: Path, output: Path) -> None:
    """Put ``staging`` in the place of ``output``, which may exist."""
    try:
        staging.rename(output)
        return
    except OSError as error:
        # A folder takes the place of nothing or of an empty folder only.
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    retired = Path(tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name}.old-"))
    output.rename(retired / output.name)
    try:
        staging.rename(output)
    except BaseException:
        (retired / output.name).rename(output)
        raise
    finally:
        shutil.rmtree(retired, ignore_errors=True)


def _sync(folder: Path) -> None:
    """Flush every file, so that no rename can outlive its content in a power cut."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def _umask() -> int:
    """Return the process's umask, which can only be read by setting it."""
    umask = os.umask(0o077)
    os.umask(umask)
    return umask
