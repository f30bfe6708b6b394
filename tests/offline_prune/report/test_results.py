"""``results.json``: what goes in comes out, and edited numbers are noticed."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from support.run_results import SHA, layer, results_of, run

from offline_prune.errors import InputError
from offline_prune.report.layers import BlockResult
from offline_prune.report.measurements import (
    PerplexityResult,
    TaskScore,
    ZeroShotResult,
)
from offline_prune.report.results import (
    RESULTS_NAME,
    RUN_NAME,
    CalibrationResult,
    Results,
    read_results,
    write_results,
)

UP = "model.layers.0.mlp.up_proj"


@pytest.fixture
def results():
    return results_of([layer(UP, 0, 512)])


def edit(folder, change):
    """Change the parsed JSON of a folder's results."""
    path = folder / RESULTS_NAME
    data = json.loads(path.read_text("utf-8"))
    change(data)
    path.write_text(json.dumps(data), "utf-8")


def test_reads_what_it_wrote(tmp_path):
    written = run(5, uneven=True)
    assert write_results(tmp_path, written) == tmp_path / RESULTS_NAME
    assert read_results(tmp_path) == written


def test_file_is_plain_json(tmp_path):
    inf = PerplexityResult(
        text="t", sha256=SHA, seq_len=8, windows=1, tokens=8, pruned=math.inf
    )
    block = BlockResult(index=0, sparsity=0.5, measures={"alpha": math.nan})
    written = results_of([layer(UP, 0, 512)], evaluation=[inf], blocks=[block])
    text = write_results(tmp_path, written).read_text("utf-8")

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    json.loads(text, parse_constant=refuse)
    found = read_results(tmp_path)
    assert found.evaluation[0].pruned == math.inf
    assert math.isnan(found.blocks[0].measures["alpha"])


@given(st.floats())
def test_any_number_survives(value):
    before = TaskScore(task="t", metric="acc", pruned=value)
    after = TaskScore.model_validate_json(before.model_dump_json())
    assert after.pruned == value or (math.isnan(value) and math.isnan(after.pruned))


def test_replaces_and_leaves_nothing_behind(tmp_path, results):
    write_results(tmp_path, results)
    write_results(tmp_path, results.model_copy(update={"notes": ["again"]}))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [RESULTS_NAME, RUN_NAME]
    assert read_results(tmp_path).notes == ["again"]
    assert (tmp_path / RESULTS_NAME).stat().st_mode & 0o777 == 0o644


def test_what_differs_between_runs_is_in_a_file_of_its_own(tmp_path, results):
    """The same model pruned twice gives the same results.json."""
    texts = []
    for day in ("Monday", "Tuesday"):
        update = {"date": day, "command": f"run {day}", "hardware": day}
        update |= {"time": {"prune": float(len(day))}, "peak_memory_bytes": len(day)}
        run_of_a_day = results.model_copy(update=update)
        texts.append(write_results(tmp_path, run_of_a_day).read_bytes())
        assert read_results(tmp_path) == run_of_a_day
    assert texts[0] == texts[1]


def test_lost_run_file_costs_only_what_was_in_it(tmp_path, results):
    write_results(tmp_path, results)
    (tmp_path / RUN_NAME).unlink()
    found = read_results(tmp_path)
    assert found.layers == results.layers
    assert found.date == "not recorded"


def test_is_frozen(results):
    with pytest.raises(ValidationError):
        results.date = "tomorrow"


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"has no results\.json.*offline-prune run"):
        read_results(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(schema_version=2), "schema_version 2 cannot be read"),
        (lambda d: d.update(schema_version=True), "schema_version True"),
        (lambda d: d.update(colour="red"), "Unknown key 'colour'"),
        (lambda d: d["layers"][0].update(bloc=1), "Did you mean: block"),
        (lambda d: d["layers"][0].update(removed=511), f"{UP} has sparsity 0.5, but"),
        (lambda d: d["layers"][0].update(sparsity=0.51), "Expected 0.5"),
        (lambda d: d["layers"][0].update(zeros=511), "removed <= zeros"),
        (lambda d: d["layers"][0].update(zeros=16 * 64 + 1), "<= 1024"),
        (lambda d: d["layers"][0].update(removed="512"), "layers.0.removed"),
        (lambda d: d["layers"][0].update(pattern="50%"), "no N:M pattern"),
        (lambda d: d["layers"][0].update(pattern="4:2"), "1 <= N <= M"),
        (lambda d: d["layers"].append(d["layers"][0]), f"{UP} is listed twice"),
        (lambda d: d["layers"].clear(), "layers"),
        (lambda d: d["budget"].update(achieved=0.4), "budget has sparsity 0.4"),
        (lambda d: d["profiles"].update(alpha=[1.0, 2.0]), "Expected 1, one a block"),
        (lambda d: d["evaluation"].append({"kind": "taste"}), "evaluation.0"),
        (lambda d: d.pop("model"), "model: Field required"),
    ],
)
def test_edited_file_is_refused(tmp_path, results, change, message):
    write_results(tmp_path, results)
    edit(tmp_path, change)
    with pytest.raises(InputError) as caught:
        read_results(tmp_path)
    assert message in str(caught.value)
    assert str(tmp_path / RESULTS_NAME) in str(caught.value)


def test_damaged_file_is_refused(tmp_path, results):
    path = write_results(tmp_path, results)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match="cannot be read"):
        read_results(tmp_path)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("model.layers.3.self_attn.q_proj", "q_proj"),
        ("model.layers.3.mlp.experts.17.down_proj", "experts.down_proj"),
        ("model.layers.3.mlp.shared_expert.down_proj", "shared_expert.down_proj"),
        ("model.layers.3.mlp.down_proj", "down_proj"),
        ("transformer.h.11.attn.c_attn", "c_attn"),
        ("fc", "fc"),
    ],
)
def test_kind(name, kind):
    assert layer(name, 0, 0).kind == kind


def test_layer_knows_its_tensor_and_pattern():
    plain = layer(UP, 0, 512, pattern="2:4")
    assert plain.stored_as == f"{UP}.weight"
    assert (plain.nm.n, plain.nm.m, plain.size) == (2, 4, 1024)
    assert layer(UP, 0, 512, tensor="a.b").stored_as == "a.b"
    assert layer(UP, 0, 512).nm is None


def test_evaluation_is_told_apart_by_kind():
    score = TaskScore(task="piqa", metric="acc", pruned=0.5)
    data = results_of(
        [layer(UP, 0, 1)], evaluation=[ZeroShotResult(backend="b", scores=[score])]
    )
    again = Results.model_validate_json(data.to_json())
    assert again.evaluation == data.evaluation


def test_calibration_keeps_its_description(tmp_path):
    description = {"seq_len": 2048, "joined": True, "files": ["a.txt"], "share": 0.25}
    data = CalibrationResult(
        source="a.txt", sha256=SHA, windows=2, tokens=16, description=description
    )
    write_results(tmp_path, results_of([layer(UP, 0, 1)], calibration=data))
    assert read_results(tmp_path).calibration.description == description
