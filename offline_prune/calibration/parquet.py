"""Parquet files, through pyarrow."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, overload

from offline_prune.errors import InputError, MissingDependencyError

Row = dict[str, Any]


class ParquetRows(Sequence[tuple[str, Row]]):
    """The rows of a file, each with its place.

    Args:
        path: a parquet file.

    Raises:
        MissingDependencyError: if pyarrow is not installed.
        InputError: if it is no parquet file.
    """

    def __init__(self, path: Path) -> None:
        try:
            pyarrow: Any = import_module("pyarrow")
            parquet: Any = import_module("pyarrow.parquet")
        except ImportError as error:
            raise MissingDependencyError(
                f"{path}: parquet needs the package pyarrow, which is not installed. "
                "Expected: pip install pyarrow; or convert the file to .jsonl."
            ) from error
        self._path = path
        try:
            self._table: Any = parquet.read_table(path)
        except pyarrow.ArrowException as error:
            raise InputError(
                f"{path}: no parquet file ({error}). Expected one, whole: copy or "
                "download it again."
            ) from error

    def __len__(self) -> int:
        return int(self._table.num_rows)

    @overload
    def __getitem__(self, index: int) -> tuple[str, Row]: ...

    @overload
    def __getitem__(self, index: slice) -> list[tuple[str, Row]]: ...

    def __getitem__(
        self, index: int | slice
    ) -> tuple[str, Row] | list[tuple[str, Row]]:
        """Return one row, or several."""
        if isinstance(index, slice):
            return [self[item] for item in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        row: Row = self._table.slice(index, 1).to_pylist()[0]
        return f"{self._path}, row {index}", row
