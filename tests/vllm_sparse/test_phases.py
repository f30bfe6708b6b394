"""Token phases: by position alone, whatever the batch looks like."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nmsparse.config import Phase, SparsityConfig
from vllm_sparse.phases import (
    ALL,
    BUT_FIRST,
    DECODE,
    FIRST,
    PADDING,
    PHASE_CODES,
    PREFILL,
    TokenPhases,
    phase_code,
    selected_tokens,
)

CPU = torch.device("cpu")


def publish(phases, *requests):
    """Publish requests given as (prompt length, first position, tokens)."""
    positions = [p for _, first, n in requests for p in range(first, first + n)]
    prompts = [prompt for prompt, _, n in requests for _ in range(n)]
    phases.publish(torch.tensor(positions), torch.tensor(prompts, dtype=torch.int32))
    return phases.codes.tolist()


def test_codes_are_the_ops_arguments():
    assert PHASE_CODES == {
        Phase.BOTH: PADDING,
        Phase.PREFILL: PREFILL,
        Phase.DECODE: DECODE,
    }
    assert len({PADDING, PREFILL, DECODE}) == 3


def test_everything_is_padding_at_first():
    phases = TokenPhases(4, CPU)
    assert phases.codes.tolist() == [PADDING] * 4
    assert phases.codes.dtype is torch.uint8
    assert phases.totals.tolist() == [0] * (FIRST + 1)


@pytest.mark.parametrize(
    ("requests", "expected"),
    [
        ([(4, 0, 4)], [PREFILL] * 4),
        ([(4, 4, 1)], [DECODE]),
        ([(6, 2, 3)], [PREFILL] * 3),
        ([(6, 5, 1)], [PREFILL]),
        ([(4, 7, 1), (5, 0, 3), (2, 2, 1)], [DECODE, *[PREFILL] * 3, DECODE]),
        ([(4, 3, 3)], [PREFILL, DECODE, DECODE]),
        ([(4, 0, 7)], [PREFILL] * 4 + [DECODE] * 3),
        ([(0, 0, 2)], [DECODE] * 2),
    ],
    ids=[
        "prompt",
        "first generated token",
        "chunk in the middle",
        "last prompt token",
        "mixed batch",
        "speculative drafts",
        "recomputed after preemption",
        "no prompt",
    ],
)
def test_codes(requests, expected):
    phases = TokenPhases(10, CPU)
    codes = publish(phases, *requests)
    assert codes == expected + [PADDING] * (10 - len(expected))
    assert phases.totals[PREFILL] == expected.count(PREFILL)
    assert phases.totals[DECODE] == expected.count(DECODE)
    assert phases.totals[PADDING] == 0


def test_a_smaller_step_leaves_no_codes_behind():
    phases = TokenPhases(8, CPU)
    publish(phases, (8, 0, 8))
    assert publish(phases, (8, 8, 1)) == [DECODE] + [PADDING] * 7


def test_totals_add_up_and_clear_keeps_them():
    phases = TokenPhases(8, CPU)
    publish(phases, (3, 0, 3), (2, 4, 1))
    publish(phases, (3, 3, 1), (2, 5, 1))
    assert phases.totals.tolist() == [0, 3, 3, 0, 0]
    phases.clear()
    assert phases.codes.tolist() == [PADDING] * 8
    assert phases.totals.tolist() == [0, 3, 3, 0, 0]


def test_buffers_stay_where_layers_and_graphs_hold_them():
    phases = TokenPhases(8, CPU)
    place = phases.codes.data_ptr()
    publish(phases, (3, 0, 5))
    phases.clear()
    phases.reset()
    assert phases.codes.data_ptr() == place


@pytest.mark.parametrize("device", ["cpu", "as on a GPU"])
def test_steps_by_rows_and_selection(device, monkeypatch):
    """Both ways to count them: through numpy, and by operations of a device."""
    phases = TokenPhases(64, CPU)
    if device != "cpu":
        monkeypatch.setattr(type(phases), "_count", count_on_device)
    publish(phases, (5, 0, 5))
    publish(phases, (5, 5, 1))
    publish(phases, (5, 6, 1))
    publish(phases, (5, 6, 1), (4, 2, 2))
    publish(phases, (40, 0, 30))
    publish(phases, (40, 0, 31))
    phases.clear()  # a dummy step is none
    steps = {tuple(step) for step in phases.steps(DECODE)}
    assert steps == {(5, False, 1), (1, True, 2), (3, None, 1), (17, False, 2)}
    steps = {tuple(step) for step in phases.steps(PREFILL)}
    assert steps == {(5, True, 1), (1, False, 2), (3, None, 1), (17, True, 2)}
    steps = {tuple(step) for step in phases.steps(ALL)}
    assert steps == {(5, True, 1), (1, True, 2), (3, True, 1), (17, True, 2)}
    phases.reset()
    assert phases.steps(DECODE) == []
    assert phases.totals.tolist() == [0] * (FIRST + 1)


def count_on_device(phases, codes, rows):
    """Count as on a GPU, whose tensors say that they are not on a CPU."""
    codes.__class__ = type("OnGpu", (torch.Tensor,), {"is_cpu": False})
    COUNT(phases, codes, rows)


COUNT = TokenPhases._count


def test_rows_with_padding_say_how_a_step_ran():
    phases = TokenPhases(64, CPU)
    phases.publish(torch.tensor([7, 8, 9]), torch.tensor([1, 1, 1]), 4)
    assert [tuple(step) for step in phases.steps(DECODE)] == [(4, True, 1)]
    assert phases.totals[DECODE] == 3


def test_rows_that_are_tokens_of_the_step():
    phases = TokenPhases(8, CPU)
    assert [phases.real(rows) for rows in (0, 1, 8, 9)] == [0, 0, 0, 0]
    publish(phases, (3, 0, 5))
    # More rows than a step can have are no tokens of it: an image encoder's, say.
    assert [phases.real(rows) for rows in (0, 1, 5, 8, 9)] == [0, 1, 5, 5, 0]
    phases.clear()
    assert phases.real(5) == 0


@pytest.mark.parametrize(
    ("requests", "expected"),
    [
        ([(4, 0, 4)], {4: PREFILL, 1: PREFILL, 8: PREFILL}),
        ([(4, 9, 1), (3, 5, 2)], {3: DECODE, 2: DECODE, 8: DECODE}),
        ([(9, 9, 2), (4, 0, 2)], {1: DECODE, 2: DECODE, 3: None, 4: None, 8: None}),
        ([(4, 0, 2), (9, 9, 1)], {2: PREFILL, 3: None, 8: None}),
        ([], {0: PADDING, 1: PADDING, 8: PADDING}),
    ],
    ids=["prefill", "decode", "decode first", "prefill first", "nothing"],
)
def test_the_code_that_rows_share(requests, expected):
    phases = TokenPhases(8, CPU)
    publish(phases, (2, 0, 7))  # nothing is left of it
    publish(phases, *requests)
    assert {rows: phases.uniform(rows) for rows in expected} == expected
    assert phases.uniform(0) == phases.uniform(9) == PADDING
    assert phases.totals.tolist()[PADDING] == 0
    phases.clear()
    assert [phases.uniform(rows) for rows in (0, 1, 8, 9)] == [PADDING] * 4


REQUESTS = st.lists(
    st.tuples(st.integers(0, 9), st.integers(0, 12), st.integers(1, 5)), min_size=1
)


@given(REQUESTS, st.integers(0, 600))
@settings(deadline=None)
def test_the_shared_code_is_that_of_every_row(requests, rows):
    phases = TokenPhases(512, CPU)
    codes = publish(phases, *requests)
    real, shared = set(codes[: phases.real(rows)]), phases.uniform(rows)
    if shared is None:
        assert real == {PREFILL, DECODE}
    else:
        assert (real or {PADDING}) == {shared}


@given(REQUESTS)
@settings(deadline=None)
def test_a_token_does_not_depend_on_its_batch(requests):
    together = publish(TokenPhases(512, CPU), *requests)
    alone = [publish(TokenPhases(r[2], CPU), r) for r in requests]
    expected = [code for codes in alone for code in codes]
    assert together[: len(expected)] == expected


@given(st.integers(0, 9), st.integers(1, 20), st.data())
@settings(deadline=None)
def test_chunks_give_the_codes_of_the_whole(prompt, tokens, data):
    whole = publish(TokenPhases(tokens, CPU), (prompt, 0, tokens))
    chunks, start = [], 0
    while start < tokens:
        size = data.draw(st.integers(1, tokens - start))
        chunks += publish(TokenPhases(size, CPU), (prompt, start, size))
        start += size
    assert chunks == whole


# -- a dense first token --------------------------------------------------------------


@pytest.mark.parametrize("phase", list(Phase))
@pytest.mark.parametrize("dense_first", [False, True])
def test_the_ops_argument(phase, dense_first):
    data = {"phase": phase, "dense_first_token": dense_first}
    code = phase_code(SparsityConfig.parse(data, source="test"))
    # The first token is of a prompt, so decode never selects it.
    both = BUT_FIRST if dense_first else ALL
    assert code == (both if phase is Phase.BOTH else PHASE_CODES[phase])


def test_position_zero_has_a_code_of_its_own():
    phases = TokenPhases(8, CPU, mark_first=True)
    codes = publish(phases, (3, 0, 4), (2, 1, 2))
    assert codes == [FIRST, PREFILL, PREFILL, DECODE, PREFILL, DECODE, PADDING, PADDING]
    assert phases.totals.tolist() == [0, 3, 2, 0, 1]
    expected = {
        ALL: [True] * 6 + [False] * 2,
        PREFILL: [False, True, True, False, True, False, False, False],
        DECODE: [False, False, False, True, False, True, False, False],
        BUT_FIRST: [False] + [True] * 5 + [False] * 2,
    }
    for phase, rows in expected.items():
        assert selected_tokens(phases.codes, phase).tolist() == rows


@given(REQUESTS, st.integers(0, 600), st.sampled_from([PREFILL, DECODE, BUT_FIRST]))
@settings(deadline=None)
def test_what_rows_are_selected_is_what_the_op_selects(requests, rows, phase):
    phases = TokenPhases(512, CPU, mark_first=True)
    codes = torch.tensor(publish(phases, *requests), dtype=torch.uint8)
    chosen = selected_tokens(codes[: phases.real(rows)], phase)
    answer = phases.selects(rows, phase)
    assert phases.selects(rows, ALL) is True
    if answer is None:
        assert not chosen.all()
    else:
        assert chosen.all() == answer or not len(chosen)


def test_prompt_and_generated_tokens_are_sparse_alike_in_one_step():
    phases = TokenPhases(8, CPU, mark_first=True)
    publish(phases, (4, 1, 3), (2, 5, 1))
    assert phases.uniform(4) is None
    assert phases.selects(4, BUT_FIRST) is True
    publish(phases, (4, 0, 4))
    assert phases.selects(4, BUT_FIRST) is None
    publish(phases, (1, 0, 1), (1, 0, 1))
    assert phases.selects(2, BUT_FIRST) is False


@given(st.integers(1, 9), st.integers(1, 20), st.data())
@settings(deadline=None)
def test_chunks_do_not_change_which_token_is_first(prompt, tokens, data):
    whole = publish(TokenPhases(tokens, CPU, mark_first=True), (prompt, 0, tokens))
    chunks, start = [], 0
    while start < tokens:
        size = data.draw(st.integers(1, tokens - start))
        phases = TokenPhases(size, CPU, mark_first=True)
        chunks += publish(phases, (prompt, start, size))
        start += size
    assert chunks == whole


@pytest.mark.parametrize("phase", [ALL, PREFILL, DECODE, BUT_FIRST])
def test_masks_follow_the_codes_in_place(phase):
    phases = TokenPhases(6, CPU, mark_first=phase == BUT_FIRST)
    masks = phases.masks(phase)
    assert phases.masks(phase) is masks
    places = [mask.data_ptr() for mask in masks]
    steps = [[], [(2, 0, 3), (1, 4, 1)], [(1, 7, 1)], None, [(9, 1, 6)]]
    for step in steps:
        if step is None:
            phases.clear()
        elif step:
            publish(phases, *step)
        chosen = selected_tokens(phases.codes, phase)
        assert masks.counted.tolist() == chosen.tolist()
        padding = phases.codes == PADDING
        assert masks.sparse.tolist() == (chosen | padding).tolist()
        assert not (padding & masks.counted).any()
    assert [mask.data_ptr() for mask in masks] == places
    assert {mask.dtype for mask in masks} == {torch.bool}
