"""Rows of the papers' zero-shot tasks as lm-eval's own definitions read them.

A reader turns a row of a local file into the fields of one of three forms, in which
lm-eval then builds the requests and scores them:

* choices: one context ``query``, continuations ``choices``, index ``gold``;
* contexts: contexts ``choices``, one continuation ``target``, index ``gold``: the
  partial scoring of WinoGrande;
* continuation: context ``query``, continuation ``target``.

lm-eval puts a space before choices, and before the target of contexts. Both the fields
of the original data sets and simplified ones are understood.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Row = Mapping[str, Any]
Form = Literal["choices", "contexts", "continuation"]


@dataclass(frozen=True, slots=True)
class Task:
    """A task that can be read from local files.

    Attributes:
        form: how it is scored.
        metrics: lm-eval's metrics.
        read: a row to the fields of ``form``; KeyError, ValueError or TypeError if it
            cannot.
    """

    form: Form
    metrics: tuple[str, ...]
    read: Callable[[Row], dict[str, Any]]


def _hellaswag(row: Row) -> dict[str, Any]:
    query, endings = row.get("query"), list(row["endings"])
    if query is None:
        text = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
        query, endings = _clean(text), [_clean(ending) for ending in endings]
    return _choices(query, endings, int(row["label"]))


def _clean(text: str) -> str:
    """Remove what WikiHow left in HellaSwag, as lm-eval does."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def _winogrande(row: Row) -> dict[str, Any]:
    before, after = row["sentence"].split("_", 1)
    contexts = [before + row["option1"], before + row["option2"]]
    gold = ("1", "2").index(str(row["answer"]))
    return {"choices": contexts, "target": after.strip(), "gold": gold}


def _piqa(row: Row) -> dict[str, Any]:
    query = f"Question: {row['goal']}\nAnswer:"
    return _choices(query, [row["sol1"], row["sol2"]], int(row["label"]))


def _boolq(row: Row) -> dict[str, Any]:
    query = f"{row['passage']}\nQuestion: {row['question']}?\nAnswer:"
    label = row["label"] if "label" in row else row["answer"]
    return _choices(query, ["no", "yes"], int(label))


def _arc(row: Row) -> dict[str, Any]:
    return _lettered(row, f"Question: {row['question']}\nAnswer:")


def _openbookqa(row: Row) -> dict[str, Any]:
    query = row["question_stem"] if "question_stem" in row else row["question"]
    return _lettered(row, query)


def _lettered(row: Row, query: str) -> dict[str, Any]:
    choices = row["choices"]
    gold = list(choices["label"]).index(row["answerKey"].strip())
    return _choices(query, list(choices["text"]), gold)


def _rte(row: Row) -> dict[str, Any]:
    query = f"{row['sentence1']}\nQuestion: {row['sentence2']} True or False?\nAnswer:"
    return _choices(query, ["True", "False"], int(row["label"]))


def _lambada(row: Row) -> dict[str, Any]:
    if "continuation" in row:
        return {"query": row["context"], "target": f" {row['continuation']}"}
    context, _, word = row["text"].rpartition(" ")
    return {"query": context, "target": f" {word}"}


def _choices(query: str, choices: list[str], gold: int) -> dict[str, Any]:
    if not 0 <= gold < len(choices):
        raise ValueError(f"the right answer is {gold} of {len(choices)} choices")
    return {"query": query, "choices": choices, "gold": gold}


_ACC = ("acc",)
_BOTH = ("acc", "acc_norm")

TASKS: dict[str, Task] = {
    "arc_challenge": Task("choices", _BOTH, _arc),
    "arc_easy": Task("choices", _BOTH, _arc),
    "boolq": Task("choices", _ACC, _boolq),
    "hellaswag": Task("choices", _BOTH, _hellaswag),
    "lambada": Task("continuation", ("acc", "perplexity"), _lambada),
    "lambada_openai": Task("continuation", ("acc", "perplexity"), _lambada),
    "openbookqa": Task("choices", _BOTH, _openbookqa),
    "piqa": Task("choices", _BOTH, _piqa),
    "rte": Task("choices", _ACC, _rte),
    "winogrande": Task("contexts", _ACC, _winogrande),
}

# What Wanda, OWL and AlphaPruning average.
PAPER_TASKS = (
    "boolq",
    "rte",
    "hellaswag",
    "winogrande",
    "arc_easy",
    "arc_challenge",
    "openbookqa",
)
