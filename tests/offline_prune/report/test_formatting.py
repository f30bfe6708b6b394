"""Numbers for people."""

from __future__ import annotations

import math

import pytest

from offline_prune.report.formatting import (
    cell,
    duration,
    number,
    percent,
    size,
    span,
    table,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (32.19284, "32.19"),
        (1.0, "1.000"),
        (0.0, "0.000"),
        (2499.39, "2499"),
        (48419.12, "48,419"),
        (290985.03, "290,985"),
        (1234567.0, "1.235e+06"),
        (0.00012341, "0.0001234"),
        (-5.5, "-5.500"),
        (math.inf, "infinite"),
        (math.nan, "not a number"),
        (None, "-"),
    ],
)
def test_number(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (2_471_645_608, "2.47 GB"),
        (570_000_000, "570 MB"),
        (999_999_999, "1 GB"),
        (141_000_000_000, "141 GB"),
        (5_000_000_000_000_000, "5000 TB"),
        (None, "-"),
    ],
)
def test_size(count, text):
    assert size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 00 s"),
        (185.0, "3 min 05 s"),
        (3599.7, "1 h 00 min"),
        (7621.0, "2 h 07 min"),
    ],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_percent_and_span():
    assert percent(0.5) == "50.00%"
    assert percent(None) == "-"
    assert span(0.5, 0.500001) == "50.00%"
    assert span(0.4, 0.6, 0) == "40% to 60%"


def test_cell_stays_in_its_cell():
    assert cell("a | b\n c") == "a \\| b c"


def test_table():
    assert table(("What", "How many"), [("x|y", "1")]) == (
        "| What | How many |\n| :-- | --: |\n| x\\|y | 1 |"
    )
