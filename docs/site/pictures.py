"""Draw the pictures of docs/concepts.md into docs/images/; ``--check`` compares them.

Needs matplotlib (extra ``report``). Numbers come from result rows and from the shapes
of models.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import blocks_pictures
import bytes_picture
import curves_pictures
import selection_picture
import style

PICTURES = (
    selection_picture.draw,
    bytes_picture.draw,
    blocks_pictures.draw_phases,
    blocks_pictures.draw_plugin,
    curves_pictures.draw_union,
    curves_pictures.draw_quality,
)


def main() -> int:
    """Draw all pictures, or compare them with what is there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    if not parser.parse_args().check:
        for draw in PICTURES:
            draw(style.IMAGES)
        return 0
    old = 0
    with tempfile.TemporaryDirectory() as folder:
        for draw in PICTURES:
            new = draw(Path(folder))
            there = style.IMAGES / new.name
            if not there.is_file() or there.read_bytes() != new.read_bytes():
                sys.stderr.write(f"docs/images/{new.name} differs: run pictures.py\n")
                old = 1
    return old


if __name__ == "__main__":
    sys.exit(main())
