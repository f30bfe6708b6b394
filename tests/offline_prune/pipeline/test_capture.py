"""Arguments of blocks come from the model's own forward, whatever they depend on."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from offline_prune.pipeline.capture import Capture, run_block
from offline_prune.pipeline.stream import Stream


class Block(nn.Module):
    def __init__(self, width, *, pair):
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.pair = pair

    def forward(self, hidden_states, scale, shift=None):
        out = hidden_states + self.linear(hidden_states) * scale + shift
        return (out, "weights") if self.pair else out


class Model(nn.Module):
    """Hands its blocks a scale of the position, and a shift of the tokens if asked."""

    def __init__(self, *, by_token, pair):
        super().__init__()
        self.embed = nn.Embedding(8, 8)
        self.layers = nn.ModuleList(Block(8, pair=pair) for _ in range(3))
        self.by_token, self.pair = by_token, pair

    @property
    def base_model(self):
        return self

    def forward(self, input_ids, use_cache):
        assert use_cache is False
        hidden = self.embed(input_ids)
        shift = input_ids.float().mean() if self.by_token else torch.tensor(0.5)
        for number, block in enumerate(self.layers):
            out = block(hidden, torch.tensor(float(number)), shift=shift)
            hidden = out[0] if self.pair else out
        return SimpleNamespace(logits=hidden)


def skeleton_of(model):
    blocks = list(model.layers)
    return SimpleNamespace(
        model=model,
        blocks=blocks,
        device=torch.device("cpu"),
        load=lambda index: blocks[index],
        unload=lambda index: None,
    )


@pytest.mark.parametrize("pair", [False, True])
@pytest.mark.parametrize("by_token", [False, True])
def test_a_stream_gives_what_the_whole_model_gives(by_token, pair):
    torch.manual_seed(0)
    model = Model(by_token=by_token, pair=pair).eval()
    windows = [torch.randint(0, 8, (6,)) for _ in range(4)]
    with torch.no_grad():
        expected = [model(w[None], use_cache=False).logits for w in windows]
    capture = Capture(skeleton_of(model))
    stream = Stream(capture, windows)
    for index, block in enumerate(model.layers):
        stream.advance(index, block)
    for found, whole in zip(stream.hidden, expected, strict=True):
        assert torch.equal(found, whole)
    loss, count = stream.loss()
    assert count == 4 * 5
    whole = sum(
        float(nn.functional.cross_entropy(e[0, :-1], w[1:], reduction="sum"))
        for e, w in zip(expected, windows, strict=True)
    )
    assert loss == pytest.approx(whole, rel=1e-6)


def test_blocks_are_themselves_again():
    model = Model(by_token=False, pair=False)
    capture = Capture(skeleton_of(model))
    window = torch.arange(4)
    hidden = capture.begin(window)
    assert all("forward" not in block.__dict__ for block in model.layers)
    call = capture.call(1, window)
    out = run_block(model.layers[1], hidden, call)
    assert out.shape == (1, 4, 8)
    assert float(call.args[0]) == 1.0
    assert float(call.kwargs["shift"]) == 0.5
