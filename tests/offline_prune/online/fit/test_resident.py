"""The resident block: order of its layers, their inputs, dense for a while."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from nmsparse import parse_pattern
from nmsparse.ops.online import Online
from offline_prune.online.fit.resident import Resident
from offline_prune.pipeline.capture import Call

ONLINE = Online(parse_pattern("2:4"))


class Block(nn.Module):
    """Calls its second linear first, and one of them for some windows only."""

    def __init__(self):
        super().__init__()
        self.late, self.early, self.rare = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, hidden_states):
        out = self.late(self.early(hidden_states))
        return self.rare(out) if float(hidden_states[0, 0, 0]) > 0 else out


@pytest.fixture
def resident():
    torch.manual_seed(0)
    return Resident(
        Block().requires_grad_(False),
        "h.3",
        index=3,
        capture=SimpleNamespace(call=lambda index, window: Call((), {})),
        windows=[torch.arange(5)] * 2,
        dense_first_token=False,
    )


def hidden(sign):
    states = torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(1))
    states[0, 0, 0] = sign
    return states


def test_the_order_is_that_of_the_calls(resident):
    assert list(resident.layers) == ["h.3.late", "h.3.early", "h.3.rare"]
    assert resident.order(hidden(1.0)) == ["h.3.early", "h.3.late", "h.3.rare"]
    assert resident.order(hidden(-1.0)) == ["h.3.early", "h.3.late", "h.3.rare"]
    assert not any(module._forward_pre_hooks for module in resident.block.modules())


def test_inputs_have_passed_the_layers_before(resident):
    states = hidden(1.0)
    dense = resident.block.early(states)[0]
    assert torch.equal(resident.inputs("h.3.late", [states])[0], dense)
    resident.set("h.3.early", ONLINE)
    found = resident.inputs("h.3.late", [states])[0]
    assert (found - dense).abs().max() > 1e-2
    with resident.dense():
        assert torch.equal(resident.inputs("h.3.late", [states])[0], dense)
    assert resident.inputs("h.3.rare", [hidden(-1.0), states])[0] is None
    resident.restore()
    assert torch.equal(resident.inputs("h.3.late", [states])[0], dense)


def test_the_first_token_may_stay_dense(resident):
    states = hidden(-1.0)
    dense = resident.output(0, states)
    resident.dense_first_token = True
    resident.set("h.3.late", ONLINE)
    resident.set("h.3.early", ONLINE)
    found = resident.output(0, states)
    torch.testing.assert_close(found[0, 0], dense[0, 0])
    assert ((found - dense)[0, 1:].abs().amax(1) > 1e-3).all()
