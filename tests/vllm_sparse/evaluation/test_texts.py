"""Texts and windows: what both commands make of a file is the same."""

from __future__ import annotations

import json

import pytest
from support import tiny

from offline_prune.evaluation.texts import read_evaluation_text
from offline_prune.evaluation.windows import windows_of
from vllm_sparse.evaluation.texts import cut, read_text

LINES = " = Title = \n\n A line, \n and another é. \n"
FILES = {
    "plain.txt": LINES * 4,
    "wiki.raw": LINES * 4,
    "rows.jsonl": "".join(
        json.dumps({"text": f"row {i} says é"}) + "\n" for i in range(9)
    ),
}


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("name", FILES)
def test_windows_are_those_of_offline_prune(tmp_path, name, bos):
    path = tmp_path / name
    path.write_text(FILES[name], encoding="utf-8")
    tokenizer = tiny.tokenizer()
    if not bos:
        tokenizer.bos_token = None
        tokenizer.backend_tokenizer.post_processor = tiny.processors.ByteLevel()
    expected = windows_of(read_evaluation_text(path), tokenizer, seq_len=16, limit=3)
    found = cut(read_text(path), tokenizer, seq_len=16, limit=3)
    assert found.ids == [window.tolist() for window in expected]
    assert (len(found.ids), found.seq_len) == (3, 16)
    assert found.bos is expected.bos is bos


def test_a_short_text_is_refused():
    with pytest.raises(ValueError, match=r"found 5 tokens\. Expected at least one"):
        cut("hello", tiny.tokenizer(), seq_len=16)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.pdf", b"x", "of an unknown kind"),
        ("gone.txt", None, "does not exist"),
        ("empty.txt", b" \n", "is empty"),
        ("bytes.txt", b"a\xff", "byte 1 is not UTF-8"),
        ("rows.jsonl", b'{"text": "a"}\n{"txt": "b"}\n', "rows.jsonl:2 has no text"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_text(path)
