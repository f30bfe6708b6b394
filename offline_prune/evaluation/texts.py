"""Evaluation text out of a file, as the papers put it together."""

from __future__ import annotations

from pathlib import Path

from nmsparse.suggest import unknown
from offline_prune.calibration.sources import read_rows
from offline_prune.calibration.text import read_text
from offline_prune.errors import InputError

_SUBJECT = "Evaluation text"


def read_evaluation_text(path: str | Path, *, text_field: str = "text") -> str:
    r"""Return one text.

    The rows of ``.jsonl``, ``.json`` and ``.parquet`` are joined by a blank line. So
    are the lines of ``.raw``, the form in which WikiText is distributed: then the text
    is the one that is made of the rows of ``wikitext-2-raw-v1``, in which a blank line
    is an empty row and the others keep their newline. A ``.txt`` file is taken as it
    is.

    Args:
        path: the file.
        text_field: field of a row with its text.

    Raises:
        InputError: if the file is missing, empty or of another kind, or a row has no
            text.
        MissingDependencyError: if it is parquet and pyarrow is not installed.
    """
    path = Path(path)
    rows = read_rows(path, text_field=text_field, subject=_SUBJECT)
    if path.suffix == ".txt":
        return read_text(path)
    if path.suffix == ".raw":
        lines = read_text(path).splitlines(keepends=True)
        return "\n\n".join(line if line.strip() else "" for line in lines)
    texts = []
    for place, row in rows:
        if text_field not in row:
            raise InputError(f"{place}: {unknown('field', text_field, row)}")
        if not isinstance(row[text_field], str):
            raise InputError(
                f"{place}: field {text_field!r} is {row[text_field]!r}. Expected a "
                "text: remove the row, or choose another field."
            )
        texts.append(row[text_field])
    return "\n\n".join(texts)
