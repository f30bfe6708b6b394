"""Regular expressions that others wrote: bounded in size, time and memory.

A short expression can take a matcher years (``(a|a)*b``), or gigabytes to compile
(``(a{999}){999}``). The package ``regex`` can stop a match, which ``re`` cannot.
"""

from __future__ import annotations

import re
import time
import warnings
from functools import lru_cache

import regex

from nmsparse.errors import ConfigError, printable

MAX_LENGTH = 1000
# Characters of an expression with its counted repetitions written out, at most.
MAX_UNROLLED = 10_000
# One match; those of module names take microseconds.
MATCH_S = 1.0
# All matches of a process that take longer than _SLOW_S, in seconds of its processor.
BUDGET_S = 10.0
_SLOW_S = 1e-4

# Escaped characters and sets of characters: a brace in one of them is a brace.
_LITERAL = re.compile(r"\\.|\[\^?\]?(?:[^\]\\]|\\.)*\]", re.DOTALL)
_COUNT = re.compile(r"\{([0-9]*)(?:,([0-9]*))?\}")

_spent = 0.0


def check_expression(expression: str) -> None:
    """Refuse an expression that is wrong or too large.

    Raises:
        ValueError: saying why.
    """
    _compile(expression)


def matches(expression: str, text: str) -> bool:
    """Return whether ``expression`` matches the start of ``text``.

    Raises:
        ValueError: as :func:`check_expression`.
        ConfigError: if that takes too long.
    """
    global _spent
    pattern = _compile(expression)
    start = time.thread_time()
    try:
        found = pattern.match(text, timeout=MATCH_S)
    except (TimeoutError, MemoryError):
        raise _too_slow(expression, text) from None
    took = time.thread_time() - start
    if took > _SLOW_S:
        _spent += took
        if _spent > BUDGET_S:
            raise _too_slow(expression, text)
    return found is not None


@lru_cache(maxsize=1024)
def _compile(expression: str) -> regex.Pattern[str]:
    if len(expression) > MAX_LENGTH:
        raise ValueError(
            f"it has {len(expression)} characters, expected at most {MAX_LENGTH}"
        )
    _check_counts(expression)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sets that look nested
            # The syntax is that of `re`: `regex` has recursion and fuzzy matching.
            re.compile(expression)
            return regex.compile(expression, regex.VERSION0)
    except (re.error, regex.error, OverflowError, MemoryError) as error:
        raise ValueError(str(error)) from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _check_counts(expression: str) -> None:
    """Refuse counted repetitions that make a large program of a short expression."""
    braces = _LITERAL.sub("", expression)
    product = 1
    for least, most in _COUNT.findall(braces):
        digits = most or least or "1"
        product *= max(1, int(digits)) if len(digits) < 10 else MAX_UNROLLED + 1
    if product > 1 and product * len(expression) > MAX_UNROLLED:
        raise ValueError(
            f"its counted repetitions make it longer than {MAX_UNROLLED} characters"
        )
    if "{" in _COUNT.sub("", braces):
        raise ValueError("it has a { that begins no count: write \\{")


def _too_slow(expression: str, text: str) -> ConfigError:
    return ConfigError(
        f"Target 're:{printable(expression, limit=200)}' takes too long to match "
        f"{printable(text, limit=200)}. Expected an expression without alternatives "
        "that overlap inside a repetition: simplify it, or name the layers in full."
    )
