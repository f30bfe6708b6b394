"""Windows out of documents: where they lie, what they begin with, what is recorded."""

from __future__ import annotations

import hashlib
import json
import logging
import struct

import pytest
from support import tiny
from tokenizers.processors import TemplateProcessing

from offline_prune import InputError
from offline_prune.calibration import (
    CalibrationConfig,
    load_calibration,
    split_held_out,
)

BOS = 1
VOCABULARY = 259


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.tokenizer()


@pytest.fixture(scope="module")
def letters():
    """Return a document of each letter, 10 to 322 bytes long."""
    return [chr(ord("a") + i) * (10 + 13 * i) for i in range(25)]


def load(tokenizer, texts, **options):
    config = CalibrationConfig(**{"num_samples": 8, "seq_len": 32, **options})
    return load_calibration(config, tokenizer, vocab_size=VOCABULARY, texts=texts)


def test_windows_lie_in_single_documents(tokenizer, letters):
    found = load(tokenizer, letters)
    assert [len(window) for window in found.windows] == [32] * 8
    kinds = [set(window[1:].tolist()) for window in found.windows]
    assert all(len(kind) == 1 for kind in kinds), "one letter in each"
    assert len(set.union(*kinds)) == 8, "eight different documents"
    assert found.description["joined"] is None
    assert found.description["overlapping"] is False


def test_the_seed_decides_everything(tokenizer, letters):
    first, again = (load(tokenizer, letters, seed=5) for _ in range(2))
    other = load(tokenizer, letters, seed=6)
    assert first.sha256 == again.sha256 != other.sha256
    assert all(map(lambda a, b: a.equal(b), first.windows, again.windows))
    packed = b"".join(
        struct.pack(f"<{1 + len(w)}q", len(w), *w.tolist()) for w in first.windows
    )
    assert first.sha256 == hashlib.sha256(packed).hexdigest()


@pytest.mark.parametrize(("bos", "begins"), [("auto", True), ("never", False)])
def test_a_window_begins_as_the_tokenizer_begins_a_text(
    tokenizer, letters, bos, begins
):
    found = load(tokenizer, letters, bos=bos)
    assert all((window[0] == BOS) == begins for window in found.windows)
    assert all(BOS not in window[1:] for window in found.windows)
    assert found.description["windows_with_bos"] == 8 * begins


def test_always_puts_bos_where_the_tokenizer_does_not(letters):
    plain = tiny.tokenizer()
    plain.backend_tokenizer.post_processor = TemplateProcessing(single="$A")
    plain_ids = plain("a")["input_ids"]
    assert BOS not in plain_ids
    assert load(plain, letters, bos="auto").windows[0][0] != BOS
    assert load(plain, letters, bos="always").windows[0][0] == BOS
    plain.bos_token = None
    with pytest.raises(InputError, match="no beginning-of-sequence token"):
        load(plain, letters, bos="always")


def test_the_tokenizer_is_not_changed_and_its_truncation_does_not_count(letters):
    tokenizer = tiny.tokenizer()
    tokenizer.backend_tokenizer.enable_truncation(max_length=8)
    tokenizer.backend_tokenizer.enable_padding(length=9)
    before = tokenizer.backend_tokenizer.to_str()
    found = load(tokenizer, letters)
    assert tokenizer.backend_tokenizer.to_str() == before
    assert len(found.windows[0]) == 32
    assert 0 not in found.windows[0], "no padding"


def test_one_long_text_gives_windows_at_different_places(tokenizer):
    text = "".join(chr(33 + i % 90) for i in range(31 * 9))
    found = load(tokenizer, [text])
    places = [text.index(tokenizer.decode(window[1:])) for window in found.windows]
    assert len(set(places)) > 4
    assert found.description["overlapping"] is True
    assert found.description["joined"] is None


def test_short_documents_are_joined_and_that_is_recorded(tokenizer, caplog):
    texts = [chr(ord("a") + i) * 20 for i in range(20)]
    with caplog.at_level(logging.WARNING):
        found = load(tokenizer, texts)
    assert "0 of 20 documents have 32 tokens" in found.description["joined"]
    assert "documents are joined" in caplog.text
    assert found.description["overlapping"] is False
    decoded = [tokenizer.decode(window[1:]) for window in found.windows]
    assert any("\n\n" in text for text in decoded)
    # 20 letters and 2 line ends: no window of 31 tokens has more than 3 letters.
    assert all(1 < len(set(text) - {"\n"}) <= 3 for text in decoded)
    assert len(set(decoded)) == 8


def test_joined_windows_are_those_of_the_whole_text(tokenizer, caplog):
    text = "".join(chr(33 + i % 90) for i in range(31 * 8 + 5))
    with caplog.at_level(logging.WARNING):
        found = load(tokenizer, [text], joined=True)
    decoded = {tokenizer.decode(window[1:]) for window in found.windows}
    assert decoded == {text[i * 31 : (i + 1) * 31] for i in range(8)}
    assert found.description["joined"] == "asked for"
    assert not caplog.records


def test_too_little_text_overlaps_and_less_than_a_window_is_refused(tokenizer, caplog):
    with caplog.at_level(logging.WARNING):
        found = load(tokenizer, ["abc" * 30])
    assert len(found.windows) == 8
    assert found.description["overlapping"] is True
    assert "too little text for 8 windows of 32 tokens" in caplog.text
    with pytest.raises(
        InputError, match=r"found 7 tokens in 2 documents.*window of 32"
    ):
        load(tokenizer, ["abc", "de"])
    with pytest.raises(InputError, match="found 0 tokens in 0 documents"):
        load(tokenizer, [])


def test_token_ids_begin_as_they_came(tokenizer):
    rows = [[BOS, *range(10, 50)], [*range(60, 99)]]
    found = load(tokenizer, rows, num_samples=2)
    starts = {window[-1].item() > 55: window[0].item() for window in found.windows}
    assert starts[False] == BOS
    assert starts[True] != BOS
    never = load(tokenizer, rows, num_samples=2, bos="never")
    assert all(BOS not in window for window in never.windows)
    without = load(None, rows, num_samples=2)
    assert without.description["kinds"] == ["tokens"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([3, 259, 4], "token id 259 is outside the model's vocabulary of 259"),
        ([3, -1], "token id -1 is outside"),
        ([3, float("nan")], "entry 1 is nan"),
        ([3, True], "entry 1 is True"),
    ],
)
def test_wrong_token_ids_are_refused(tokenizer, row, message):
    with pytest.raises(InputError, match=message):
        load(tokenizer, [row * 40])


def test_a_foreign_tokenizer_is_noticed(letters):
    config = CalibrationConfig(num_samples=2, seq_len=8)
    with pytest.raises(InputError, match="outside the model's vocabulary of 40"):
        load_calibration(config, tiny.tokenizer(), vocab_size=40, texts=letters)


def test_texts_need_a_tokenizer(letters):
    with pytest.raises(InputError, match="the model folder has no tokenizer"):
        load(None, letters)


def test_held_out_windows_are_the_others(tokenizer, letters):
    data = load(tokenizer, letters)
    rest, held_out = split_held_out(data, 3)
    assert [w.tolist() for w in rest.windows + held_out.windows] == [
        w.tolist() for w in data.windows
    ]
    assert (len(rest.windows), len(held_out.windows)) == (5, 3)
    assert len({data.sha256, rest.sha256, held_out.sha256}) == 3
    assert held_out.description["windows"] == 3
    assert held_out.description["of"] == data.sha256
    assert rest.tokens == 5 * 32
    for count in (0, 8, 9):
        with pytest.raises(InputError, match=f"{count} of 8 windows"):
            split_held_out(data, count)


def test_the_description_is_json(tokenizer, letters):
    description = load(tokenizer, letters).description
    assert json.loads(json.dumps(description)) == description
    assert description["kinds"] == ["text"]
