"""Evaluation text and windows: the papers' protocol."""

from __future__ import annotations

import json

import pytest
import torch
from support import tiny

from offline_prune import InputError
from offline_prune.evaluation.texts import read_evaluation_text
from offline_prune.evaluation.windows import windows_of

TEXT = "".join(chr(33 + i % 90) for i in range(100))


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.tokenizer()


def test_windows_follow_each_other_and_the_rest_is_dropped(tokenizer):
    found = windows_of(TEXT, tokenizer, seq_len=30, bos="never")
    assert [tokenizer.decode(w) for w in found] == [TEXT[:30], TEXT[30:60], TEXT[60:90]]
    assert found.bos is False
    assert found.seq_len == 30


def test_bos_is_in_every_window_and_counts(tokenizer):
    found = windows_of(TEXT, tokenizer, seq_len=30)
    assert found.bos is True
    assert all(window[0] == 1 and len(window) == 30 for window in found)
    assert [tokenizer.decode(w[1:]) for w in found] == [
        TEXT[i * 29 : (i + 1) * 29] for i in range(3)
    ]


def test_it_is_a_sequence_that_knows_its_content(tokenizer):
    found = windows_of(TEXT, tokenizer, seq_len=10)
    assert len(found) == 11
    assert len(windows_of(TEXT, tokenizer, seq_len=10, limit=4)) == 4
    assert [w.tolist() for w in found[:2]] == [found[0].tolist(), found[1].tolist()]
    again, other = (
        windows_of(text, tokenizer, seq_len=10) for text in (TEXT, TEXT[1:] + "x")
    )
    assert found.sha256 == again.sha256 != other.sha256


def test_token_ids_are_taken_as_they_are(tokenizer):
    found = windows_of(list(range(10, 31)), None, seq_len=7)
    assert torch.stack(list(found)).flatten().tolist() == list(range(10, 31))
    assert found.bos is False
    with_bos = windows_of([1, *range(10, 30)], tokenizer, seq_len=6)
    assert with_bos.bos is True
    assert [w[0].item() for w in with_bos] == [1] * 4


def test_too_little_text_is_refused(tokenizer):
    with pytest.raises(InputError, match=r"found 100 tokens.*window of 101"):
        windows_of(TEXT, tokenizer, seq_len=101, bos="never")
    with pytest.raises(InputError, match="found 100 tokens"):
        windows_of(TEXT, tokenizer, seq_len=1)
    with pytest.raises(InputError, match="no tokenizer"):
        windows_of(TEXT, None, seq_len=8)


def test_raw_wikitext_becomes_the_papers_text(tmp_path):
    path = tmp_path / "wiki.raw"
    path.write_text(" \n = Title = \n \n Prose . \n", "utf-8")
    # The rows of wikitext-2-raw-v1: '', ' = Title = \n', '', ' Prose . \n'.
    expected = "\n\n".join(["", " = Title = \n", "", " Prose . \n"])
    assert read_evaluation_text(path) == expected


def test_rows_are_joined_and_plain_text_is_not_changed(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"body": t}) + "\n" for t in ("a", "b\n", "")))
    assert read_evaluation_text(rows, text_field="body") == "a\n\nb\n\n\n"
    plain = tmp_path / "plain.txt"
    plain.write_text("one\n\ntwo\n")
    assert read_evaluation_text(plain) == "one\n\ntwo\n"
    with pytest.raises(InputError, match=r"Unknown field 'text'.*Available: body"):
        read_evaluation_text(rows)
    with pytest.raises(InputError, match=r"Evaluation text .* does not exist"):
        read_evaluation_text(tmp_path / "no.txt")
    rows.write_text('{"body": 3}\n')
    with pytest.raises(InputError, match="line 1: field 'body' is 3"):
        read_evaluation_text(rows, text_field="body")
