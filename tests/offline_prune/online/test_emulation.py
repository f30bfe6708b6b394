"""Emulation with transformers: every linear is the oracle, on the right tokens."""

from __future__ import annotations

import pytest
import torch
from support import zoo
from torch.nn.functional import linear
from transformers import AutoModelForCausalLM

from nmsparse import SparsityConfig, parse_pattern
from nmsparse.config import ConfigError
from nmsparse.ops.online import Online, online_linear
from nmsparse.parameters import Parameters
from nmsparse.targets import FUSED
from offline_prune.online.emulation import attach
from offline_prune.online.fused import bias_of, fused_linears, weight_of
from vllm_sparse import names

PATTERN = parse_pattern("8:16")
IDS = torch.tensor(zoo.windows(2, 12))
PARTS = {
    "qkv": ("q_proj", "k_proj", "v_proj"),
    "gate_up": ("gate_proj", "up_proj"),
    "o": ("o_proj",),
    "down": ("down_proj",),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    made = {}
    for family in ("llama", "qwen2", "gemma3", "gpt2"):
        folder = zoo.build(family, tmp_path_factory.mktemp(family), dtype="float32")
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        made[family] = model.eval().requires_grad_(False)
    return made


def run(model, ids=IDS, **arguments):
    with torch.inference_mode():
        return model(ids, **arguments).logits


def seen(model, call):
    """Return input and output of every decoder linear during a call, by name."""
    found, hooks = {}, []

    def record(name):
        def hook(module, args, output):
            found[name] = args[0].reshape(-1, args[0].shape[-1]), output

        return hook

    for layer in fused_linears(model):
        for name, module in layer.parts.items():
            hooks.append(module.register_forward_hook(record(name)))
    call()
    for hook in hooks:
        hook.remove()
    return {k: (x, y.reshape(len(x), -1)) for k, (x, y) in found.items()}


def oracle(model, prefix, parts, calls, online):
    """Return what the reference says about a fused layer, split into parts."""
    modules = [model.get_submodule(prefix + part) for part in parts]
    weight = torch.cat([module.weight for module in modules])
    biases = [module.bias for module in modules]
    bias = None if biases[0] is None else torch.cat(biases)
    with torch.inference_mode():
        y = online_linear(calls[prefix + parts[0]][0], weight, bias, online)
    return dict(zip(parts, y.split([len(m.weight) for m in modules], 1), strict=True))


def shared(modules, seed, *wanted):
    """Return random parameters of the parts of one layer."""
    g = torch.Generator().manual_seed(seed)
    k, rank = modules[0].in_features, 3
    same = {
        "factor": torch.rand(k, generator=g) + 0.1,
        "channel_shift": torch.randn(k, generator=g) / 4,
        "low_rank_in": torch.randn(rank, k, generator=g) / 8,
        "channel_groups": torch.randperm(k, generator=g),
    }
    made = []
    for module in modules:
        o = module.out_features
        own = {
            "output_scale": torch.randn(o, generator=g) / 4,
            "output_shift": torch.randn(o, generator=g) / 4,
            "low_rank_out": torch.randn(o, rank, generator=g) / 8,
        }
        made.append({k: v for k, v in (same | own).items() if k in wanted})
    return made


CASES = {
    "magnitude": ("magnitude", (), ()),
    "wina": ("wina", (), ()),
    "amber": ("amber_pruner", ("d_pts", "var"), ()),
    "clact": ("clact", ("d_pts_median",), ()),
    "learned": (
        "second_order",
        ("l_pts", "var", "ls", "output_shift"),
        ("factor", "channel_shift", "output_scale", "output_shift"),
    ),
    "residual": (
        "magnitude",
        ("d_pts", "r_sparse"),
        ("low_rank_in", "low_rank_out", "channel_groups"),
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3"])
def test_every_linear_is_the_oracle(models, family, case):
    model = models[family]
    criterion, mitigation, wanted = CASES[case]
    config = SparsityConfig.uniform(PATTERN, criterion=criterion, mitigation=mitigation)
    given, layers = {}, {}
    for i in range(3):
        for kind, parts in PARTS.items():
            block = "self_attn" if kind in ("qkv", "o") else "mlp"
            prefix = f"model.layers.{i}.{block}."
            modules = [model.get_submodule(prefix + part) for part in parts]
            made = shared(modules, 10 * i + len(kind), *wanted)
            joined = {
                name: torch.cat([part[name] for part in made])
                if name.startswith("output") or name == "low_rank_out"
                else made[0][name]
                for name in wanted
            }
            layers[prefix, parts] = Parameters(**joined)
            for part, own in zip(parts, made, strict=True):
                given[prefix + part] = own
    with attach(model, config, given) as emulation:
        assert len(emulation.names) == 12
        calls = seen(model, lambda: run(model))
    for (prefix, parts), parameters in layers.items():
        online = Online(PATTERN, criterion, mitigation, parameters)
        for part, expected in oracle(model, prefix, parts, calls, online).items():
            x, found = calls[prefix + part]
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
            module = model.get_submodule(prefix + part)
            dense = linear(x, module.weight, module.bias)
            assert (found - dense).abs().max() > 1e-2, "the test could not fail"


def test_a_factor_is_made_of_all_parts(models):
    model = models["llama"]
    prefix, parts = "model.layers.0.self_attn.", PARTS["qkv"]
    with attach(model, SparsityConfig.uniform(PATTERN, criterion="wina")):
        calls = seen(model, lambda: run(model))
    x, found = calls[prefix + "k_proj"]
    own = model.get_submodule(prefix + "k_proj").weight
    every = torch.cat([model.get_submodule(prefix + part).weight for part in parts])
    with torch.inference_mode():
        fused = Parameters(factor=every.norm(dim=0))
        alone = Parameters(factor=own.norm(dim=0))
        right = online_linear(x, own, None, Online(PATTERN, "wina", (), fused))
        wrong = online_linear(x, own, None, Online(PATTERN, "wina", (), alone))
    torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-4)
    assert (found - wrong).abs().max() > 1e-2


LENGTHS = (5, 9)
EXPECTED = {
    "both": [[True] * 12, [True] * 12],
    "prefill": [[t < n for t in range(12)] for n in LENGTHS],
    "decode": [[t >= n for t in range(12)] for n in LENGTHS],
}


@pytest.mark.parametrize("first", [False, True], ids=["", "dense first token"])
@pytest.mark.parametrize("phase", EXPECTED)
@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
def test_a_phase_sparsifies_its_tokens_alone(models, family, phase, first):
    model = models[family]
    config = SparsityConfig.uniform(PATTERN, mitigation=("d_pts",))
    with attach(
        model, config, phase=phase, prompt_len=LENGTHS, dense_first_token=first
    ):
        calls = seen(model, lambda: run(model))
    expected = torch.tensor(EXPECTED[phase])
    expected[:, 0] &= not first
    for name, (x, found) in calls.items():
        module = model.get_submodule(name)
        dense = linear(x, weight_of(module), bias_of(module))
        apart = ((found - dense).abs().amax(1) > 1e-4).view(2, 12)
        assert torch.equal(apart, expected), name


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_one_forward_is_the_same_as_decoding_with_a_cache(models, family):
    model = models[family]
    ids = IDS[:1]
    with attach(model, SparsityConfig.uniform(PATTERN), phase="decode", prompt_len=7):
        whole = run(model, ids)[0, 6:]
        with torch.inference_mode():
            step = model(ids[:, :7], use_cache=True)
            found = [step.logits[0, -1]]
            for t in range(7, 12):
                step = model(ids[:, t : t + 1], past_key_values=step.past_key_values)
                found.append(step.logits[0, -1])
    torch.testing.assert_close(torch.stack(found), whole, rtol=1e-3, atol=1e-3)
    assert (run(model, ids)[0, 7:] - whole[1:]).abs().max() > 1e-2


def test_padding_on_the_left_does_not_count(models):
    model = models["llama"]
    padded = torch.cat([torch.zeros(1, 4, dtype=torch.long), IDS[:1]], 1)
    seen_by = torch.ones_like(padded)
    seen_by[:, :4] = 0
    with attach(model, SparsityConfig.uniform(PATTERN), phase="decode", prompt_len=7):
        alone = run(model, IDS[:1])[0]
        found = run(
            model,
            padded,
            attention_mask=seen_by,
            position_ids=(seen_by.cumsum(-1) - 1).clamp(min=0),
        )[0, 4:]
    torch.testing.assert_close(found, alone, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3", "gpt2"])
def test_detached_and_off_are_the_model_itself(models, family):
    model = models[family]
    before = run(model)
    emulation = attach(model, SparsityConfig.uniform(PATTERN, mitigation=("var",)))
    assert not torch.equal(run(model), before)
    with emulation.off():
        assert torch.equal(run(model), before)
    with emulation.using(phase="decode", prompt_len=12):
        assert torch.equal(run(model), before)
    assert not torch.equal(run(model), before)
    emulation.detach()
    assert torch.equal(run(model), before)
    assert not model._forward_pre_hooks
    assert all("forward" not in vars(module) for module in model.modules())


def test_n_equal_to_m_is_the_dense_model(models):
    model = models["qwen2"]
    with attach(model, SparsityConfig.uniform("16:16", mitigation=("d_pts", "var"))):
        found = run(model)
    torch.testing.assert_close(found, run(model), rtol=1e-5, atol=1e-5)


def test_a_batch_is_what_its_sequences_are_alone(models):
    model = models["llama"]
    config = SparsityConfig.uniform(PATTERN, mitigation=("d_pts", "var"))
    with attach(model, config):
        both, first = run(model), run(model, IDS[:1])
    torch.testing.assert_close(both[:1], first, rtol=1e-4, atol=1e-4)


def test_errors(models):
    model = models["llama"]
    config = SparsityConfig.uniform(PATTERN)
    with (
        attach(model, config, phase="decode"),
        pytest.raises(ValueError, match="without the length of the prompt"),
    ):
        run(model)
    with (
        attach(model, config, phase="decode", prompt_len=(1, 2, 3)),
        pytest.raises(ValueError, match="3 prompt lengths for 2 sequences"),
    ):
        run(model)
    with pytest.raises(ConfigError, match=r"Unknown linear .*q_prj.* Did you mean"):
        attach(model, config, {"model.layers.0.self_attn.q_prj": {}})
    with pytest.raises(ConfigError, match=r"qkv_proj: .*multiple"):
        attach(model, SparsityConfig.uniform("8:24"))
    with pytest.raises(ConfigError, match=r"qkv_proj: .*output_scale"):
        attach(model, SparsityConfig.uniform(PATTERN, mitigation=("ls",)))
    name = "model.layers.0.self_attn.q_proj"
    learned = SparsityConfig.uniform(PATTERN, criterion="second_order")
    with pytest.raises(ConfigError, match=r"qkv_proj: .*q_proj has parameters factor"):
        attach(model, learned, {name: {"factor": torch.ones(64)}})
    # Nothing is left of an attempt that failed.
    assert all("forward" not in vars(module) for module in model.modules())


def test_a_block_without_its_model_has_no_positions(models):
    model = models["llama"]
    with attach(model, SparsityConfig.uniform(PATTERN), phase="decode", prompt_len=2):
        linear_alone = model.get_submodule("model.layers.0.mlp.down_proj")
        with pytest.raises(RuntimeError, match="a row for every token"):
            linear_alone(torch.ones(3, 96))


def test_fused_names_are_those_of_the_engine():
    assert {k: tuple(v) for k, v in FUSED.items()} == {
        k: tuple(v) for k, v in names.FUSED.items()
    }
