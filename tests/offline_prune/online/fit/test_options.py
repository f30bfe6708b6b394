"""How windows are shared between fitting and judging."""

from __future__ import annotations

import pytest

from offline_prune.errors import InputError
from offline_prune.online.fit.options import FitOptions


@pytest.mark.parametrize(
    ("windows", "share", "fitted"),
    [(8, 0.25, 6), (2, 0.25, 1), (3, 0.25, 2), (100, 0.25, 75), (4, 0.9, 1)],
)
def test_the_last_windows_judge(windows, share, fitted):
    assert FitOptions(held_out=share).fitted(windows) == fitted


def test_unknown_options_are_refused():
    with pytest.raises(InputError, match=r"rnak.*rank"):
        FitOptions.parse({"rnak": 3}, source="--option")
