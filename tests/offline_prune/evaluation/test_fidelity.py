"""Fidelity against plain loops and in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from support import tiny
from transformers import LlamaConfig, LlamaForCausalLM

from offline_prune import InputError
from offline_prune.evaluation import logits as logits_module
from offline_prune.evaluation.fidelity import fidelity


def llama(seed, vocabulary=50):
    torch.manual_seed(seed)
    config = LlamaConfig(**{**tiny.SHAPE, "vocab_size": vocabulary})
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def windows():
    return list(torch.randint(3, 50, (2, 9), generator=torch.manual_seed(3)))


def distributions(model, windows):
    with torch.no_grad():
        return torch.cat(
            [model(w[None]).logits[0].double().softmax(-1) for w in windows]
        )


def test_a_model_agrees_with_itself(windows, monkeypatch):
    monkeypatch.setattr(logits_module, "_ELEMENTS", 50 * 4)
    model = llama(0)
    found = fidelity(model, model, windows=windows)
    assert (found.kl, found.top1_agreement) == (0, 1)
    assert (found.tokens, found.windows) == (18, 2)
    assert "forward" not in model.model.__dict__


@pytest.mark.parametrize("rows", [1, 4, 100])
def test_divergence_is_from_the_dense_model(windows, rows, monkeypatch):
    monkeypatch.setattr(logits_module, "_ELEMENTS", 50 * rows)
    dense, pruned = llama(0), llama(0)
    torch.manual_seed(9)
    with torch.no_grad():
        for parameter in pruned.model.layers.parameters():
            parameter.mul_(torch.rand_like(parameter) > 0.01)
    found = fidelity(dense, pruned, windows=windows)
    p, q = distributions(dense, windows), distributions(pruned, windows)
    expected = sum(
        (row * (row / other).log()).sum().item()
        for row, other in zip(p, q, strict=True)
    )
    assert found.kl == pytest.approx(expected / 18, rel=1e-4)
    assert found.kl != pytest.approx(fidelity(pruned, dense, windows=windows).kl)
    same = sum(int(a.argmax() == b.argmax()) for a, b in zip(p, q, strict=True))
    assert found.top1_agreement == same / 18
    assert 0 < found.top1_agreement < 1


def test_divergence_from_dense_to_uniform_is_the_missing_entropy(windows):
    dense, uniform = llama(1), llama(1)
    torch.nn.init.zeros_(uniform.lm_head.weight)
    p = distributions(dense, windows)
    entropy = -(p * p.log()).sum(-1).mean().item()
    found = fidelity(dense, uniform, windows=windows)
    assert found.kl == pytest.approx(math.log(50) - entropy, rel=1e-4)


def test_what_cannot_be_compared_is_refused(windows):
    with pytest.raises(InputError, match="vocabularies of 50 and 60"):
        fidelity(llama(0), llama(0, 60), windows=windows)
    with pytest.raises(InputError, match="no windows"):
        fidelity(llama(0), llama(0), windows=[])
