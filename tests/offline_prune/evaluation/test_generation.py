"""Length of greedy answers."""

from __future__ import annotations

import pytest
import torch
from support import tiny
from transformers import AutoModelForCausalLM

from offline_prune import InputError
from offline_prune.evaluation.generation import generation


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.build("llama", tmp_path_factory.mktemp("model"))


def load(folder, end):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = end
    return model


def greedy(model, text, count):
    """Return the greedy continuation, one whole forward pass a token."""
    ids = [1, *tiny.tokenizer()(text, add_special_tokens=False)["input_ids"]]
    start = len(ids)
    with torch.no_grad():
        for _ in range(count):
            ids.append(model(torch.tensor([ids])).logits[0, -1].argmax().item())
    return ids[start:]


def test_answers_are_counted_to_their_end(folder):
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = None
    prompts = ["one", "two two"]
    answers = [greedy(load(folder, None), prompt, 6) for prompt in prompts]
    end = answers[0][2]
    lengths = [a.index(end) + 1 if end in a else 6 for a in answers]
    found = generation(load(folder, end), tokenizer, prompts=prompts, max_new_tokens=6)
    assert found.mean_tokens == sum(lengths) / 2
    assert found.finished == sum(end in a for a in answers) / 2
    assert (found.prompts, found.max_new_tokens) == (2, 6)


def test_a_prompt_is_a_users_turn_where_there_is_a_chat_template(folder):
    model = load(folder, None)
    answer = greedy(model, "user: hi\nassistant: ", 5)
    assert answer != greedy(model, "hi", 5)
    ends = load(folder, answer[1])
    found = generation(ends, tiny.tokenizer(), prompts=["hi"], max_new_tokens=5)
    assert found.mean_tokens == answer.index(answer[1]) + 1
    assert found.finished == 1


def test_a_model_that_never_ends_is_cut(folder):
    found = generation(
        load(folder, None), tiny.tokenizer(), prompts=["x"], max_new_tokens=4
    )
    assert (found.mean_tokens, found.finished) == (4, 0)
    with pytest.raises(InputError, match="no prompts"):
        generation(load(folder, None), tiny.tokenizer(), prompts=[])
