"""Scores through lm-eval equal those of a plain scorer on the same local files."""

from __future__ import annotations

import json
import math
import sys

import pytest
import torch
from support import tiny
from transformers import LlamaConfig, LlamaForCausalLM

from offline_prune import InputError, MissingDependencyError
from offline_prune.evaluation.zero_shot import zero_shot

TEXT = "the red cup fell off a tall blue table into some very cold water"
WORDS = TEXT.split()


def model_and_tokenizer():
    tokenizer = tiny.tokenizer()
    torch.manual_seed(4)
    config = LlamaConfig(**tiny.SHAPE, vocab_size=len(tokenizer))
    return LlamaForCausalLM(config).eval(), tokenizer


def phrase(start, count):
    return " ".join(WORDS[(start + 3 * i) % len(WORDS)] for i in range(count))


@pytest.fixture
def data(tmp_path):
    """Write 12 rows of three tasks, one of each form."""
    rows = {
        "piqa": [
            {
                "goal": phrase(i, 4),
                "sol1": phrase(i + 1, 1 + i % 3),
                # A letter of two bytes: lm-eval divides by characters.
                "sol2": phrase(i + 2, 4) + "é" * i,
                "label": i % 2,
            }
            for i in range(12)
        ],
        "winogrande": [
            {
                "sentence": f"{phrase(i, 3)} _ {phrase(i + 5, 3)}",
                "option1": phrase(i + 1, 1),
                "option2": phrase(i + 2, 1),
                "answer": str(1 + i % 2),
            }
            for i in range(12)
        ],
        "lambada": [
            {"context": phrase(i, 5), "continuation": phrase(i + 7, 1)}
            for i in range(12)
        ],
    }
    for task, items in rows.items():
        (tmp_path / task).mkdir()
        text = "".join(json.dumps(item) + "\n" for item in items)
        (tmp_path / task / "rows.jsonl").write_text(text)
    return tmp_path, rows


def likelihood(model, tokenizer, context, continuation):
    """Return the log-likelihood of a continuation, and whether it is the greedy one."""
    start = tokenizer(context)["input_ids"]
    ids = tokenizer(context + continuation)["input_ids"]
    assert ids[0] == 1
    with torch.no_grad():
        log = model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
    places = range(len(start), len(ids))
    greedy = all(log[i - 1].argmax() == ids[i] for i in places)
    return sum(log[i - 1, ids[i]].item() for i in places), greedy


def plain_scores(model, tokenizer, rows):
    """Score as the tasks are described, without lm-eval."""

    def score(context, continuation):
        return likelihood(model, tokenizer, context, continuation)

    hits = {"acc": 0, "acc_norm": 0, "winogrande": 0, "greedy": 0}
    total = 0.0
    for row in rows["piqa"]:
        choices = [row["sol1"], row["sol2"]]
        context = f"Question: {row['goal']}\nAnswer:"
        found = [score(context, f" {choice}")[0] for choice in choices]
        norm = [x / len(choice) for x, choice in zip(found, choices, strict=True)]
        hits["acc"] += (found[1] > found[0]) == row["label"]
        hits["acc_norm"] += (norm[1] > norm[0]) == row["label"]
    for row in rows["winogrande"]:
        before, after = row["sentence"].split("_")
        found = [
            score(before + row[option], f" {after.strip()}")[0]
            for option in ("option1", "option2")
        ]
        hits["winogrande"] += (found[1] > found[0]) == (row["answer"] == "2")
    for row in rows["lambada"]:
        value, greedy = score(row["context"], f" {row['continuation']}")
        total += value
        hits["greedy"] += greedy
    return {
        ("piqa", "acc"): hits["acc"] / 12,
        ("piqa", "acc_norm"): hits["acc_norm"] / 12,
        ("winogrande", "acc"): hits["winogrande"] / 12,
        ("lambada", "acc"): hits["greedy"] / 12,
        ("lambada", "perplexity"): math.exp(-total / 12),
    }


def test_scores_are_those_of_a_plain_scorer(data):
    pytest.importorskip("lm_eval")
    folder, rows = data
    model, tokenizer = model_and_tokenizer()
    before = tokenizer.backend_tokenizer.to_str(), tokenizer.padding_side
    tasks = ["piqa", "winogrande", "lambada"]
    found = zero_shot(model, tokenizer, tasks=tasks, task_data=folder, batch_size=4)
    assert (tokenizer.backend_tokenizer.to_str(), tokenizer.padding_side) == before
    assert found.backend.startswith("lm-eval ")
    values = {(score.task, score.metric): score.value for score in found.scores}
    expected = plain_scores(model, tokenizer, rows)
    assert values == pytest.approx(expected, rel=1e-3)
    assert expected["piqa", "acc"] != expected["piqa", "acc_norm"]
    by_name = {(score.task, score.metric): score for score in found.scores}
    accuracy = by_name["piqa", "acc"]
    assert accuracy.examples == 12
    hits = torch.tensor([1.0] * round(12 * accuracy.value))
    outcomes = torch.cat([hits, torch.zeros(12 - len(hits))])
    assert accuracy.stderr == pytest.approx(outcomes.std().item() / math.sqrt(12))
    assert by_name["lambada", "perplexity"].stderr is None


def test_only_the_first_examples(data):
    pytest.importorskip("lm_eval")
    model, tokenizer = model_and_tokenizer()
    found = zero_shot(model, tokenizer, tasks=["piqa"], task_data=data[0], limit=5)
    assert {score.examples for score in found.scores} == {5}


def test_unknown_tasks_are_refused(data):
    pytest.importorskip("lm_eval")
    model, tokenizer = model_and_tokenizer()
    with pytest.raises(InputError, match="Did you mean: piqa"):
        zero_shot(model, tokenizer, tasks=["pica"], task_data=data[0])
    with pytest.raises(InputError, match="no task"):
        zero_shot(model, tokenizer, tasks=[], task_data=data[0])


class Manager:
    """What is used of lm-eval's task manager, which reads 10,000 files."""

    all_tasks = ("piqa", "winogrande")


def test_tasks_of_the_hub_without_a_network(monkeypatch):
    lm_eval = pytest.importorskip("lm_eval")

    def unreachable(**arguments):
        assert arguments["tasks"] == ["piqa"]
        raise ConnectionError("no route to the Hub")

    monkeypatch.setattr("lm_eval.tasks.TaskManager", Manager)
    monkeypatch.setattr(lm_eval, "simple_evaluate", unreachable, raising=False)
    model, tokenizer = model_and_tokenizer()
    with pytest.raises(InputError, match=r"data of piqa.*no route.*task_data"):
        zero_shot(model, tokenizer, tasks=["piqa"])
    with pytest.raises(InputError, match=r"'winogrand'. Did you mean: winogrande\?"):
        zero_shot(model, tokenizer, tasks=["winogrand"])


def test_without_lm_eval_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    model, tokenizer = model_and_tokenizer()
    with pytest.raises(MissingDependencyError, match=r"vllm-sparse\[eval\]"):
        zero_shot(model, tokenizer, tasks=["piqa"])
