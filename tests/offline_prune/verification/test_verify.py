"""``verify``: a sound folder passes, and every kind of damage is named."""

from __future__ import annotations

import re

import pytest
import torch
from safetensors.torch import save_file
from support.pruned_folder import (
    COLUMNS,
    DOWN,
    NORM,
    ROWS,
    SHARDS,
    UP,
    Q,
    change_tensors,
    change_weight,
    edit_results,
    group,
    pruned_folder,
)

from nmsparse.config import SparsityConfig
from nmsparse.sidecar import SIDECAR_NAME, write_sidecar
from offline_prune.errors import InputError
from offline_prune.packing.folder import INDEX_NAME
from offline_prune.report.results import RESULTS_NAME, read_results
from offline_prune.verification import verify


@pytest.fixture
def folder(tmp_path):
    """Return a pruned folder: two weight files, two patterns, hashes, a sidecar."""
    return pruned_folder(tmp_path)


def only_problem(folder):
    found = verify(folder)
    assert not found.ok
    (problem,) = found.problems
    return problem


def test_sound_folder(folder):
    found = verify(folder)
    assert found.problems == ()
    assert found.ok
    assert found.notes == ()
    assert [x.name for x in found.layers] == [Q, UP, DOWN]
    assert found.zeros == 3 * ROWS * COLUMNS // 2
    assert {x.zeros for x in found.layers} == {ROWS * COLUMNS // 2}


def test_a_zero_was_filled_in(folder):
    def fill(weight):
        row, column = 5, 9
        zeros = (weight[row, 8:12] == 0).nonzero().flatten().tolist()
        column = 8 + zeros[0]
        weight[row, column] = 0.25

    change_weight(folder, Q, fill)
    pattern, count = verify(folder).problems
    assert pattern == (
        f"{Q}: 1 of 256 groups hold more than 2 non-zeros of 4 (first: row 5, channels "
        "8 to 11). Expected 2:4."
    )
    assert count == (
        f"{Q}: 511 of 1,024 weights are zero. Expected 512, by {RESULTS_NAME}."
    )


def test_a_non_zero_was_added_to_an_unstructured_layer(folder):
    def fill(weight):
        weight[3, int((weight[3] == 0).nonzero()[0])] = -1.0

    change_weight(folder, DOWN, fill)
    assert only_problem(folder).startswith(f"{DOWN}: 511 of 1,024 weights are zero")


def test_a_weight_more_was_removed(folder):
    def remove(weight):
        weight[0, int(weight[0].nonzero()[0])] = -0.0

    change_weight(folder, UP, remove)
    assert only_problem(folder).startswith(f"{UP}: 513 of 1,024 weights are zero")


def test_pattern_broken_with_as_many_zeros(folder):
    def swap(weight):
        first = weight[15, 60:64]
        kept = int(first.nonzero()[0])
        gone = int((weight[15, 56:60] == 0).nonzero()[0])
        first[kept], weight[15, 56 + gone] = 0.0, 1.0

    change_weight(folder, Q, swap)
    problem = only_problem(folder)
    assert problem.startswith(f"{Q}: 1 of 256 groups")
    assert "row 15, channels 56 to 59" in problem


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_number_that_is_none(folder, value):
    def spoil(weight):
        weight[2, int(weight[2].nonzero()[0])] = value

    change_weight(folder, UP, spoil)
    assert only_problem(folder) == (
        f"{UP}: 1 of 1,024 weights are NaN or infinite. Expected finite numbers: prune "
        "the model again."
    )


def test_bias_that_is_no_number(folder):
    def add(tensors):
        if f"{UP}.weight" in tensors:
            tensors[f"{UP}.bias"] = torch.zeros(ROWS, dtype=torch.bfloat16)
            tensors[f"{UP}.bias"][3:5] = float("nan")

    change_tensors(folder, add)
    assert only_problem(folder).startswith(f"{UP}: 2 elements of its bias are NaN")


def test_bytes_of_another_tensor_changed(folder):
    def spoil(tensors):
        if NORM in tensors:
            tensors[NORM][7] = 2.0

    change_tensors(folder, spoil, rehash=False)
    assert re.match(rf"{SHARDS[1]} was changed: its SHA-256", only_problem(folder))


def test_truncated_weight_file(folder):
    path = folder / SHARDS[1]
    path.write_bytes(path.read_bytes()[:-100])
    text = "\n".join(verify(folder).problems)
    assert f"{SHARDS[1]} was changed" in text
    assert f"{path} cannot be read" in text
    assert f"{DOWN}: {DOWN}.weight is missing" in text
    assert Q not in text
    assert NORM not in text
    assert [x.zeros for x in verify(folder).layers] == [512, 512, None]


def test_missing_weight_file(folder):
    (folder / SHARDS[1]).unlink()
    found = verify(folder)
    assert any(f"has no {SHARDS[1]}" in problem for problem in found.problems)
    assert any(x.startswith(f"{SHARDS[1]} is missing") for x in found.problems)


def test_additional_weight_file(folder):
    save_file({"x": torch.ones(2)}, folder / "extra.safetensors")
    assert only_problem(folder).startswith("extra.safetensors is not listed")


def test_missing_tensor(folder):
    change_tensors(folder, lambda tensors: tensors.pop(f"{UP}.weight", None))
    problems = verify(folder).problems
    assert problems[0].startswith(f"{UP}.weight is missing. Expected it in {SHARDS[0]}")
    assert problems[1].startswith(f"{UP}: {UP}.weight is missing")
    assert len(problems) == 2


def test_missing_tensor_that_was_not_pruned(folder):
    change_tensors(folder, lambda tensors: tensors.pop(NORM, None))
    assert only_problem(folder).startswith(f"{NORM} is missing")


def test_tensor_stored_twice(folder):
    def add(tensors):
        tensors[NORM] = torch.ones(COLUMNS)

    change_tensors(folder, add)
    assert only_problem(folder).startswith(f"{NORM} is stored twice")


def test_other_shape(folder):
    def cut(tensors):
        if f"{UP}.weight" in tensors:
            tensors[f"{UP}.weight"] = tensors[f"{UP}.weight"][:, :32].contiguous()

    change_tensors(folder, cut)
    assert only_problem(folder) == (
        f"{UP}: {UP}.weight is BF16 [16, 32]. Expected F16 or BF16 or F32 or F64 "
        f"[16, 64], by {RESULTS_NAME}."
    )


def test_integers_are_no_weights(folder):
    def quantize(tensors):
        if f"{UP}.weight" in tensors:
            tensors[f"{UP}.weight"] = tensors[f"{UP}.weight"].to(torch.int8)

    change_tensors(folder, quantize)
    assert f"{UP}: {UP}.weight is I8" in only_problem(folder)


def test_no_results(folder):
    (folder / RESULTS_NAME).unlink()
    assert RESULTS_NAME in only_problem(folder)


def test_unreadable_results(folder):
    (folder / RESULTS_NAME).write_text("{")
    assert f"{RESULTS_NAME} cannot be read" in only_problem(folder)


def test_no_config(folder):
    (folder / "config.json").unlink()
    assert any("has no config.json" in problem for problem in verify(folder).problems)


def test_unreadable_index(folder):
    (folder / INDEX_NAME).write_text("[")
    assert any(INDEX_NAME in problem for problem in verify(folder).problems)


@pytest.mark.parametrize("create", [False, True])
def test_no_model_folder(tmp_path, create):
    path = tmp_path / "none"
    if create:
        path.mkdir()
    with pytest.raises(InputError, match="neither"):
        verify(path)


def test_counts_edited_alike(folder):
    """An edit that agrees with itself is found in the weights."""

    def edit(data):
        entry = data["layers"][1]
        entry.update(removed=256, zeros=256, sparsity=0.25)

    edit_results(folder, edit)
    text = "\n".join(verify(folder).problems)
    assert f"{UP}: 512 of 1,024 weights are zero. Expected 256" in text
    assert "gives block 0 the sparsity 0.5. Expected 0.375" in text
    assert "budget of 1,536 removed of 3,072 weights. Expected 1,280" in text


def test_sparsity_edited(folder):
    edit_results(folder, lambda data: data["layers"][1].update(sparsity=0.6))
    assert f"{UP} has sparsity 0.6" in only_problem(folder)


def test_pattern_edited(folder):
    edit_results(folder, lambda data: data["layers"][0].update(pattern="1:4"))
    text = "\n".join(verify(folder).problems)
    assert f"{Q}: 256 of 256 groups hold more than 1 non-zeros of 4" in text
    assert f"{Q}: {RESULTS_NAME} says 512 weights removed. Expected 768" in text


def test_pattern_that_does_not_divide(folder):
    edit_results(folder, lambda data: data["layers"][0].update(pattern="3:6"))
    text = "\n".join(verify(folder).problems)
    assert f"{Q}: 64 input channels are no multiple of 6" in text


def test_layer_of_no_block(folder):
    edit_results(folder, lambda data: data["layers"][2].update(block=7))
    text = "\n".join(verify(folder).problems)
    assert f"has layers of block 7 (first: {DOWN}), but no block 7" in text


@pytest.mark.parametrize(("target", "missed"), [(0.5003, False), (0.501, True)])
def test_missed_budget(folder, target, missed):
    """Half of 3072 weights are removed; 0.5003 asks for 0.92 weights more."""
    edit_results(folder, lambda data: data["budget"].update(target=target))
    # Q alone has a pattern: its step is a quarter of its weights.
    edit_results(folder, lambda data: data["layers"][0].update(pattern=None))
    write_sidecar(folder, SparsityConfig())
    problems = verify(folder).problems
    assert bool(problems) is missed
    if missed:
        assert problems[0].startswith(
            "The budget was missed: 50.000000% of the weights"
        )


def test_budget_of_patterns_has_coarse_steps(folder):
    edit_results(folder, lambda data: data["budget"].update(target=0.501))
    assert verify(folder).ok


def test_changed_file(folder):
    (folder / "tokenizer.json").write_text("{} ")
    assert only_problem(folder).startswith("tokenizer.json was changed")


def test_missing_file(folder):
    (folder / "tokenizer.json").unlink()
    assert only_problem(folder).startswith("tokenizer.json is missing")


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", ""])
def test_names_that_lead_out_of_the_folder_are_not_read(folder, name):
    edit_results(folder, lambda data: data["files"].update({name: "0" * 64}))
    assert "not inside the folder" in only_problem(folder)


def test_hash_in_capitals_is_the_same(folder):
    def edit(data):
        data["files"] = {k: v.upper() for k, v in data["files"].items()}

    edit_results(folder, edit)
    assert verify(folder).ok


def test_zeros_of_the_dense_model_count(folder):
    """A layer may hold more zeros than were removed, if results.json says so."""

    def remove(weight):
        weight[0, int(weight[0].nonzero()[0])] = 0.0

    change_weight(folder, UP, remove)
    edit_results(folder, lambda data: data["layers"][1].update(zeros=513))
    assert verify(folder).ok


def test_transposed_weight(folder):
    def turn(tensors):
        if f"{Q}.weight" in tensors:
            tensors[f"{Q}.weight"] = tensors[f"{Q}.weight"].T.contiguous()

    change_tensors(folder, turn)
    assert "[64, 16]" in only_problem(folder)
    edit_results(folder, lambda data: data["layers"][0].update(transposed=True))
    assert verify(folder).ok


def test_no_sidecar_is_noted(folder):
    (folder / SIDECAR_NAME).unlink()
    found = verify(folder)
    assert found.ok
    assert found.notes == (f"There is no {SIDECAR_NAME}: nothing to compare with it.",)


def test_silent_sidecar_is_noted(folder):
    write_sidecar(folder, SparsityConfig.uniform("8:16"))
    found = verify(folder)
    assert found.ok
    assert "no weight sparsity of 3 of 3 pruned layers" in found.notes[0]


def test_unreadable_sidecar(folder):
    (folder / SIDECAR_NAME).write_text('{"colour": 1}')
    assert "colour" in only_problem(folder)


def test_sidecar_with_another_pattern(folder):
    groups = {"all": group(["Linear"], "2:4", 0.5)}
    write_sidecar(folder, SparsityConfig(groups=groups))
    problems = verify(folder).problems
    assert [x.partition(":")[0] for x in problems] == [UP, DOWN]
    assert "says 2:4. Expected no N:M pattern" in problems[0]


def test_sidecar_with_another_share(folder):
    groups = {
        "a": group([Q], "2:4", 0.5),
        "b": group([UP, DOWN], "50%", 0.51),
    }
    write_sidecar(folder, SparsityConfig(groups=groups))
    problem = only_problem(folder)
    assert problem.startswith(f"{UP}: {SIDECAR_NAME} says 51.0000%")
    assert "'b'. Expected 50.0000%" in problem


def test_nothing_is_written(folder):
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    verify(str(folder))
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert read_results(folder).layers[0].name == Q
