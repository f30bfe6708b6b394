"""The folder of compiled kernels: what lies in it runs in this process.

Hashes beside the objects guard against damage only. What guards against other users is
that nobody else can write here. Standard library only.
"""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path

logger = logging.getLogger(__name__)

_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def make_private(folder: Path) -> None:
    """Make ``folder`` if need be, and see to it that only this user can write in it.

    A folder of ours that others could write to (a volume whose group Kubernetes sets,
    an old umask) is closed and emptied: what is in it may be theirs. A folder that root
    made, in an image, will do as well.

    Raises:
        PermissionError: if it belongs to another user.
        OSError: if it cannot be made or closed.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.stat()
    if found.st_uid not in _trusted():
        raise PermissionError(
            f"{folder} belongs to user {found.st_uid}, and this process is of user "
            f"{os.geteuid()}: what another user compiled is not loaded"
        )
    if found.st_mode & _OTHERS:
        logger.warning("CPU kernels: others could write to %s: emptied", folder)
        folder.chmod(0o700)
        for path in folder.iterdir():
            if path.is_symlink() or path.is_file():
                path.unlink(missing_ok=True)


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
