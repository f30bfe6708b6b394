"""The model card: metadata for the Hub, and a base model's card that is not lost."""

from __future__ import annotations

import pytest
from huggingface_hub import ModelCard
from support.run_results import layer, results_of, run

from offline_prune.report.card import BOUNDARY, base_text, model_card, split_card
from offline_prune.report.measurements import PerplexityResult

BASE = """---
license: gemma
language: [en, de]
tags: [chat]
base_model: someone/else
extra_gated_prompt: Read the terms.
model-index:
- name: base
  results: []
---
# Base model

Its **text**, with --- and a table:

| a | b |
| - | - |
"""


@pytest.fixture(scope="module")
def results():
    return run(3)


def parsed(text):
    card = ModelCard(text)
    return card.data.to_dict(), card.text


def test_metadata(results):
    data, _ = parsed(model_card(results))
    assert data["base_model"] == "example/Tiny-1B"
    assert data["base_model_relation"] == "quantized"
    assert data["library_name"] == "transformers"
    assert data["pipeline_tag"] == "text-generation"
    assert {"sparse", "pruned", "vllm"} <= set(data["tags"])
    (entry,) = data["model-index"]
    found = {
        (r["dataset"]["name"], m["type"]): m["value"]
        for r in entry["results"]
        for m in r["metrics"]
    }
    assert found["WikiText-2 test", "perplexity"] == 24.5513
    assert len(found) == 7


def test_pattern_is_a_tag():
    layers = [layer("model.layers.0.mlp.up_proj", 0, 512, pattern="2:4")]
    text = model_card(results_of(layers))
    data, body = parsed(text)
    assert "2of4" in data["tags"]
    assert "# Tiny-1B-2of4" in body
    assert "model-index" not in data


def test_base_card_is_kept(results):
    data, body = parsed(model_card(results, existing=BASE))
    assert data["license"] == "gemma"
    assert data["language"] == ["en", "de"]
    assert data["extra_gated_prompt"] == "Read the terms."
    assert data["tags"][:2] == ["chat", "sparse"]
    assert data["base_model"] == "example/Tiny-1B"
    assert data["model-index"][0]["name"] != "base"
    ours, _, below = body.partition(BOUNDARY)
    assert "Its **text**" not in ours
    assert below.endswith(BASE.partition("---\n# ")[2].rstrip() + "\n")


def test_again_gives_the_same_card(results):
    for base in ("", BASE, "No metadata at all.\n"):
        once = model_card(results, existing=base)
        assert model_card(results, existing=once) == once


def test_new_numbers_replace_old_ones(results):
    first = model_card(results, existing=BASE)
    second = model_card(results.model_copy(update={"evaluation": []}), existing=first)
    assert "24.55" in first
    assert "24.55" not in second
    assert "Its **text**" in second
    assert "model-index" not in parsed(second)[0]


def test_model_without_a_hub_id_claims_none():
    layers = [layer("model.layers.0.mlp.up_proj", 0, 512)]
    plain = results_of(layers)
    local = plain.model_copy(
        update={"model": plain.model.model_copy(update={"hub_id": None})}
    )
    data, _ = parsed(model_card(local))
    assert "base_model" not in data
    assert "base_model_relation" not in data


def test_unreadable_metadata_stay_in_the_text(results):
    broken = "---\nlicense: [gemma\n---\n# Base\n"
    data, body = parsed(model_card(results, existing=broken))
    assert "license" not in data
    assert "license: [gemma" in body


def test_infinite_perplexity_is_not_put_into_metadata(results):
    inf = PerplexityResult(
        text="t", sha256="0", seq_len=8, windows=1, tokens=8, pruned=float("inf")
    )
    text = model_card(results.model_copy(update={"evaluation": [inf]}))
    assert "model-index" not in parsed(text)[0]
    assert "infinite" in text


@pytest.mark.parametrize(
    ("content", "metadata", "text"),
    [
        ("", {}, ""),
        ("# A\n", {}, "# A\n"),
        ("---\na: 1\n---\n# A\n", {"a": 1}, "# A\n"),
        ("\ufeff---\r\na: 1\r\n---\r\n# A\r\n", {"a": 1}, "# A\n"),
        ("---\nno end\n", {}, "---\nno end\n"),
        ("---\n- a list\n---\nx", {}, "---\n- a list\n---\nx"),
    ],
)
def test_split_card(content, metadata, text):
    assert split_card(content) == (metadata, text)


def test_base_text():
    assert base_text("# Mine\n") == "# Mine"
    assert base_text(f"ours\n{BOUNDARY}\n") == ""
