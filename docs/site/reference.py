"""Write the pages that follow from code; ``--check`` compares them with it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import commands
import recipes
import schema

DOCS = Path(__file__).resolve().parent.parent
PAGES = {
    "recipes.md": recipes.page,
    "reference/cli.md": commands.page,
    "reference/schema.md": schema.page,
}


def main() -> int:
    """Write or check all pages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    differs = 0
    for name, page in PAGES.items():
        file = DOCS / name
        text = page()
        if file.is_file() and file.read_text(encoding="utf-8") == text:
            continue
        if check:
            sys.stderr.write(f"docs/{name} differs: run docs/site/reference.py\n")
            differs = 1
        else:
            file.write_text(text, encoding="utf-8")
    return differs


if __name__ == "__main__":
    sys.exit(main())
