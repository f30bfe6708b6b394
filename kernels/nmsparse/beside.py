"""A file that another file names: only one in the same folder."""

from __future__ import annotations

from pathlib import Path

from nmsparse.errors import printable


def is_plain(name: str) -> bool:
    """Return whether ``name`` is the name of a file, without any directories."""
    # printable: no NUL, no lone surrogate, nothing that changes how it is shown
    special = name in ("", ".", "..") or any(c in name for c in "/\\")
    return not special and name.isprintable() and len(name) <= 255


def beside(folder: Path, name: str) -> Path:
    """Return ``folder / name``, which need not exist.

    Args:
        folder: a model folder.
        name: as a file of that folder gives it.

    Raises:
        ValueError: if the name has directories, or is a symbolic link that leads out of
            the folder.
    """
    if not is_plain(name):
        raise ValueError(
            f"File name '{printable(name, limit=80)}' is invalid. Expected the name of "
            "a file in the same folder, without directories."
        )
    path = folder / name
    check_link(folder, path)
    return path


def check_link(folder: Path, path: Path) -> None:
    """Refuse a symbolic link that leads out of a model folder.

    The Hugging Face cache, whose snapshots are links to the blobs of the repository, is
    one folder in this sense.

    Args:
        folder: the model folder.
        path: a file in it, or below it.

    Raises:
        ValueError: if it leads elsewhere.
    """
    try:
        home = folder.resolve()
        real = path.resolve()
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        raise ValueError(f"{printable(path)} cannot be followed ({error}).") from None
    places = [home]
    if home.parent.name == "snapshots":
        places.append(home.parent.parent / "blobs")
    if not any(real.is_relative_to(place) for place in places):
        raise ValueError(
            f"{printable(path)} is a link to {printable(real)}, outside the folder. "
            "Expected a file in the folder: replace the link by a copy."
        )
