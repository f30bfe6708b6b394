"""Our tasks over local rows make the requests and scores of lm-eval's own tasks."""

from __future__ import annotations

from pathlib import Path

import pytest

from offline_prune.evaluation.tasks import TASKS

pytest.importorskip("lm_eval")

import datasets
import lm_eval
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks._yaml_loader import load_yaml

from offline_prune.evaluation.zero_shot import local_task

CHOICES = {"text": ["a rock", "the sea ", "Öl", "7"], "label": ["A", "B", "C", "D"]}
ENDINGS = ["sits [step] up.", "rows  on [title] and on", "falls.", "42"]

# File of lm-eval's definition, and rows as the original data sets have them.
ORIGINAL = {
    "hellaswag": (
        "hellaswag/hellaswag.yaml",
        [
            {
                "activity_label": "Rowing",
                "ctx_a": " [header] How to row [title] Sit.",
                "ctx_b": "the Man",
                "endings": ENDINGS[i:] + ENDINGS[:i],
                "label": str(i),
            }
            for i in range(4)
        ],
    ),
    "winogrande": (
        "winogrande/default.yaml",
        [
            {
                "sentence": "The cup fell off the tray as _ was tilted . ",
                "option1": "the cup",
                "option2": "the tray",
                "answer": answer,
            }
            for answer in "12"
        ],
    ),
    "piqa": (
        "piqa/piqa.yaml",
        [
            {"goal": "to open it, ", "sol1": "pull ", "sol2": "pußh", "label": label}
            for label in (0, 1)
        ],
    ),
    "boolq": (
        "super_glue/boolq/default.yaml",
        [
            {"passage": "Water is wet.\n", "question": "is it wet", "label": label}
            for label in (0, 1)
        ],
    ),
    "arc_easy": (
        "arc/arc_easy.yaml",
        [{"question": "Which?", "choices": CHOICES, "answerKey": k} for k in "ABCD"],
    ),
    "arc_challenge": (
        "arc/arc_challenge.yaml",
        [
            {
                "question": "Which? ",
                "choices": {**CHOICES, "label": ["1", "2", "3", "4"]},
                "answerKey": "3",
            }
        ],
    ),
    "openbookqa": (
        "openbookqa/openbookqa.yaml",
        [
            {"question_stem": "Fish live in", "choices": CHOICES, "answerKey": k}
            for k in ("B", " C")
        ],
    ),
    "rte": (
        "glue/rte/default.yaml",
        [
            {"sentence1": "It rains.", "sentence2": "It is dry.", "label": label}
            for label in (0, 1)
        ],
    ),
    "lambada_openai": (
        "lambada/lambada_openai.yaml",
        [{"text": "He met  his\nold friend"}, {"text": "one"}],
    ),
}


def official_task(file, rows):
    """Return lm-eval's task over rows at hand."""

    class Official(ConfigurableTask):
        def download(self, *_, **__):
            documents = datasets.Dataset.from_list(rows)
            self.dataset = dict.fromkeys(("train", "validation", "test"), documents)

    path = Path(lm_eval.__file__).parent / "tasks" / file
    config = load_yaml(path, resolve_func=True)
    return Official(config={key: config[key] for key in config if key != "tag"})


def outcomes(task):
    """Return the requests of every document, and its scores for some likelihoods."""
    task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(0)
    task.build_all_requests(rank=0, world_size=1)
    groups: dict[int, list] = {}
    for instance in task.instances:
        groups.setdefault(instance.doc_id, []).append(instance)
    found = []
    for number, group in sorted(groups.items()):
        # Likelihoods per character differ from likelihoods in order.
        likelihoods = [(-(7.0 + 5 * ((i * 3 + number) % 4)), i == 1) for i in range(4)]
        results = likelihoods[: len(group)]
        scores = task.process_results(group[0].doc, results)
        found.append(([instance.args for instance in group], scores))
    return found


def test_every_task_is_compared():
    # lambada is lambada_openai over rows that are split already.
    assert set(ORIGINAL) | {"lambada"} == set(TASKS)


@pytest.mark.parametrize("name", sorted(ORIGINAL))
def test_requests_and_scores_are_those_of_lm_eval(name):
    file, rows = ORIGINAL[name]
    ours = outcomes(local_task(name, [TASKS[name].read(row) for row in rows]))
    assert ours == outcomes(official_task(file, rows))
    assert len(ours) == len(rows)


@pytest.mark.parametrize("name", sorted(ORIGINAL))
def test_metrics_are_those_of_lm_eval(name):
    file, rows = ORIGINAL[name]
    ours = local_task(name, [TASKS[name].read(row) for row in rows])
    official = official_task(file, rows)
    assert set(ours.aggregation()) == set(official.aggregation())
    assert ours.higher_is_better() == official.higher_is_better()
    for metric, aggregate in ours.aggregation().items():
        assert aggregate is official.aggregation()[metric]
