"""Rows of tasks become the fields lm-eval scores, from simplified and original rows."""

from __future__ import annotations

import json

import pytest

from offline_prune import InputError
from offline_prune.evaluation.task_files import read_task
from offline_prune.evaluation.tasks import PAPER_TASKS, TASKS

LETTERED = {
    "choices": {"text": ["red", "blue", "sea"], "label": ["A", "B", "C"]},
    "answerKey": "C",
}
ANSWERS = {"choices": ["red", "blue", "sea"], "gold": 2}
CASES = [
    (
        "hellaswag",
        {"query": "Rowing: A man", "endings": ["sits.", "  rows [x]."], "label": 1},
        {"query": "Rowing: A man", "choices": ["sits.", "  rows [x]."], "gold": 1},
    ),
    (
        "hellaswag",
        {
            "activity_label": "Rowing",
            "ctx_a": "[header] How to row [title] Sit.",
            "ctx_b": "the man",
            "endings": ["sits [step] up.", "falls."],
            "label": "0",
        },
        {
            "query": "Rowing: How to row. Sit. The man",
            "choices": ["sits up.", "falls."],
            "gold": 0,
        },
    ),
    (
        "winogrande",
        {
            "sentence": "The cup fell off the tray as _ was tilted .",
            "option1": "the cup",
            "option2": "the tray",
            "answer": "2",
        },
        {
            "choices": [
                "The cup fell off the tray as the cup",
                "The cup fell off the tray as the tray",
            ],
            "target": "was tilted .",
            "gold": 1,
        },
    ),
    (
        "piqa",
        {"goal": "open it", "sol1": "pull", "sol2": "push", "label": 1},
        {
            "query": "Question: open it\nAnswer:",
            "choices": ["pull", "push"],
            "gold": 1,
        },
    ),
    (
        "boolq",
        {"passage": "Water is wet.", "question": "is water wet", "answer": True},
        {
            "query": "Water is wet.\nQuestion: is water wet?\nAnswer:",
            "choices": ["no", "yes"],
            "gold": 1,
        },
    ),
    (
        "boolq",
        {"passage": "P", "question": "q", "label": 0},
        {"query": "P\nQuestion: q?\nAnswer:", "choices": ["no", "yes"], "gold": 0},
    ),
    (
        "arc_easy",
        {"question": "Which?", **LETTERED},
        {"query": "Question: Which?\nAnswer:", **ANSWERS},
    ),
    (
        "arc_challenge",
        {
            "question": "Which?",
            "choices": {"text": ["red", "blue", "sea"], "label": ["1", "2", "3"]},
            "answerKey": "3",
        },
        {"query": "Question: Which?\nAnswer:", **ANSWERS},
    ),
    ("openbookqa", {"question": "Fish live in the", **LETTERED}, None),
    ("openbookqa", {"question_stem": "Fish live in the", **LETTERED}, None),
    (
        "rte",
        {"sentence1": "It rains.", "sentence2": "It is dry.", "label": 1},
        {
            "query": "It rains.\nQuestion: It is dry. True or False?\nAnswer:",
            "choices": ["True", "False"],
            "gold": 1,
        },
    ),
    (
        "lambada",
        {"context": "He met his old", "continuation": "friend"},
        {"query": "He met his old", "target": " friend"},
    ),
    (
        "lambada_openai",
        {"text": "He met his old friend"},
        {"query": "He met his old", "target": " friend"},
    ),
]


@pytest.mark.parametrize(("task", "row", "expected"), CASES)
def test_rows(task, row, expected):
    expected = expected or {"query": "Fish live in the", **ANSWERS}
    assert TASKS[task].read(row) == expected


def test_every_task_has_a_case_and_the_papers_tasks_are_there():
    assert {task for task, *_ in CASES} == set(TASKS)
    assert set(PAPER_TASKS) <= set(TASKS)


def write(folder, task, name, rows):
    (folder / task).mkdir(exist_ok=True)
    path = folder / task / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_files_are_read_in_order(tmp_path):
    row = CASES[3][1]
    write(tmp_path, "piqa", "b.jsonl", [{**row, "goal": "second"}] * 2)
    write(tmp_path, "piqa", "a.jsonl", [{**row, "goal": "first"}])
    (tmp_path / "piqa" / "notes.md").write_text("not data")
    queries = [item["query"].split()[1] for item in read_task(tmp_path, "piqa")]
    assert queries == ["first", "second", "second"]
    assert len(read_task(tmp_path, "piqa", limit=2)) == 2


@pytest.mark.parametrize(
    ("task", "row", "message"),
    [
        ("piqa", {"goal": "x", "sol1": "a", "label": 0}, "line 1.*no field 'sol2'"),
        ("piqa", {**CASES[3][1], "label": -1}, "the right answer is -1 of 2"),
        ("piqa", {**CASES[3][1], "label": "x"}, "invalid literal"),
        ("winogrande", {**CASES[2][1], "sentence": "no blank"}, "as winogrande"),
        ("arc_easy", {**LETTERED, "question": "q", "answerKey": "E"}, "as arc_easy"),
        ("hellaswag", {"query": "q", "endings": None, "label": 0}, "as hellaswag"),
    ],
)
def test_rows_that_do_not_fit_are_named(tmp_path, task, row, message):
    write(tmp_path, task, "rows.jsonl", [row])
    with pytest.raises(InputError, match=message):
        read_task(tmp_path, task)


def test_missing_data_is_explained(tmp_path):
    write(tmp_path, "piqa", "rows.jsonl", [CASES[3][1]])
    with pytest.raises(InputError, match=r"no rte/\*\.jsonl.*found piqa"):
        read_task(tmp_path, "rte")
    with pytest.raises(InputError, match=r"Unknown task 'pica'. Did you mean: piqa"):
        read_task(tmp_path, "pica")
