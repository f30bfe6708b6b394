"""Block by block: errors fall, the gate holds, a resumed run is the same run."""

from __future__ import annotations

import pytest
import torch
from support import zoo
from transformers import AutoModelForCausalLM

from nmsparse import SparsityConfig, parse_pattern
from nmsparse.ops.online import Online
from nmsparse.parameters import Parameters, fuse, read_parameters, write_parameters
from offline_prune.errors import InputError
from offline_prune.online import blockwise
from offline_prune.online.blockwise import fit_blocks
from offline_prune.online.emulation import attach
from offline_prune.online.fit import parts
from offline_prune.online.fit.options import FitOptions
from offline_prune.online.fused import fused_linears
from offline_prune.pipeline.capture import Capture
from offline_prune.pipeline.skeleton import Skeleton
from offline_prune.pipeline.source import open_source
from offline_prune.pipeline.store import Store

PATTERN = parse_pattern("8:16")
WINDOWS = [torch.tensor(row) for row in zoo.windows(8, 24)]
HELD_OUT = WINDOWS[6:]
ALL = ("l_pts", "var", "ls", "r_sparse", "output_shift")
OPTIONS = FitOptions(rank=8)
LAYERS = ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {
        family: zoo.build(family, tmp_path_factory.mktemp(family), dtype="float32")
        for family in ("llama", "qwen2", "gemma3")
    }


def fit(folder, mitigation=ALL, *, rules=None, pattern=PATTERN, **arguments):
    skeleton = Skeleton.build(open_source(folder, tokenizer=False))
    if rules is None:
        online = Online(pattern, "magnitude", mitigation)
        names = [layer.name for layer in fused_linears(skeleton.model)]
        rules = dict.fromkeys(names, online)
    arguments = {"options": OPTIONS, **arguments}
    return fit_blocks(skeleton, Capture(skeleton), WINDOWS, rules, **arguments)


def last_error(folder, config, parameters, **arguments):
    """Return the median relative error of the last block, through the whole model."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    found = []
    model.model.layers[-1].register_forward_hook(
        lambda module, args, out: found.append(
            out[0] if isinstance(out, tuple) else out
        )
    )
    errors = []
    for window in HELD_OUT:
        with torch.inference_mode():
            model(window[None])
            with attach(model, config, parameters, **arguments):
                model(window[None])
        sparse, dense = found.pop()[0, 1:], found.pop()[0, 1:]
        errors.append((sparse - dense).norm(dim=1) / dense.norm(dim=1))
    return float(torch.cat(errors).median())


@pytest.mark.parametrize("target", ["same_input", "dense_stream"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3"])
def test_errors_fall_and_the_whole_model_has_them(folders, family, target, tmp_path):
    folder, first = folders[family], target == "dense_stream"
    result = fit(
        folder,
        options=FitOptions(rank=8, target=target),
        dense_first_token=first,
    )
    assert [block.name for block in result.blocks] == [
        f"model.layers.{i}" for i in range(3)
    ]
    for block in result.blocks:
        assert [(p.layer, p.part) for p in block.parts] == [
            (f"{block.name}.{layer}", part)
            for layer in LAYERS
            for part in ("l_pts", "ls", "r_sparse", "output_shift")
        ]
        assert block.objective_after < block.objective_before
        kept = [p for p in block.parts if p.kept]
        assert kept
        assert all(p.after < p.before for p in kept)
        assert all(not p.after < p.before for p in block.parts if not p.kept)
        assert kept[-1].after == block.objective_after
    file = write_parameters(tmp_path, result.parameters)
    parameters = read_parameters(tmp_path, file)
    config = SparsityConfig.uniform(PATTERN, mitigation=ALL)
    found = last_error(folder, config, parameters, dense_first_token=first)
    assert found == pytest.approx(result.blocks[-1].error_after, rel=1e-3)
    bare = SparsityConfig.uniform(PATTERN, mitigation=("var",))
    naive = last_error(folder, bare, None, dense_first_token=first)
    assert found < 0.95 * naive


def test_parameters_fit_the_fused_layers(folders):
    result = fit(folders["qwen2"])
    model = AutoModelForCausalLM.from_pretrained(folders["qwen2"])
    for layer in fused_linears(model):
        joined = fuse([result.parameters[name] for name in layer.parts])
        online = Online(PATTERN, "magnitude", ALL, joined)
        online.check(layer.in_features, sum(layer.out_features))
        assert joined.factor is None
        assert joined.low_rank_in.shape[0] == 8


def test_what_the_gate_refused_is_stored_as_zeros(folders, monkeypatch):
    def harmful(evidence, online, *, options):
        return {"output_shift": torch.full((evidence.out_features,), 1e3)}

    monkeypatch.setitem(parts.FITS, "output_shift", harmful)
    result = fit(folders["llama"], ("ls", "output_shift"))
    for block in result.blocks:
        judged = [p for p in block.parts if p.part == "output_shift"]
        assert len(judged) == 4
        assert all(not p.kept and p.after > p.before for p in judged)
    own = result.parameters["model.layers.1.mlp.up_proj"]
    assert set(own) == {"output_scale", "output_shift"}
    assert not any(p["output_shift"].any() for p in result.parameters.values())


def test_not_a_number_is_refused(folders, monkeypatch):
    def broken(evidence, online, *, options):
        return {"output_scale": torch.full((evidence.out_features,), torch.nan)}

    monkeypatch.setitem(parts.FITS, "ls", broken)
    result = fit(folders["llama"], ("ls",))
    assert not any(p.kept for block in result.blocks for p in block.parts)
    assert not any(p["output_scale"].any() for p in result.parameters.values())


def test_without_anything_to_gain_nothing_is_learned(folders):
    result = fit(folders["llama"], pattern=parse_pattern("16:16"))
    for block in result.blocks:
        assert block.error_after == block.error_before
        assert not any(p.kept for p in block.parts)
    tensors = [x for own in result.parameters.values() for x in own.values()]
    assert len(tensors) == 3 * 7 * 5
    assert not any(x.any() for x in tensors)


def test_gradient_steps_alone_lower_the_error(folders, monkeypatch):
    def nothing(evidence, online, *, options):
        return {"output_shift": torch.zeros(evidence.out_features)}

    monkeypatch.setitem(parts.FITS, "output_shift", nothing)
    options = FitOptions(steps=60, learning_rate=1e-2)
    result = fit(folders["gemma3"], ("output_shift",), options=options)
    for block in result.blocks:
        last = block.parts[-1]
        assert (last.layer, last.part) == (block.name, "gradient")
        assert last.kept == (last.after < last.before)
        assert block.objective_after == min(last.before, last.after)
        for name, own in result.parameters.items():
            if name.startswith(f"{block.name}."):
                assert bool(own["output_shift"].any()) == last.kept
    first = result.blocks[0]
    assert first.objective_after < 0.97 * first.objective_before


def test_gradient_steps_pass_the_same_gate(folders):
    closed = fit(folders["gemma3"], ("ls", "output_shift"))
    wild = FitOptions(steps=3, learning_rate=1e4)
    refused = fit(folders["gemma3"], ("ls", "output_shift"), options=wild)
    assert not any(block.parts[-1].kept for block in refused.blocks)
    assert same(refused.parameters, closed.parameters)


def same(left, right):
    return left.keys() == right.keys() and all(
        left[name].keys() == right[name].keys()
        and all(
            left[name][k].dtype == x.dtype and torch.equal(left[name][k], x)
            for k, x in right[name].items()
        )
        for name in right
    )


class KilledError(Exception):
    pass


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_a_resumed_run_is_the_same_run(folders, family, tmp_path, monkeypatch):
    whole = fit(folders[family])
    store = Store(tmp_path / "work")
    store.open({})
    ticks = []

    def tick():
        ticks.append(1)
        if len(ticks) == 2 * len(WINDOWS) + 3:
            raise KilledError

    with pytest.raises(KilledError):
        fit(folders[family], store=store, tick=tick)
    fitted, run = [], blockwise.BlockFit.run

    def counted(self, name):
        fitted.append(name)
        return run(self, name)

    monkeypatch.setattr(blockwise.BlockFit, "run", counted)
    (tmp_path / "work" / "block-00002.bin").unlink()
    resumed = fit(folders[family], store=store)
    assert fitted == ["model.layers.2"]
    assert same(resumed.parameters, whole.parameters)
    assert resumed.blocks == whole.blocks
    again = fit(folders[family], store=store)
    assert fitted == ["model.layers.2"]
    assert same(again.parameters, whole.parameters)
    assert again.blocks == whole.blocks


def test_layers_without_a_rule_stay_dense_and_static_parts_are_used(folders):
    name = "model.layers.1.mlp.down_proj"
    factor = torch.rand(96, generator=torch.Generator().manual_seed(0)) + 0.1
    groups = torch.randperm(96, generator=torch.Generator().manual_seed(1))

    def rules(**given):
        static = Parameters(**given)
        return {name: Online(PATTERN, "second_order", ("ls", "r_sparse"), static)}

    result = fit(folders["llama"], rules=rules(factor=factor, channel_groups=groups))
    assert set(result.parameters) == {name}
    assert set(result.parameters[name]) == {
        "output_scale",
        "low_rank_in",
        "low_rank_out",
    }
    assert result.blocks[0].error_after == 0
    assert result.blocks[1].error_after > 0
    assert [p.layer for p in result.blocks[1].parts] == [name] * 2
    other = fit(folders["llama"], rules=rules(factor=factor))
    assert not same(other.parameters, result.parameters)
    activation = {
        "pattern": "8:16",
        "criterion": "second_order",
        "mitigation": ["ls", "r_sparse"],
    }
    group = {"targets": [name], "activation": activation}
    config = SparsityConfig.parse({"groups": {"default": group}}, source="test")
    static = {"factor": factor, "channel_groups": groups}
    given = {name: {**result.parameters[name], **static}}
    found = last_error(folders["llama"], config, given)
    assert found == pytest.approx(result.blocks[-1].error_after, rel=1e-3)
    with pytest.raises(
        InputError, match=r"down_proj: Criterion second_order has no factor"
    ):
        fit(folders["llama"], rules=rules())


def test_errors(folders):
    online = Online(PATTERN)
    with pytest.raises(InputError, match=r"Unknown layer .*q_proj.*qkv_proj"):
        fit(folders["llama"], rules={"model.layers.0.self_attn.q_proj": online})
    skeleton = Skeleton.build(open_source(folders["llama"], tokenizer=False))
    for windows in (WINDOWS[:1], [WINDOWS[0], WINDOWS[1][:5]]):
        with pytest.raises(InputError, match="at least two"):
            fit_blocks(skeleton, Capture(skeleton), windows, {}, options=OPTIONS)


def test_every_window_of_every_block_ticks(folders):
    ticks = []
    fit(folders["llama"], ("ls",), tick=lambda: ticks.append(1))
    assert len(ticks) == 3 * len(WINDOWS)
