"""Files and data sets: every kind is read, and every mistake is named."""

from __future__ import annotations

import json
import subprocess
import sys
from types import ModuleType

import pytest
from pydantic import ValidationError
from support import tiny

from offline_prune import InputError, MissingDependencyError
from offline_prune.calibration import CalibrationConfig, load_calibration

ROWS = [{"text": letter * 60, "id": i} for i, letter in enumerate("abcdef")]


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.tokenizer()


def load(tokenizer, source, **options):
    config = CalibrationConfig(source=str(source), num_samples=3, seq_len=16, **options)
    return load_calibration(config, tokenizer, vocab_size=259)


def lines(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n", "utf-8")
    return path


def contents(found, tokenizer):
    return {frozenset(tokenizer.decode(window[1:])) for window in found.windows}


def test_every_kind_of_file_gives_the_same_windows(tmp_path, tokenizer):
    (tmp_path / "rows.json").write_text(json.dumps(ROWS))
    jsonl = load(tokenizer, lines(tmp_path / "rows.jsonl", ROWS))
    array = load(tokenizer, tmp_path / "rows.json")
    assert jsonl.sha256 == array.sha256
    assert all(len(letters) == 1 for letters in contents(jsonl, tokenizer))
    assert jsonl.source == str(tmp_path / "rows.jsonl")
    assert jsonl.description["kinds"] == ["text"]
    assert "split" not in jsonl.description, "files have none"


def test_parquet_gives_the_windows_of_jsonl(tmp_path, tokenizer):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    found = load(tokenizer, tmp_path / "rows.parquet")
    expected = load(tokenizer, lines(tmp_path / "rows.jsonl", ROWS))
    assert found.sha256 == expected.sha256
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(InputError, match="no parquet file"):
        load(tokenizer, tmp_path / "bad.parquet")


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, tokenizer, monkeypatch):
    (tmp_path / "rows.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingDependencyError, match="pip install pyarrow"):
        load(tokenizer, tmp_path / "rows.parquet")


def test_a_text_file_is_one_document(tmp_path, tokenizer):
    path = tmp_path / "book.txt"
    path.write_text("é" * 100, "utf-8")
    found = load(tokenizer, path)
    assert found.description["documents_read"] == 1
    path.write_bytes(b"caf\xe9 " * 100)
    with pytest.raises(InputError, match="byte 3 is not UTF-8"):
        load(tokenizer, path)


def test_blank_lines_are_passed_over_and_counted(tmp_path, tokenizer):
    path = tmp_path / "rows.jsonl"
    path.write_text('\n{"text": "' + "a" * 50 + '"}\n\n[1, 2]\n')
    with pytest.raises(InputError, match=r"rows\.jsonl, line 4: found a JSON list"):
        load(tokenizer, path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("no.jsonl", None, r"no\.jsonl does not exist"),
        ("folder.txt", "", r"folder\.txt is a folder"),
        ("empty.jsonl", "\n\n", r"empty\.jsonl is empty"),
        ("blank.txt", " \n ", r"blank\.txt is empty"),
        ("rows.csv", "a,b", r"unknown kind of file '\.csv'"),
        ("bad.jsonl", "{oops}\n", r"bad\.jsonl, line 1: no JSON"),
        ("bad.json", "{oops}", "no JSON"),
        ("object.json", "{}", "found a JSON dict. Expected an array"),
        ("typo.jsonl", '{"tex": "a"}', "Unknown field 'text'. Did you mean: tex?"),
        ("null.jsonl", '{"text": null}', "field 'text' is None. Expected a text"),
        ("nan.jsonl", '{"text": NaN}', "field 'text' is nan. Expected a text"),
        ("ids.jsonl", '{"input_ids": "abc"}', "found str. Expected a list of token"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, tokenizer, name, content, message):
    path = tmp_path / name
    if name.startswith("folder"):
        path.mkdir()
    elif content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=message):
        load(tokenizer, path)


def test_a_chosen_field_comes_before_the_usual_ones(tmp_path, tokenizer):
    rows = [{"text": "a" * 60, "summary": "b" * 60, "input_ids": [9] * 60}] * 3
    path = lines(tmp_path / "rows.jsonl", rows)
    chosen = load(tokenizer, path, text_field="summary")
    assert contents(chosen, tokenizer) == {frozenset("b")}
    assert load(tokenizer, path).description["kinds"] == ["tokens"]
    with pytest.raises(InputError, match=r"'abstract'.*Choose one with text_field"):
        load(tokenizer, path, text_field="abstract")


def test_conversations_go_through_the_chat_template(tmp_path, tokenizer):
    messages = [
        {"role": "user", "content": "q" * 30},
        {"role": "assistant", "content": "a" * 30},
    ]
    path = lines(tmp_path / "chat.jsonl", [{"messages": messages}] * 3)
    config = CalibrationConfig(source=str(path), num_samples=1, seq_len=80)
    found = load_calibration(config, tokenizer, vocab_size=259)
    expected = f"user: {'q' * 30}\nassistant: {'a' * 30}\n"
    assert tokenizer.decode(found.windows[0][1:]) == expected
    assert found.windows[0][0] == 1
    assert found.description["kinds"] == ["chat"]


def test_a_template_that_writes_bos_gets_no_second_one(tmp_path):
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = "<bos>" + tokenizer.chat_template
    rows = [{"messages": [{"role": "user", "content": "q" * 30}]}] * 3
    path = lines(tmp_path / "chat.jsonl", rows)
    found = load(tokenizer, path)
    assert all(w.tolist().count(1) == 1 and w[0] == 1 for w in found.windows)


@pytest.mark.parametrize(
    ("template", "messages", "message"),
    [
        (None, [{"role": "user", "content": "q"}], "has no chat template"),
        ("{{ messages }}", [], r"found \[\]. Expected a list of messages"),
        ("{{ messages }}", [{"role": "user"}], 'each with "role" and "content"'),
        (
            "{{ raise_exception('roles must alternate') }}",
            [{"role": "user", "content": "q"}],
            "line 1.*refuses the conversation: roles must alternate",
        ),
    ],
)
def test_conversations_that_cannot_be_rendered(tmp_path, template, messages, message):
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = template
    path = lines(tmp_path / "chat.jsonl", [{"messages": messages}])
    with pytest.raises(InputError, match=message):
        load(tokenizer, path)


class Stream(list):
    """What ``datasets.load_dataset(..., streaming=True)`` returns, as far as used."""

    def shuffle(self, *, seed, buffer_size):
        assert buffer_size > 1
        return Stream(self[seed:] + self[:seed])


def fake_datasets(monkeypatch, load_dataset):
    module = ModuleType("datasets")
    module.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", module)


def test_the_hub_is_streamed(tokenizer, monkeypatch):
    calls = []

    def load_dataset(*args, **kwargs):
        calls.append((args, kwargs))
        return Stream(ROWS)

    fake_datasets(monkeypatch, load_dataset)
    found = load(tokenizer, "allenai/c4", subset="en", split="validation", seed=2)
    assert calls == [(("allenai/c4", "en"), {"split": "validation", "streaming": True})]
    assert contents(found, tokenizer) == {frozenset(c) for c in "cde"}
    assert found.description["subset"] == "en"


def test_the_hub_out_of_reach_is_explained(tokenizer, monkeypatch):
    def load_dataset(*_, **__):
        raise ConnectionError("no route to the Hub.")

    fake_datasets(monkeypatch, load_dataset)
    with pytest.raises(InputError, match=r"allenai/c4: no route.*\.jsonl"):
        load(tokenizer, "allenai/c4")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingDependencyError, match="pip install datasets"):
        load(tokenizer, "allenai/c4")


def test_settings_are_checked():
    with pytest.raises(ValidationError, match="Did you mean: num_samples"):
        CalibrationConfig(num_sample=3)
    with pytest.raises(ValidationError, match="greater than or equal to 2"):
        CalibrationConfig(seq_len=1)


def test_importing_loads_no_torch():
    code = (
        "import sys; import offline_prune.calibration, offline_prune.statistics, "
        "offline_prune.evaluation, offline_prune.evaluation.tasks; "
        "assert offline_prune.statistics.Need.GRAM == 'gram'; "
        "sys.exit(any(m in sys.modules for m in ('torch', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
