"""The targets by name."""

from __future__ import annotations

from collections.abc import Callable

from fuzzing.case import Target
from fuzzing.config_target import ConfigTarget
from fuzzing.packed_target import PackedTarget

TARGETS: dict[str, Callable[[], Target]] = {
    "config": ConfigTarget,
    "packed": PackedTarget,
}
