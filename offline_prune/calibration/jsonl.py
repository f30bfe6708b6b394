"""JSON Lines, read row by row: only the rows that are drawn are parsed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

from nmsparse.json_text import parse_json
from offline_prune.errors import InputError

Row = dict[str, Any]


class JsonlRows(Sequence[tuple[str, Row]]):
    """The rows of a file, each with its place: a file of C4 has 356,000.

    Args:
        path: a file with one JSON object a line; blank lines are passed over.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines: list[tuple[int, int]] = []  # line number and offset
        offset = 0
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    self._lines.append((number, offset))
                offset += len(line)

    def __len__(self) -> int:
        return len(self._lines)

    @overload
    def __getitem__(self, index: int) -> tuple[str, Row]: ...

    @overload
    def __getitem__(self, index: slice) -> list[tuple[str, Row]]: ...

    def __getitem__(
        self, index: int | slice
    ) -> tuple[str, Row] | list[tuple[str, Row]]:
        """Parse one row, or several.

        Raises:
            InputError: if the line is no JSON object.
        """
        if isinstance(index, slice):
            return [self[item] for item in range(*index.indices(len(self)))]
        number, offset = self._lines[index]
        with self._path.open("rb") as file:
            file.seek(offset)
            line = file.readline()
        place = f"{self._path}, line {number}"
        try:
            row = parse_json(line)
        except ValueError as error:
            raise InputError(
                f"{place}: no JSON ({error}). Expected one JSON object a line: mend or "
                "remove the line."
            ) from error
        return place, check_row(row, place=place)


def read_json(path: Path) -> list[tuple[str, Row]]:
    """Return the rows of a file with one JSON array of objects.

    Raises:
        InputError: if it holds anything else.
    """
    try:
        data = parse_json(path.read_bytes())
    except ValueError as error:
        raise InputError(
            f"{path}: no JSON ({error}). Expected an array of objects; a file with one "
            "object a line must be named .jsonl."
        ) from error
    if not isinstance(data, list):
        raise InputError(
            f"{path}: found a JSON {type(data).__name__}. Expected an array of "
            "objects: [{...}, {...}]"
        )
    rows = ((f"{path}, item {index}", row) for index, row in enumerate(data))
    return [(place, check_row(row, place=place)) for place, row in rows]


def check_row(row: Any, *, place: str) -> Row:
    """Return the row if it is an object.

    Raises:
        InputError: if not.
    """
    if not isinstance(row, dict):
        raise InputError(
            f"{place}: found a JSON {type(row).__name__}. Expected an object, such as "
            '{"text": "..."}.'
        )
    return row
