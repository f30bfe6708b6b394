"""Layer reports: plain values, one copy for all counters."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from nmsparse.pattern import NMPattern
from vllm_sparse.phases import Steps
from vllm_sparse.state import LayerState, layer_report, read_counters


def make_state(name="model.layers.0.mlp.down_proj", counts=None, pattern=None):
    return LayerState(
        name=name,
        layer_class="RowParallelLinear",
        in_features=128,
        out_features=64,
        pattern=pattern,
        criterion="magnitude" if pattern else None,
        backend="reference" if pattern else "dense",
        reason="target Linear",
        weight_pattern="2:4",
        k_sharded=True,
        counters=None if counts is None else torch.tensor(counts),
    )


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("model.layers.0.mlp.down_proj", "down"),
        ("model.layers.0.self_attn.qkv_proj", "qkv"),
        ("model.layers.0.mlp.gate_up_proj", "gate_up"),
        ("transformer.h.0.attn.c_attn", "c_attn"),
        ("lm_head", "lm_head"),
    ],
)
def test_kind_is_the_role_in_a_block(name, kind):
    assert make_state(name).kind == kind


def test_report_of_a_sparse_layer():
    state = make_state(pattern=NMPattern(8, 16))
    report = layer_report(state, [200, 100], [])
    assert report == {
        "name": "model.layers.0.mlp.down_proj",
        "kind": "down",
        "layer_class": "RowParallelLinear",
        "in_features": 128,
        "out_features": 64,
        "pattern": "8:16",
        "criterion": "magnitude",
        "mitigation": [],
        "parameters": {},
        "backend": "reference",
        "reason": "target Linear",
        "weight_pattern": "2:4",
        "k_sharded": True,
        "elements": 200,
        "nonzeros": 100,
        "density": 0.5,
        "ways": {},
        "calls": {},
        "weight_sparsity": None,
        "extra_bytes": 0,
        "extra_weights": 0,
        "fallbacks": {},
        "bytes_read": 0,
        "bytes_skipped": 0,
    }
    assert json.loads(json.dumps(report)) == report


def test_density_is_unknown_before_the_first_token():
    report = layer_report(make_state(), [0, 0], [])
    assert report["density"] is None
    assert report["pattern"] is None
    assert report["criterion"] is None


def test_counters_are_read_in_the_order_of_the_layers():
    states = [make_state(counts=c) for c in (None, [1, 2], None, [3, 4])]
    assert read_counters(states) == [[0, 0], [1, 2], [0, 0], [3, 4]]


@pytest.mark.parametrize("states", [[], [make_state()]], ids=["no layer", "dense"])
def test_nothing_to_read(states):
    assert read_counters(states) == [[0, 0]] * len(states)


def test_a_layer_that_vllm_multiplies_reads_its_whole_weight_at_every_step():
    state = make_state(pattern=NMPattern(8, 16))
    method = SimpleNamespace(weight_bytes=100)
    state.find_method, state.fallback = lambda: method, "quantized"
    steps = [Steps(1, True, 3), Steps(5, False, 2), Steps(2, None, 1)]
    work = state.work(steps)
    assert (work.read, work.skipped) == (600, 0)
    assert work.fallbacks == {"quantized": 4}, "prompts were not to be sparse"
    assert work.calls == {}
    assert make_state().work(steps) is None, "a dense layer is not looked at"
