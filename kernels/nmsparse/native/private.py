"""The folder of compiled kernels: what lies in it runs in this process.

Hashes beside the objects guard against damage only. What guards against other users is
that nobody else can write here. Standard library only.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)

_OTHERS = stat.S_IWGRP | stat.S_IWOTH
# A folder that was closed and is not empty yet has the sticky bit, which means nothing
# where one user alone writes: who is killed in between leaves no planted file trusted.
_CLOSING, _CLOSED = 0o1700, 0o700
_LOCK_S = 30.0
_NO_LOCKS = {errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


def make_private(folder: Path) -> None:
    """Make ``folder`` if need be, and see to it that only this user can write in it.

    A folder of ours that others could write to (a volume whose group Kubernetes sets,
    an old umask) is closed and emptied: what is in it may be theirs. A folder that root
    made, in an image, will do as well. Of processes that start together one empties it,
    and the others wait for that.

    Raises:
        PermissionError: if it belongs to another user, or stays open to others.
        OSError: if it cannot be made or closed.
    """
    folder.mkdir(mode=_CLOSED, parents=True, exist_ok=True)
    if _is_open(folder):
        with _locked(folder):
            if _is_open(folder):  # no other process closed it meanwhile
                _close(folder)


def _is_open(folder: Path) -> bool:
    """Return whether others can write to it, or could and it is not empty yet."""
    found = folder.stat()
    if found.st_uid not in _trusted():
        raise PermissionError(
            f"{folder} belongs to user {found.st_uid}, and this process is of user "
            f"{os.geteuid()}: what another user compiled is not loaded"
        )
    return bool(found.st_mode & (_OTHERS | stat.S_ISVTX))


def _close(folder: Path) -> None:
    """Take the folder from others, then remove what may be theirs."""
    folder.chmod(_CLOSING)
    # Some mounts (CIFS, FUSE) have one mode for all files, and ignore what is set.
    if folder.stat().st_mode & _OTHERS:
        raise PermissionError(
            f"{folder} stays open to others: its file system ignores chmod, and what "
            "another user could have compiled is not loaded"
        )
    logger.warning("CPU kernels: others could write to %s: emptied", folder)
    for path in folder.iterdir():
        if path.is_symlink() or path.is_file():
            path.unlink(missing_ok=True)
    folder.chmod(_CLOSED)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of the folder itself: a file in it would be removed.

    Raises:
        TimeoutError: if another process holds it for long.
    """
    import fcntl  # not on every system; compiled kernels are for Linux

    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        end = time.monotonic() + _LOCK_S
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > end:
                    raise TimeoutError(
                        f"{folder} is locked by another process"
                    ) from None
                time.sleep(0.05)
                continue
            except OSError as error:  # NFS has no locks of folders: go on without
                if error.errno not in _NO_LOCKS:
                    raise
            break
        yield
    finally:
        os.close(handle)


def not_ours(path: Path) -> str | None:
    """Return why an object is not trusted, although its folder is; None if it is."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(found.st_mode) or found.st_uid not in _trusted():
        return f"{path.name} is no file of this user"
    return None


def _trusted() -> tuple[int, int]:
    """Return the users whose files are loaded: this one, and root."""
    return os.geteuid(), 0
