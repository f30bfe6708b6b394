"""``report.md``: the numbers of the run, and nothing that was not measured."""

from __future__ import annotations

import pytest
import yaml
from support.run_results import layer, results_of, run

from offline_prune.report import markdown
from offline_prune.report.markdown import report
from offline_prune.report.measurements import (
    PerplexityResult,
    Sizes,
    TaskScore,
    ZeroShotResult,
)
from offline_prune.report.pictures import Picture
from offline_prune.report.quality import NOT_MEASURED, mean_scores, quality_tables

UP = "model.layers.0.mlp.up_proj"


@pytest.fixture(scope="module")
def text():
    return report(run(4))


@pytest.mark.parametrize(
    "expected",
    [
        "# Pruning report: example/Tiny-1B",
        "| Scorer | wanda |",
        "| Allocator | owl (lam=0.08, m=5) |",
        "| Calibration | allenai/c4, 128 windows, 262,144 tokens |",
        "| WikiText-2 test | 288,768 | 2048 | 9.761 | 24.55 | 2.515 |",
        "| WikiText-2 test | 288,768 | 0.4213 | 67.12% |",
        "| 100 prompts, at most 1024 tokens | 212.4 | 301.9 | 1.421 |",
        "| dense | 2.47 GB | 100% |",
        "| packed, computed | 1.31 GB | 53% |",
        "| prune | 1 h 07 min |",
        "| peak memory | 7.81 GB |",
        "$ offline-prune prune example/Tiny-1B --recipe owl-70 --output out",
        "Versions: vllm-sparse 0.1.0, torch 2.13.0, transformers 5.19.0.",
        "Hardware: NVIDIA H200.",
        "<summary>All 4 blocks</summary>",
        "<summary>All 28 layers</summary>",
    ],
)
def test_says(text, expected):
    assert expected in text


def test_tables_are_whole(text):
    """Every row has as many cells as the rule below the heads."""
    width = None
    for line in text.splitlines():
        if not line.startswith("|"):
            width = None
        elif width is None:
            width = line.count("|")
        else:
            assert line.count("|") == width, line


def test_recipe_can_be_used_again():
    results = run(2)
    empty = {"correction": None, "scorer_options": {}, "ignore": [], "mixed": False}
    calibration = {"calibration": {"source": "a.txt", "subset": None, "seed": 0}}
    config = {**results.config, **empty, **calibration}
    results = results.model_copy(update={"config": config})
    block = report(results).partition("```yaml\n")[2].partition("```")[0]
    assert yaml.safe_load(block) == {
        "scorer": "wanda",
        "allocator": "owl",
        "allocator_options": {"lam": 0.08, "m": 5},
        "sparsity": 0.7,
        "mixed": False,
        "calibration": {"source": "a.txt", "seed": 0},
    }


def test_nothing_measured():
    text = report(results_of([layer(UP, 0, 512)]))
    assert NOT_MEASURED in text
    assert "Perplexity" not in text
    assert "## Time" not in text
    assert "The files were not measured." in text
    assert "| Calibration | none needed |" in text


def test_too_many_layers_are_not_listed(monkeypatch):
    monkeypatch.setattr(markdown, "MAX_ROWS", 1)
    layers = [layer(f"model.layers.0.mlp.experts.{i}.up", 0, 8) for i in range(3)]
    text = report(results_of(layers))
    assert "The 3 layers are listed in `results.json`." in text
    assert "experts.2.up |" not in text


def test_notes():
    text = report(results_of([layer(UP, 0, 8)], notes=["Joined.", "3 layers: none."]))
    assert "## Notes\n\n- Joined.\n- 3 layers: none.\n" in text
    assert "## Notes" not in report(results_of([layer(UP, 0, 8)]))


def test_packed_folder_is_called_packed():
    sizes = Sizes(dense_bytes=1000, saved_bytes=560, saved_format="packed")
    text = report(results_of([layer(UP, 0, 512)], sizes=sizes))
    assert "| packed (this folder) | 560 B | 56% |" in text
    assert "offline-prune pack" not in text


def test_pictures_are_shown_with_their_captions():
    text = report(run(2), [Picture("blocks", "Share a block lost.")])
    assert "![Share a block lost.](figures/blocks.png)" in text


def score(task, dense, pruned):
    return TaskScore(task=task, metric="acc", dense=dense, pruned=pruned)


def test_mean_is_over_the_same_tasks():
    scores = [score("a", 0.5, 0.4), score("b", None, 0.9), score("c", 0.7, 0.5)]
    dense, pruned, count = mean_scores(scores)
    assert (dense, pruned, count) == (pytest.approx(0.6), pytest.approx(0.45), 2)
    assert mean_scores([score("a", None, 0.2)]) == (None, 0.2, 1)


def test_task_table():
    result = ZeroShotResult(
        backend="lm-eval", scores=[score("a", 0.5, 0.4), score("b", None, 0.9)]
    )
    text = quality_tables([result])
    assert "| a | acc | 50.00% | 40.00% | -10.00 |" in text
    assert "| b | acc | - | 90.00% | - |" in text
    assert "| mean of 1 |  | 50.00% | 40.00% | -10.00 |" in text


def test_collapsed_model_is_called_infinite():
    result = PerplexityResult(
        text="t",
        sha256="0",
        seq_len=8,
        windows=1,
        tokens=8,
        dense=9.0,
        pruned=float("inf"),
    )
    assert "| t | 8 | 8 | 9.000 | infinite | - |" in quality_tables([result])
