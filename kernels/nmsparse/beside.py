"""Files of a model folder: what may be named, what may be read, what may be copied."""

from __future__ import annotations

from pathlib import Path

from nmsparse.errors import printable


def is_plain(name: str) -> bool:
    """Return whether ``name`` is the name of a file, without any directories."""
    # printable: no NUL, no lone surrogate, nothing that changes how it is shown
    special = name in ("", ".", "..") or any(c in name for c in "/\\")
    return not special and name.isprintable() and len(name) <= 255


def beside(folder: Path, name: str) -> Path:
    """Return ``folder / name``, to be read; it need not exist.

    It may be a symbolic link to anywhere: shared stores and the Hub cache have such
    folders, and who can make a link there can as well put a file there.

    Args:
        folder: a model folder.
        name: as a file of that folder gives it.

    Raises:
        ValueError: if the name has directories, or is one of a folder, pipe or device,
            or of a link that leads nowhere.
    """
    if not is_plain(name):
        raise ValueError(
            f"File name '{printable(name, limit=80)}' is invalid. Expected the name of "
            "a file in the same folder, without directories."
        )
    path = folder / name
    try:
        missing, plain = not path.exists(), path.is_file()
    except OSError as error:  # such as a folder that this user may not enter
        raise ValueError(f"{printable(path)} cannot be read ({error}).") from None
    if missing and path.is_symlink():
        raise ValueError(
            f"{printable(path)} is a link that leads nowhere. Expected a file, or a "
            "link to one: mount what it points to, or copy the folder again."
        )
    if not (missing or plain):  # opening a pipe would wait
        raise ValueError(f"{printable(path)} is no file. Expected a plain file.")
    return path


def check_link(folder: Path, path: Path) -> None:
    """Refuse to copy what a symbolic link out of a model folder points to.

    A folder of others must not bring private files into an output that is published.
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
            "Expected a file in the folder, because it is copied into the output: "
            "replace the link by what it points to (cp -rL copies a folder so)."
        )
