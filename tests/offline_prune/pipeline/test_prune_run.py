"""The pipeline on every family, against a run of the whole model by transformers."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from support import tiny, zoo
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.pytorch_utils import Conv1D

from offline_prune import InputError, prune
from offline_prune.pipeline.permute import Permuter
from offline_prune.pipeline.store import Store
from offline_prune.verification.verify import verify

ROWS = zoo.windows()
TEXT = {"calibration": ROWS, "num_samples": len(ROWS), "seq_len": 32}


def weights(folder):
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        found.update(load_file(path))
    return found


def whole_model_wanda(folder, sparsity):
    """Prune block by block with the whole model in memory; return name to weight.

    Straight from the description of the method: every block sees the outputs of pruned
    blocks, statistics come from its dense form, rows lose their lowest scores.
    """
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    blocks = max(
        (m for m in model.modules() if isinstance(m, nn.ModuleList)),
        key=lambda m: sum(p.numel() for p in m.parameters()),
    )
    pruned = {}
    names = {module: name for name, module in model.named_modules()}
    for block in blocks:
        linears = [m for m in block.modules() if isinstance(m, nn.Linear | Conv1D)]
        squares = dict.fromkeys(linears, 0.0)

        def hook(module, args, squares=squares):
            x = args[0].float().flatten(0, -2)
            squares[module] = squares[module] + x.double().square().sum(0)

        handles = [m.register_forward_pre_hook(hook) for m in linears]
        with torch.no_grad():
            for row in ROWS:
                model(input_ids=torch.tensor([row]), use_cache=False)
        for handle in handles:
            handle.remove()
        for module in linears:
            if isinstance(squares[module], float):
                continue
            stored = module.weight.data
            weight = stored.t() if isinstance(module, Conv1D) else stored
            norm = (squares[module] / len(ROWS)).sqrt().float()
            scores = weight.float().abs() * norm
            lowest = scores.argsort(dim=1)[:, : round(weight.shape[1] * sparsity)]
            weight.scatter_(1, lowest, 0)
            pruned[names[module] + ".weight"] = stored.clone()
    return pruned


@pytest.mark.parametrize(
    "family", [f for f in zoo.FAMILIES if f not in ("mixtral", "qwen3_moe")]
)
def test_wanda_of_the_whole_model(family, tmp_path):
    source = zoo.build(family, tmp_path / "dense", shard="60KB")
    before = {p.name: p.read_bytes() for p in source.iterdir()}
    done = prune(source, output=tmp_path / "out", sparsity=0.5, report=False, **TEXT)
    expected = whole_model_wanda(source, 0.5)
    found, dense = weights(done.folder), weights(source)
    assert set(found) == set(dense)
    prefix = "transformer." if family == "gpt2" else ""
    compared = 0
    for name, weight in expected.items():
        stored = name.removeprefix(prefix) if name not in found else name
        assert torch.equal(found[stored], weight), name
        assert not torch.equal(found[stored], dense[stored])
        compared += 1
    assert compared >= 12
    changed = {n for n in found if not torch.equal(found[n], dense[n])}
    assert len(changed) == compared
    for name in ("tokenizer.json", "generation_config.json", "config.json"):
        assert (done.folder / name).read_bytes() == before[name]
    assert {p.name: p.read_bytes() for p in source.iterdir()} == before
    assert done.results.budget.removed == round(0.5 * done.results.budget.total)
    assert verify(done.folder).problems == ()
    model = AutoModelForCausalLM.from_pretrained(done.folder)
    tokens = AutoTokenizer.from_pretrained(done.folder)
    ids = tokens("The", return_tensors="pt")
    assert model.generate(**ids, max_new_tokens=4).shape[1] > 4


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_experts_are_pruned_one_by_one(family, tmp_path):
    source = zoo.build(family, tmp_path / "dense")
    done = prune(source, output=tmp_path / "out", sparsity=0.5, report=False, **TEXT)
    layers = {layer.name: layer for layer in done.results.layers}
    experts = [name for name in layers if ".experts." in name]
    assert len(experts) == 3 * 4 * 3
    assert not any(name.endswith(".gate") for name in layers)
    found = weights(done.folder)
    for name, layer in layers.items():
        zeros = int((found[f"{name}.weight"] == 0).sum())
        assert zeros == layer.removed == layer.size // 2
    assert verify(done.folder).problems == ()
    AutoModelForCausalLM.from_pretrained(done.folder)


def test_an_expert_that_no_token_reached_falls_back_to_magnitude(tmp_path):
    source = zoo.build("mixtral", tmp_path / "dense")
    path = source / "model.safetensors"
    tensors = load_file(path)
    gate = "model.layers.0.block_sparse_moe.gate.weight"
    # Expert 3 always loses the routing.
    tensors[gate][:] = torch.randn(4, 64).to(torch.bfloat16)
    tensors[gate][3] = 0
    tensors[gate][2] = tensors[gate][0]
    tensors[gate][1] = -tensors[gate][0]
    from safetensors.torch import save_file

    save_file(tensors, path, metadata={"format": "pt"})
    rows = [[5] * 32]
    done = prune(
        source,
        output=tmp_path / "out",
        sparsity=0.5,
        calibration=rows,
        num_samples=1,
        seq_len=32,
        report=False,
    )
    unseen = [layer for layer in done.results.layers if layer.fallback]
    assert unseen
    assert all("no calibration token" in layer.fallback for layer in unseen)
    assert all(layer.removed == layer.size // 2 for layer in unseen)
    assert any("no calibration token" in note for note in done.results.notes)


@pytest.mark.parametrize("pattern", ["2:4", "4:8", "8:16", "16:32", "1:4", "6:8"])
def test_patterns(pattern, tmp_path):
    source = zoo.build("llama", tmp_path / "dense")
    done = prune(source, output=tmp_path / "out", pattern=pattern, report=False, **TEXT)
    n, m = map(int, pattern.split(":"))
    found = weights(done.folder)
    for layer in done.results.layers:
        groups = found[f"{layer.name}.weight"].unflatten(1, (-1, m))
        assert bool(((groups != 0).sum(-1) == n).all())
    assert verify(done.folder).ok


def test_data_free_pruning_needs_no_tokenizer_and_no_text(tmp_path):
    source = tiny.build("llama", tmp_path / "dense")
    for path in source.glob("tokenizer*"):
        path.unlink()
    done = prune(
        source, output=tmp_path / "out", scorer="magnitude", sparsity=0.3, report=False
    )
    assert done.results.calibration is None
    budget = done.results.budget
    assert budget.removed == round(0.3 * budget.total)


def test_budget_is_exact_to_one_weight_for_every_allocator(tmp_path):
    source = zoo.build("llama", tmp_path / "dense")
    for allocator in ("uniform", "owl", "alpha_pruning", "dlp", "atp"):
        done = prune(
            source,
            output=tmp_path / allocator,
            sparsity=0.637,
            allocator=allocator,
            profile=allocator == "owl",
            report=False,
            calibration=ROWS + zoo.windows(8, seed=1),
            num_samples=6,
            seq_len=32,
        )
        budget = done.results.budget
        zeros = sum(layer.removed for layer in done.results.layers)
        assert zeros == budget.removed == round(0.637 * budget.total), allocator
        if allocator == "owl":
            assert {"uniform", "owl", "dlp", "alpha_pruning"} <= set(
                done.results.allocations
            )


def test_absorption_and_ogas_keep_the_budget(tmp_path):
    source = zoo.build("llama", tmp_path / "dense")
    done = prune(
        source,
        output=tmp_path / "a",
        sparsity=0.6,
        allocator="owl",
        correction="absorption",
        report=False,
        **TEXT,
    )
    assert done.results.budget.removed == round(0.6 * done.results.budget.total)
    ratios = done.results.profiles["amplification"]
    assert len(ratios) == 3
    assert ratios[-1] == pytest.approx(1.0, abs=0.05)
    curves = done.results.allocations
    assert curves["owl+absorption"] != curves["owl"]
    done = prune(
        source,
        output=tmp_path / "b",
        sparsity=0.6,
        channels="ogas",
        report=False,
        **TEXT,
    )
    assert done.results.budget.removed == round(0.6 * done.results.budget.total)
    rows = (weights(done.folder)["model.layers.1.mlp.up_proj.weight"] == 0).sum(1)
    assert rows.unique().numel() > 1


def test_mixed_patterns_differ_between_blocks(tmp_path):
    source = zoo.build("llama", tmp_path / "dense")
    done = prune(
        source,
        output=tmp_path / "out",
        pattern="8:16",
        mixed=True,
        allocator="atp",
        allocator_options={"beta": 0.2},
        report=False,
        **TEXT,
    )
    kept = [
        {layer.pattern for layer in done.results.layers if layer.block == index}
        for index in range(3)
    ]
    assert kept == [{"11:16"}, {"8:16"}, {"5:16"}]
    assert done.sparsity == pytest.approx(0.5)


def test_permutation_keeps_more_and_computes_the_same(tmp_path):
    source = zoo.build("llama", tmp_path / "dense", intermediate_size=128)
    options = {"pattern": "2:4", "report": False, **TEXT}
    plain = prune(source, output=tmp_path / "plain", **options)
    moved = prune(source, output=tmp_path / "moved", permutation=True, **options)
    assert verify(moved.folder).ok

    def error(done, kind):
        found = [layer for layer in done.results.layers if layer.name.endswith(kind)]
        return sum(layer.relative_error for layer in found)

    assert error(moved, "down_proj") < error(plain, "down_proj")
    # Without pruning anything the reordered model is the same function.
    same = prune(
        source,
        output=tmp_path / "same",
        pattern="4:4",
        permutation=True,
        report=False,
        **TEXT,
    )
    ids = torch.tensor([ROWS[0]])
    with torch.no_grad():
        dense = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
        other = AutoModelForCausalLM.from_pretrained(same.folder, dtype=torch.float32)
        assert torch.allclose(dense(ids).logits, other(ids).logits, atol=1e-3)


@pytest.mark.parametrize("scorer", ["magnitude", "wanda"])
def test_a_permutation_that_is_not_absorbed_is_seen(tmp_path, monkeypatch, scorer):
    # Without calibration text as well.
    source = zoo.build("qwen2", tmp_path / "dense", intermediate_size=128)
    options = {"pattern": "2:4", "permutation": True, "report": False, **TEXT}
    prune(source, output=tmp_path / "fine", scorer=scorer, **options)
    monkeypatch.setattr(Permuter, "_reorder_rows", lambda self, layer, order: None)
    with pytest.raises(InputError, match="its output changes by"):
        prune(source, output=tmp_path / "out", scorer=scorer, **options)


def test_bitmask_format_is_the_dense_one_packed(tmp_path):
    source = zoo.build("llama", tmp_path / "dense")
    options = {"sparsity": 0.5, "report": False, **TEXT}
    dense = prune(source, output=tmp_path / "a", **options)
    packed = prune(source, output=tmp_path / "b", format="bitmask", **options)
    assert verify(packed.folder).problems == ()
    from offline_prune import unpack

    unpack(packed.folder, output=tmp_path / "c")
    assert (tmp_path / "c/model.safetensors").read_bytes() == (
        dense.folder / "model.safetensors"
    ).read_bytes()
    config = json.loads((packed.folder / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "vllm_sparse"


def test_mean_shift_uses_the_model_s_own_switches(tmp_path):
    source = zoo.build("llama", tmp_path / "dense", shard="60KB")
    done = prune(
        source,
        output=tmp_path / "out",
        sparsity=0.5,
        scorer="cvr",
        compensation=["least_squares", "mean_shift"],
        ignore=["re:.*layers.0.mlp.up_proj"],
        report=False,
        **TEXT,
    )
    config = json.loads((done.folder / "config.json").read_text())
    assert config["attention_bias"] is True
    assert config["mlp_bias"] is True
    found = weights(done.folder)
    assert float(found["model.layers.1.mlp.down_proj.bias"].abs().max()) > 0
    # The layer that was left dense gets a bias of zeros: the switch wants one.
    assert float(found["model.layers.0.mlp.up_proj.bias"].abs().max()) == 0
    assert verify(done.folder).ok
    _, info = AutoModelForCausalLM.from_pretrained(
        done.folder, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]


def test_mean_shift_without_room_is_refused_with_the_reason(tmp_path):
    source = zoo.build("mistral", tmp_path / "dense")
    with pytest.raises(InputError, match="MistralForCausalLM has no room"):
        prune(
            source,
            output=tmp_path / "out",
            sparsity=0.5,
            compensation=["mean_shift"],
            **TEXT,
        )
    source = zoo.build("qwen2", tmp_path / "qwen")
    done = prune(
        source,
        output=tmp_path / "some",
        sparsity=0.5,
        compensation=["mean_shift"],
        bias="available",
        report=False,
        **TEXT,
    )
    before, after = weights(source), weights(done.folder)
    name = "model.layers.0.self_attn.q_proj.bias"
    assert set(before) == set(after)
    assert not torch.equal(before[name], after[name])


def test_damaged_blocks_of_a_store_are_made_again(tmp_path):
    store = Store.beside(tmp_path / "out")
    store.open({"a": 1})
    store.save(0, {"x": torch.arange(4.0)}, {"n": 1})
    assert store.load(0)[1] == {"n": 1}
    path = store.path / "block-00000.bin"
    path.write_bytes(path.read_bytes()[:-1])
    assert store.load(0) is None
    with pytest.raises(InputError, match=r"a: 1 before, 2 now.*--restart"):
        store.open({"a": 2})


def test_source_shards_stay_in_their_files(tmp_path):
    source = zoo.build("qwen2", tmp_path / "dense", shard="60KB")
    done = prune(
        source, output=tmp_path / "out", scorer="magnitude", sparsity=0.5, report=False
    )
    index = "model.safetensors.index.json"
    assert (done.folder / index).read_bytes() == (source / index).read_bytes()
    for path in source.glob("*.safetensors"):
        assert set(load_file(path)) == set(load_file(done.folder / path.name))


def test_tied_embeddings_stay_tied(tmp_path):
    source = zoo.build("qwen3", tmp_path / "dense")
    done = prune(source, output=tmp_path / "out", sparsity=0.5, report=False, **TEXT)
    assert "lm_head.weight" not in weights(done.folder)
    shutil.rmtree(source)
    model = AutoModelForCausalLM.from_pretrained(done.folder)
    assert model.lm_head.weight is model.model.embed_tokens.weight
