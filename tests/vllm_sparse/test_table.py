"""The measured table: the choice rules, and the cache of this machine."""

from __future__ import annotations

import json
import math
import os
import tempfile

import pytest

from vllm_sparse import table as module
from vllm_sparse.table import (
    CACHE_ENV,
    MIN_GAIN,
    TOKENS,
    TableCache,
    cache_folder,
    choose,
    measure,
)

CONTEXT = {"cpu": "one", "threads": 2}
TIMES = {t: {"stock": 2.0 * t, "ours": 1.0 * t} for t in TOKENS}


def chosen(seconds, tokens=1, among=("stock", "ours", "other")):
    return choose({1: seconds}, "stock", tokens, among)


def test_the_first_way_is_left_only_for_a_clear_win():
    assert chosen({"stock": MIN_GAIN, "ours": 1.0}) == "ours"
    assert chosen({"stock": MIN_GAIN - 1e-3, "ours": 1.0}) == "stock"
    assert chosen({"stock": 1.0, "ours": 2.0}) == "stock"


def test_the_fastest_of_the_possible_ways():
    seconds = {"stock": 4.0, "ours": 2.0, "other": 1.0, "impossible": 0.1}
    assert chosen(seconds) == "other"
    assert chosen(seconds, among=("stock", "ours")) == "ours"
    assert chosen(seconds, among=("stock",)) == "stock"


@pytest.mark.parametrize(
    "seconds",
    [
        {},
        {"ours": 1.0},
        {"stock": 1.0},
        {"stock": 1.0, "unknown": 0.1},
        {"stock": math.nan, "ours": 1.0},
        {"stock": 1.0, "ours": math.nan},
    ],
    ids=["nothing", "no first", "no other", "unknown", "broken first", "broken"],
)
def test_what_was_not_measured_is_not_chosen(seconds):
    assert chosen(seconds) == "stock"


def test_other_numbers_of_tokens_take_the_next_larger_one():
    times = {t: {"stock": 2.0, f"at {t}": 1.0} for t in TOKENS}
    among = ("stock", *(f"at {t}" for t in TOKENS))
    found = [choose(times, "stock", tokens, among) for tokens in range(18)]
    assert found == [
        *("at 1", "at 1", "at 2", *["at 4"] * 2, *["at 8"] * 4, *["at 16"] * 8),
        "stock",  # beyond the last
    ]
    del times[4]
    assert choose(times, "stock", 3, among) == "stock"


def test_ways_are_timed_in_turns_on_every_weight(monkeypatch):
    clock, order = [0.0], []
    monkeypatch.setattr(module.time, "perf_counter", lambda: clock[0])

    def call(name, seconds):
        def run():
            order.append(name)
            # The first turn warms up.
            clock[0] += 100.0 if len(order) <= 2 else seconds

        return run

    ways = {
        "a": [call("a0", 1.0), call("a1", 3.0)],
        "b": [call("b0", 2.0), call("b1", 2.0)],
    }
    found = measure(ways)
    assert found == {"a": 1.0, "b": 2.0}  # the least of 3 1 3 1 3 1 3
    assert order == ["a0", "b0", "a1", "b1"] * 4


def test_a_table_comes_back(tmp_path):
    cache = TableCache(tmp_path / "new" / "folder", CONTEXT)
    assert cache.get("shape") is None
    cache.put("shape", TIMES)
    assert cache.get("shape") == TIMES
    again = TableCache(tmp_path / "new" / "folder", CONTEXT)
    assert again.get("shape") == TIMES
    assert again.get("another") is None
    assert json.loads(cache.path.read_text())["context"] == CONTEXT
    assert [path.suffix for path in cache.path.parent.iterdir()] == [".json"]


def test_another_machine_has_another_file(tmp_path):
    TableCache(tmp_path, CONTEXT).put("shape", TIMES)
    for change in ({"threads": 3}, {"cpu": "two"}, {"torch": "3"}):
        assert TableCache(tmp_path, CONTEXT | change).get("shape") is None
    assert TableCache(tmp_path, dict(reversed(CONTEXT.items()))).get("shape") == TIMES


def test_processes_that_measure_at_once_keep_both(tmp_path):
    first, second = TableCache(tmp_path, CONTEXT), TableCache(tmp_path, CONTEXT)
    first.put("one", TIMES)
    second.put("two", TIMES)
    assert TableCache(tmp_path, CONTEXT).get("one") == TIMES
    assert second.get("one") == second.get("two") == TIMES


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "null", "3", '"x"', "{}", '{"tables": []}', "\udcff"),
        '{"tables": {"shape": []}}',
        '{"tables": {"shape": {"1": 2}}}',
        '{"tables": {"shape": {"one": {"stock": 1}}}}',
        '{"tables": {"shape": {"1": {"stock": "fast"}}}}',
        '{"tables": {"shape": {"1": {"stock": null}}}}',
        f'{{"tables": {{"shape": {{"1": {{"stock": 1{"0" * 400}}}}}}}}}',
    ],
)
def test_a_damaged_file_holds_nothing(tmp_path, text):
    path = TableCache(tmp_path, CONTEXT).path
    path.write_bytes(text.encode(errors="surrogateescape"))
    cache = TableCache(tmp_path, CONTEXT)
    assert cache.get("shape") is None
    cache.put("shape", TIMES)
    assert TableCache(tmp_path, CONTEXT).get("shape") == TIMES


def test_a_folder_that_cannot_be_written_is_said_once(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(module.logger, "warning_once", lambda *text: said.append(text))
    (tmp_path / "file").write_text("")
    cache = TableCache(tmp_path / "file" / "folder", CONTEXT)
    for key in ("one", "two"):
        cache.put(key, TIMES)
        assert cache.get(key) == TIMES, "this process has it all the same"
    # vLLM says a text once if the arguments are the same.
    assert len(said) == 2
    assert len(set(said)) == 1
    assert said[0][1:] == (cache.path, os.strerror(20))


def test_a_full_disk_leaves_no_rest(tmp_path, monkeypatch):
    def full(*args, **options):
        raise OSError(28, os.strerror(28))

    said = []
    monkeypatch.setattr(module.logger, "warning_once", lambda *text: said.append(text))
    monkeypatch.setattr(module.json, "dump", full)
    TableCache(tmp_path, CONTEXT).put("shape", TIMES)
    assert list(tmp_path.iterdir()) == []
    assert len(said) == 1


def no_home():
    raise RuntimeError("Could not determine home directory.")


def test_where_the_cache_is(monkeypatch, tmp_path):
    module._temporary_folder.cache_clear()
    for name in (CACHE_ENV, "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "vllm-sparse"
    monkeypatch.setattr(module.Path, "home", no_home)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    ours = tmp_path / f"vllm-sparse-{os.geteuid()}"
    assert cache_folder() == ours
    assert ours.stat().st_mode & 0o777 == 0o700
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "vllm-sparse"
    monkeypatch.setenv(CACHE_ENV, str(tmp_path / "ours"))
    assert cache_folder() == tmp_path / "ours"
