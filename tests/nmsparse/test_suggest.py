"""The did-you-mean sentence."""

from __future__ import annotations

import pytest

from nmsparse.suggest import unknown


@pytest.mark.parametrize(
    ("name", "available", "expected"),
    [
        (
            "wnda",
            ["wanda", "magnitude"],
            "Unknown scorer 'wnda'. Did you mean: wanda? Available: magnitude, wanda.",
        ),
        ("zzz", ["wanda"], "Unknown scorer 'zzz'. Available: wanda."),
        ("x", [], "Unknown scorer 'x'. Available: none."),
        (
            "Wanda",
            (name for name in ["wanda"]),
            "Unknown scorer 'Wanda'. Did you mean: wanda? Available: wanda.",
        ),
    ],
    ids=["close", "far", "none", "generator"],
)
def test_sentence(name, available, expected):
    assert unknown("scorer", name, available) == expected
