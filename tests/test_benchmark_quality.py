"""Benchmarks of quality: policies of a calibrated folder, and scores of tasks."""

from __future__ import annotations

import json
import sys

import pytest
from support import tiny
from support.zoo import windows

from offline_prune.online.calibrate import calibrate
from offline_prune.online.config import CalibrateConfig
from offline_prune.report.measurements import TaskScore, ZeroShotResult

ALL = ("benchmark", "model", "setting", "date", "commit", "hardware", "versions")


@pytest.fixture
def scripts(repo_root, monkeypatch):
    folder = repo_root / "benchmarks"
    monkeypatch.syspath_prepend(str(folder))
    return folder


@pytest.fixture
def written(scripts, tmp_path, monkeypatch):
    """Return a function that makes these the only rows of a benchmark."""
    import rows

    monkeypatch.setattr(rows, "RESULTS", tmp_path)

    def write(name, found):
        text = "".join(json.dumps(row) + "\n" for row in found)
        (tmp_path / f"{name}.jsonl").write_text(text, encoding="utf-8")

    return write


def run(module, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *map(str, arguments)])
    module.main()


def lines(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def score(task, metric, dense, pruned):
    return TaskScore(
        task=task,
        metric=metric,
        examples=10,
        dense=dense,
        dense_stderr=0.1,
        pruned=pruned,
        pruned_stderr=0.2,
    )


@pytest.fixture
def results(tmp_path):
    """What offline-prune eval writes, as far as the script looks at it."""
    scores = [
        score("piqa", "acc", 0.5, 0.4),
        score("piqa", "acc_norm", 0.6, 0.5),
        score("boolq", "acc", 0.7, 0.3),
        score("mmlu", "acc", None, 0.3),  # no dense model was scored
    ]
    part = ZeroShotResult(backend="lm-eval 1 (transformers)", scores=scores)
    other = {"kind": "perplexity", "scores": "not looked at"}
    path = tmp_path / "results.json"
    data = {"evaluation": [other, part.model_dump(mode="json")]}
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


@pytest.fixture
def engine(tmp_path):
    """What vllm-sparse eval --output writes, likewise."""
    modes = [
        {"mode": "dense", "tasks": {"piqa": {"acc": 0.5, "acc_norm": 0.6}}},
        {"mode": "both", "tasks": {"piqa": {"acc": 0.4, "acc_norm": 0.45}}},
    ]
    path = tmp_path / "engine.json"
    data = {"modes": modes, "versions": {"vllm": "0.32.0"}}
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def test_scores_of_a_pruned_folder(scripts, results, tmp_path, monkeypatch):
    import zero_shot

    run(zero_shot, monkeypatch, results, "--setting", "half", "--results", tmp_path)
    boolq, piqa = lines(tmp_path / "zero_shot.jsonl")
    for row in (boolq, piqa):
        assert all(row[key] for key in ALL)
        assert row["backend"] == "lm-eval 1 (transformers)"
        assert (row["setting"], row["examples"], row["stderr"]) == ("half", 10, 0.2)
    # Length-normalized accuracy where there is one, as papers print it.
    assert (piqa["metric"], piqa["dense"], piqa["score"]) == ("acc_norm", 0.6, 0.5)
    assert (boolq["metric"], boolq["dense"], boolq["score"]) == ("acc", 0.7, 0.3)


def test_scores_of_an_engine(scripts, engine, tmp_path, monkeypatch):
    import zero_shot

    flags = ("--setting", "rows", "--limit", "100", "--results", tmp_path)
    run(zero_shot, monkeypatch, engine, *flags)
    (row,) = lines(tmp_path / "zero_shot.jsonl")
    assert all(row[key] for key in ALL)
    assert row["backend"] == "vLLM 0.32.0, phase both"
    assert (row["metric"], row["dense"], row["score"]) == ("acc_norm", 0.6, 0.45)
    assert (row["examples"], row["stderr"]) == (100, None)


def test_an_engine_without_a_dense_run_has_nothing_to_compare(scripts, engine):
    import zero_shot

    data = json.loads(engine.read_text("utf-8"))
    data["modes"] = data["modes"][1:]
    with pytest.raises(KeyError, match="dense"):
        list(zero_shot.engine_scores(data, 0))


def test_scores_as_a_table(written):
    import zero_shot

    written("zero_shot", [])
    assert zero_shot.table() == "Nothing measured yet."
    row = {"model": "m", "setting": "half", "backend": "b"}
    found = [
        row | {"task": "piqa", "dense": 0.1, "score": 0.0},
        row | {"task": "piqa", "dense": 0.6, "score": 0.5},  # newer
        row | {"task": "boolq", "dense": 0.7, "score": 0.4},
        row | {"setting": "rows", "task": "piqa", "dense": 0.6, "score": 0.55},
    ]
    written("zero_shot", found)
    assert zero_shot.table().splitlines() == [
        "| model | setting | backend | boolq | piqa | mean |",
        "|---|---|---|---|---|---|",
        "| m | half | b | 0.70 to 0.40 | 0.60 to 0.50 | 0.650 to 0.450 |",
        "| m | rows | b |  | 0.60 to 0.55 | 0.600 to 0.550 |",
    ]


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("policies")
    model = tiny.build("llama", folder / "model")
    fields = {"pattern": "8:16", "calibration": {"seq_len": 32, "num_samples": 4}}
    config = CalibrateConfig.parse(fields, source="test")
    return calibrate(model, config, output=folder / "out", texts=windows(4)).folder


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("other words, to be judged by. " * 20, encoding="utf-8")
    return path


def test_policies_of_a_calibrated_folder(
    scripts, calibrated, text, tmp_path, monkeypatch
):
    import online_policies

    from offline_prune.evaluation.online import POLICIES

    names = (
        "--setting",
        "8:16",
        "--calibration-name",
        "random",
        "--text-name",
        "words",
    )
    sizes = ("--windows", "2", "--length", "32", "--continuation-tokens", "4")
    where = ("--text", text, "--name", "tiny", "--results", tmp_path / "rows")
    run(online_policies, monkeypatch, calibrated, *names, *sizes, *where)
    found = lines(tmp_path / "rows" / "online_policies.jsonl")
    assert [row["policy"] for row in found] == ["dense", *POLICIES]
    by_name = {row["policy"]: row for row in found}
    for row in found:
        assert all(row[key] for key in ALL)
        assert (row["model"], row["text"], row["calibration"]) == (
            "tiny",
            "words",
            "random",
        )
        assert (row["windows"], row["length"]) == (2, 32)
        # Of 4 tokens the first is predicted at the prompt; a text may end before.
        assert 0 < row["generated_tokens"] <= 2 * 3
        assert row["calibration_tokens"] == 4 * 32
        assert row["calibration_peak_bytes"] > 0
        assert row["perplexity"] > 1
    assert by_name["dense"]["kl"] == pytest.approx(0, abs=1e-6)
    assert by_name["both"]["kl"] > 0
    # A sparse prompt leaves the first half's logits alone that decode changes.
    assert by_name["decode"]["perplexity"] != by_name["prefill"]["perplexity"]


def test_a_folder_that_was_not_calibrated(scripts, text, tmp_path, monkeypatch):
    import online_policies

    model = tiny.build("llama", tmp_path / "plain")
    names = ("--setting", "x", "--calibration-name", "y", "--text-name", "z")
    with pytest.raises(SystemExit, match=r"no activation sparsity\. Expected"):
        run(online_policies, monkeypatch, model, *names, "--text", text)


def test_policies_as_a_table(written):
    import online_policies

    written("online_policies", [])
    assert online_policies.table() == "Nothing measured yet."
    row = {"model": "m", "setting": "rows", "perplexity": 17.625, "kl": 0.1}
    row |= {"decode_perplexity": 18.0, "top1_agreement": 0.5, "generated_kl": 0.25}
    row |= {"generated_top1_agreement": 0.755, "calibration_tokens": 1024}
    row |= {"calibration": "web", "calibration_seconds": 61.6, "date": "today"}
    row |= {"calibration_peak_bytes": 2.5e9, "windows": 8, "length": 512}
    row |= {"text": "wiki", "hardware": "machine", "torch_threads": 1}
    found = [row | {"policy": "dense"}, row | {"policy": "both", "kl": 0.9}]
    written("online_policies", [row | {"policy": "both", "kl": 0.5}, *found])
    text = online_policies.table().splitlines()
    assert text[2] == (
        "| rows | both | 17.62 | 18.00 | 0.900 | 50.0% | 0.250 | 75.5% |"
    )
    assert text[3].startswith("| rows | nothing | 17.62 |")
    assert text[-1] == (
        "rows of m: 1,024 tokens of web, 62 s, peak memory 2.5 GB; 8 windows of 512 of "
        "wiki. today, machine, 1 thread(s)."
    )
