"""What a method needs to know of a linear's input."""

from __future__ import annotations

from enum import Enum


class Need(str, Enum):
    """A statistic that costs something to collect.

    Attributes:
        MOMENTS: sums of ``x``, ``x^2`` and ``|x|`` of every input channel.
        GRAM: ``sum_t x_t x_t^T``, K x K: memory and time grow with the square.
        SAMPLE: some token rows themselves.
    """

    MOMENTS = "moments"
    GRAM = "gram"
    SAMPLE = "sample"
