"""A short run of every target of the fuzzer: docs/security.md has the long one."""

from __future__ import annotations

import os
import random
import time
from functools import lru_cache

import pytest
from fuzzing import campaign
from fuzzing.campaign import case
from fuzzing.case import Finding, accepted
from fuzzing.targets import TARGETS, make_target
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

# Of one case, on a machine that does other things as well.
LIMIT_S = 20.0


@lru_cache
def _target(name):
    return make_target(name)


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_only_documented_errors_come_out(name):
    @settings(
        max_examples=30 if name == "recipe" else 150,  # YAML is read slowly
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(number=st.integers(0, 2**63))
    @example(number=0)
    def run(number):
        start = time.monotonic()
        accepted(_target(name), case(_target(name), 1, number))
        assert time.monotonic() - start < LIMIT_S

    run()


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_some_cases_are_accepted_and_some_refused(name):
    """A target that refuses all, or none, would test nothing."""
    target = _target(name)
    count = 30 if name == "recipe" else 150
    found = [accepted(target, case(target, 2, number)) for number in range(count)]
    if name == "table":  # raises nothing: a damaged cache is an empty one
        assert all(found)
    else:
        assert {True, False} == set(found)


def test_a_case_can_be_made_again():
    first, second = (case(make_target("packed"), 1, 4711) for _ in range(2))
    assert first == second


def test_a_wrong_acceptance_is_a_finding(monkeypatch):
    """The packed target notices a reader that lets a lie pass."""
    from fuzzing import packed_target

    true = packed_target.decode

    def careless(name, bitmask, values, *, shape):
        flipped = bitmask.clone()
        flipped[0, 0] ^= 1
        keep = (values, values.new_ones(1)) if flipped[0, 0] & 1 else (values[1:],)
        import torch

        return true(name, flipped, torch.cat(keep), shape=shape)

    monkeypatch.setattr(packed_target, "decode", careless)
    target = make_target("packed")
    files = target._seeds[0]
    with pytest.raises(Finding, match="other values"):
        target.read(files)


def test_an_undocumented_error_gets_out(monkeypatch):
    from fuzzing import config_target

    def fail(*args):
        raise KeyError("x")

    monkeypatch.setattr(config_target, "resolve_options", fail)
    target = make_target("config")
    with pytest.raises(KeyError):
        accepted(target, target.make(random.Random(1)))


class Misbehaving:
    """Accepts case 0, hangs at 1, ends the process at 2, is wrong at 3."""

    name = "config"
    errors = ()

    def make(self, rng):
        return {"number": str(self.numbers[rng.random()]).encode()}

    def __init__(self):
        self.numbers = {random.Random(f"1/{n}").random(): n for n in range(4)}

    def read(self, files):
        number = int(files["number"])
        while number == 1:
            pass
        if number == 2:
            os._exit(3)
        assert number != 3


def test_hangs_and_crashes_are_found_and_passed_over(monkeypatch, caplog):
    monkeypatch.setattr(campaign, "target_class", lambda name: Misbehaving)
    monkeypatch.setattr(campaign, "_HANG_S", 0.3)
    command = ["fuzzing", "config", "--cases", "4", "--seconds", "120"]
    monkeypatch.setattr("sys.argv", command)
    with caplog.at_level("INFO", logger="fuzzing"):
        assert campaign.main() == 1
    assert "hang: case 1 of seed 1" in caplog.text
    assert "crash (exit status 3): case 2 of seed 1" in caplog.text
    assert "4 cases of seed 1" in caplog.text
    assert "1 accepted, 1 findings, 2 crashes or hangs" in caplog.text
