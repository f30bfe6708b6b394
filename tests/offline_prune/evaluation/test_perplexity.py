"""Perplexity against the whole logits at once, and in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from support import tiny
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from offline_prune import InputError
from offline_prune.evaluation import logits as logits_module
from offline_prune.evaluation.logits import WindowLogits
from offline_prune.evaluation.perplexity import perplexity

SHAPE = {**tiny.SHAPE, "vocab_size": 259}


class WholeLogits(LlamaForCausalLM):
    """A model of an older kind: it cannot make some of its logits only."""

    def forward(self, input_ids=None, use_cache=None):
        return super().forward(input_ids=input_ids, use_cache=use_cache)


def llama(kind=LlamaForCausalLM):
    torch.manual_seed(0)
    return kind(LlamaConfig(**SHAPE)).eval()


def capped():
    torch.manual_seed(0)
    config = Gemma2Config(**SHAPE, final_logit_softcapping=0.5)
    return Gemma2ForCausalLM(config).eval()


def windows(count=3, length=20):
    generator = torch.Generator().manual_seed(1)
    return list(torch.randint(3, 259, (count, length), generator=generator))


def papers_perplexity(model, data):
    """Wanda's eval: exp of the mean over windows of the windows' mean loss."""
    losses = []
    with torch.no_grad():
        for window in data:
            shifted = model(window[None]).logits[0, :-1].double()
            log = torch.log(torch.exp(shifted) / torch.exp(shifted).sum(1)[:, None])
            losses.append(-log[torch.arange(len(window) - 1), window[1:]].mean())
    return torch.exp(torch.stack(losses).mean()).item()


@pytest.mark.parametrize("make", [llama, capped, lambda: llama(WholeLogits)])
@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_value_is_the_papers(make, rows, monkeypatch):
    monkeypatch.setattr(logits_module, "_ELEMENTS", 259 * rows)
    model, data = make(), windows()
    found = perplexity(model, data)
    assert found.value == pytest.approx(papers_perplexity(model, data), rel=1e-5)
    assert found.nll == pytest.approx(math.log(found.value))
    assert (found.tokens, found.windows) == (3 * 19, 3)


def test_a_uniform_model_is_as_perplexed_as_its_vocabulary_is_large():
    model = llama()
    torch.nn.init.zeros_(model.lm_head.weight)
    assert perplexity(model, windows()).value == pytest.approx(259, rel=1e-6)


def test_windows_of_different_length_count_by_their_tokens():
    model, (short, long) = llama(), [windows(1, 5)[0], windows(1, 40)[0]]
    together = perplexity(model, [short, long]).nll
    alone = [perplexity(model, [window]).nll for window in (short, long)]
    assert together == pytest.approx((4 * alone[0] + 39 * alone[1]) / 43)


def test_the_decoder_runs_once_a_window_and_the_logits_stay_small(monkeypatch):
    monkeypatch.setattr(logits_module, "_ELEMENTS", 259 * 4)
    model, calls, sizes = llama(), [], []
    model.model.register_forward_hook(lambda *_: None)
    model.model.layers[0].register_forward_hook(lambda *_: calls.append(1))
    model.lm_head.register_forward_hook(lambda _m, _x, y: sizes.append(y.shape[1]))
    perplexity(model, windows())
    assert len(calls) == 3
    assert max(sizes) == 4
    assert sum(sizes) == 3 * 19


def test_the_models_forward_is_as_before(monkeypatch):
    monkeypatch.setattr(logits_module, "_ELEMENTS", 259 * 4)
    model, data = llama(), windows(2)
    perplexity(model, data)
    assert "forward" not in model.model.__dict__
    # accelerate replaces forward on the instance; its replacement must stay.
    hooked = model.model.forward
    model.model.forward = hooked
    perplexity(model, data)
    assert model.model.__dict__["forward"] is hooked

    def broken(*_, **__):
        raise RuntimeError("out of memory")

    model.lm_head.forward = broken
    with pytest.raises(RuntimeError, match="out of memory"):
        perplexity(model, data)
    assert model.model.__dict__["forward"] is hooked


def test_chunks_are_the_logits(monkeypatch):
    monkeypatch.setattr(logits_module, "_ELEMENTS", 259 * 6)
    model, window = llama().bfloat16(), windows(1)[0]
    with torch.no_grad():
        whole = model(window[None]).logits[0].float()
        parts = list(WindowLogits(model, window).chunks(15))
    assert [part for part, _ in parts] == [slice(0, 6), slice(6, 12), slice(12, 15)]
    assert all(logits.dtype == torch.float32 for _, logits in parts)
    torch.testing.assert_close(
        torch.cat([logits for _, logits in parts]), whole[:15], rtol=2e-2, atol=2e-2
    )


def test_a_collapsed_model_has_infinite_perplexity():
    model = llama()
    torch.nn.init.zeros_(model.lm_head.weight)
    window = torch.tensor([30, 6, 7])
    with torch.no_grad():
        model.lm_head.weight[5] = 1e4 * model.model(window[None])[0][0, 0]
    found = perplexity(model, [window])
    assert found.value == math.inf
    assert found.nll > 1000


def test_nothing_to_predict_is_refused():
    for data in ([], [torch.tensor([3])]):
        with pytest.raises(InputError, match="without a token to predict"):
            perplexity(llama(), data)


def test_it_runs_in_the_models_own_dtype(tmp_path):
    folder = tiny.build("qwen2", tmp_path)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    found = perplexity(model, windows())
    assert found.nll == pytest.approx(
        math.log(papers_perplexity(model, windows())), rel=1e-2
    )
