"""The registry of mitigations, and one mitigation a slot."""

from __future__ import annotations

import itertools

import pytest

from nmsparse.mitigation import check_mitigations, mitigations
from nmsparse.parameters import PARAMETERS

SLOTS = {
    "shift": ("d_pts", "d_pts_median", "l_pts", "s_pts"),
    "variance": ("var",),
    "output_scale": ("ls",),
    "output_shift": ("output_shift",),
    "residual": ("r_sparse",),
}
NEEDS = {
    "s_pts": ("channel_shift",),
    "l_pts": ("channel_shift",),
    "ls": ("output_scale",),
    "output_shift": ("output_shift",),
    "r_sparse": ("low_rank_in", "low_rank_out"),
}


def test_names_and_slots():
    found = {name: mitigations.get(name) for name in mitigations}
    assert {s: tuple(n for n in found if found[n].slot == s) for s in SLOTS} == SLOTS
    for name, item in found.items():
        assert item.name == name
        assert item.title
        assert item.paper
        assert item.parameters == NEEDS.get(name, ())
        assert set(item.parameters) <= set(PARAMETERS)


def test_one_of_each_slot_fits():
    for names in itertools.product(*SLOTS.values()):
        assert [item.name for item in check_mitigations(names)] == list(names)
    assert check_mitigations(()) == ()


@pytest.mark.parametrize(
    "names", [*itertools.permutations(SLOTS["shift"], 2), ("var", "ls", "var")], ids=str
)
def test_two_of_a_slot_are_refused(names):
    pattern = rf"Mitigations {names[0]} and {names[-1]} both take the slot (shift|var)"
    with pytest.raises(ValueError, match=pattern):
        check_mitigations(names)


def test_unknown_name():
    with pytest.raises(ValueError, match=r"Unknown mitigation 'd_pt'.*mean: d_pts\?"):
        check_mitigations(("d_pt",))
