"""Evaluation text, encoded and cut into windows as ``offline-prune eval`` cuts it.

Windows do not overlap, what does not fill the last one is dropped, and every window
begins with ``<bos>`` if the tokenizer puts one before a text.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nmsparse.json_text import parse_json

_SUFFIXES = (".txt", ".raw", ".jsonl")


@dataclass(frozen=True, slots=True)
class Windows:
    """Windows of one text.

    Attributes:
        ids: token ids, ``seq_len`` each.
        seq_len: tokens of a window, ``<bos>`` included.
        bos: whether each begins with ``<bos>``.
        sha256: hash of the text.
    """

    ids: list[list[int]]
    seq_len: int
    bos: bool
    sha256: str


def read_text(path: Path) -> str:
    """Return one text: ``.txt`` as it is, rows of the others joined by a blank line.

    A row is a line of ``.raw`` (an empty one for a blank line, as in the data sets made
    of such files), or the field ``text`` of a line of ``.jsonl``.

    Raises:
        ValueError: if the file is missing, empty, or of another kind.
    """
    if path.suffix not in _SUFFIXES:
        raise ValueError(
            f"Evaluation text {path} is of an unknown kind. Expected one of "
            f"{', '.join(_SUFFIXES)}: convert it."
        )
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "does not exist"
        raise ValueError(
            f"Evaluation text {path} {found}. Expected a file: check the path."
        )
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"Evaluation text {path}: byte {error.start} is not UTF-8. Expected a text "
            "file in UTF-8: convert it (iconv -t utf-8)."
        ) from None
    if not text.strip():
        raise ValueError(f"Evaluation text {path} is empty. Expected text or rows.")
    if path.suffix == ".raw":
        lines = text.splitlines(keepends=True)
        return "\n\n".join(line if line.strip() else "" for line in lines)
    return _rows(path, text) if path.suffix == ".jsonl" else text


def cut(
    text: str, tokenizer: Any, *, seq_len: int, limit: int | None = None
) -> Windows:
    """Encode a text and cut it.

    Args:
        text: the text.
        tokenizer: of transformers.
        seq_len: tokens of a window, ``<bos>`` included.
        limit: at most so many windows; all by default.

    Raises:
        ValueError: if the text has less than one window.
    """
    first = tokenizer("a")["input_ids"][:1]
    bos = tokenizer.bos_token_id
    lead = [bos] if bos is not None and first == [bos] else []
    encoded = tokenizer(
        text, add_special_tokens=False, truncation=False, padding=False, verbose=False
    )
    content: list[int] = encoded["input_ids"]
    length = seq_len - len(lead)
    count = len(content) // length if length > 0 else 0
    if not count:
        raise ValueError(
            f"Evaluation text: found {len(content)} tokens. Expected at least one "
            f"window of {seq_len}: give more text, or a smaller --seq-len."
        )
    if limit is not None:
        count = min(count, limit)
    starts = range(0, count * length, length)
    ids = [lead + content[start : start + length] for start in starts]
    digest = hashlib.sha256(text.encode()).hexdigest()
    return Windows(ids, seq_len, bool(lead), digest)


def _rows(path: Path, text: str) -> str:
    texts = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            found = parse_json(line)["text"]
        except (ValueError, KeyError, TypeError):
            found = None
        if not isinstance(found, str):
            raise ValueError(
                f"Evaluation text {path}:{number} has no text. Expected a JSON object "
                "with a field 'text': mend or remove the line."
            )
        texts.append(found)
    return "\n\n".join(texts)
