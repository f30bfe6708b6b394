"""Costs of a sparse input: against gradients and errors computed another way."""

from __future__ import annotations

import pytest
import torch
from support.zoo import build, windows
from transformers import AutoModelForCausalLM

from nmsparse.ops.online import Online, sparsify_online
from nmsparse.parameters import Parameters
from offline_prune.online.levels import Levels
from offline_prune.online.reverse import _draw, walk_back
from offline_prune.online.sensitivity import (
    block_costs,
    changes_by_level,
    final_costs,
    input_energies,
)
from offline_prune.online.sites import find_sites
from offline_prune.pipeline.capture import Capture
from offline_prune.pipeline.skeleton import Skeleton
from offline_prune.pipeline.source import open_source

ROWS = Levels(None, 16)


def at(layer, level):
    return Online(ROWS.pattern(level))


class Bench:
    """A tiny model seen by the pipeline, and whole."""

    def __init__(self, family, folder):
        self.folder = build(family, folder, dtype="float32")
        self.skeleton = Skeleton.build(open_source(self.folder, tokenizer=False))
        self.capture = Capture(self.skeleton)
        self.layers = find_sites(self.skeleton, targets=(), ignore=())
        self.windows = [torch.tensor(row) for row in windows(3, 24)]

    def whole(self):
        model = AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32)
        return model.eval()


@pytest.fixture(params=["llama", "gemma3", "phi"], scope="module")
def bench(request, tmp_path_factory):
    return Bench(request.param, tmp_path_factory.mktemp(request.param) / "model")


def gradients(bench, seed):
    """Return input and gradient of every linear by plain autograd, by window."""
    model = bench.whole()
    generator = torch.Generator().manual_seed(seed)
    linears = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and "lm_head" not in name
    }
    return [_window_gradients(model, linears, w, generator) for w in bench.windows]


def _window_gradients(model, linears, window, generator):
    seen = {}

    def hook_of(name):
        def hook(module, args, output):
            output.retain_grad()
            seen[name] = (args[0][0].detach(), output)

        return hook

    handles = [m.register_forward_hook(hook_of(n)) for n, m in linears.items()]
    logits = model(window[None]).logits[0]
    chances = logits.detach().float().softmax(-1)
    # The class in whose share of [0, 1) a uniform number falls.
    drawn = torch.rand(len(chances), 1, generator=generator)
    labels = (chances.cumsum(-1) <= drawn).sum(1)
    torch.nn.functional.cross_entropy(logits, labels, reduction="sum").backward()
    for handle in handles:
        handle.remove()
    return {n: (x, y.grad[0] @ linears[n].weight) for n, (x, y) in seen.items()}


def test_gradients_are_those_of_the_whole_model(bench):
    expected = gradients(bench, seed=5)
    visits = {}

    def visit(seen):
        visits.setdefault(seen.layer.name, []).append(seen)

    walk_back(
        bench.skeleton,
        bench.capture,
        bench.windows,
        layers=bench.layers,
        visit=visit,
        seed=5,
    )
    assert len(visits) == sum(map(len, bench.layers))
    for block in bench.layers:
        for layer in block:
            for window, seen in zip(expected, visits[layer.name], strict=True):
                torch.testing.assert_close(
                    seen.inputs,
                    window[next(iter(layer.parts))][0],
                    rtol=1e-4,
                    atol=1e-5,
                )
                whole = sum(window[part][1] for part in layer.parts)
                torch.testing.assert_close(seen.gradient, whole, rtol=2e-3, atol=1e-5)


def test_final_costs_are_half_the_squared_change(bench):
    expected = gradients(bench, seed=5)
    costs = final_costs(
        bench.skeleton,
        bench.capture,
        bench.windows,
        layers=bench.layers,
        levels=ROWS,
        at=at,
        seed=5,
    )
    for block in bench.layers:
        for layer in block:
            for level in (2, 8, 15):
                changes = []
                for window in expected:
                    x = window[next(iter(layer.parts))][0][1:]
                    g = sum(window[part][1] for part in layer.parts)[1:]
                    kept = sparsify_online(x, at(layer, level)).values
                    changes.append(((x - kept) * g).sum(1))
                want = 0.5 * torch.cat(changes).double().square().mean().item()
                assert costs[layer.name][level - 1] == pytest.approx(want, rel=0.02)
            assert costs[layer.name][-1] == 0.0


def test_block_costs_are_the_error_of_the_block(bench):
    costs = block_costs(
        bench.skeleton,
        bench.capture,
        bench.windows,
        layers=bench.layers,
        levels=ROWS,
        at=at,
    )
    for name, curve in costs.items():
        assert curve[-1] == 0.0
        assert 0 < curve[11] < curve[0], name
    # One by hand: the last layer of the first block, sparse in the whole model.
    layer = bench.layers[0][-1]
    model = bench.whole()
    module = model.get_submodule(next(iter(layer.parts)))
    block = model.get_submodule(bench.skeleton.name(0))
    errors = [
        _block_error(model, block, module, at(layer, 6), w) for w in bench.windows
    ]
    want = torch.cat(errors).mean().item()
    assert costs[layer.name][5] == pytest.approx(want, rel=1e-3)


def _block_error(model, block, module, online, window):
    seen = []

    def see(m, args, kwargs, output):
        entry = args[0] if args else kwargs["hidden_states"]
        out = output[0] if isinstance(output, tuple) else output
        seen.append([x.reshape(-1, x.shape[-1])[1:].double() for x in (entry, out)])

    def sparsify(m, args):
        flat = args[0].reshape(-1, args[0].shape[-1])
        return (sparsify_online(flat, online).values.view_as(args[0]),)

    watch = block.register_forward_hook(see, with_kwargs=True)
    with torch.no_grad():
        model(window[None])
        sparse = module.register_forward_pre_hook(sparsify)
        model(window[None])
    watch.remove()
    sparse.remove()
    (before, dense), (_, changed) = seen
    error = (changed - dense).square().sum(1)
    return error / (dense - before).square().sum(1)


def test_energies_weigh_every_token_alike(bench):
    expected = gradients(bench, seed=5)
    found = input_energies(
        bench.skeleton, bench.capture, bench.windows, layers=bench.layers
    )
    for block in bench.layers:
        for layer in block:
            rows = torch.cat([w[next(iter(layer.parts))][0] for w in expected]).double()
            shares = (rows / rows.norm(dim=1, keepdim=True)).square().sum(0)
            torch.testing.assert_close(found[layer.name], shares, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("levels", [ROWS, Levels.nm("4"), Levels.nm("16")], ids=str)
@pytest.mark.parametrize("factor", [False, True])
@pytest.mark.parametrize("order", [False, True])
def test_one_ranking_gives_what_every_level_drops(levels, factor, order):
    generator = torch.Generator().manual_seed(1)
    # Many ties.
    x = torch.randint(-3, 4, (9, 64), generator=generator).to(torch.bfloat16)
    g = torch.randn(9, 64, generator=generator)
    parameters = Parameters(
        factor=torch.rand(64, generator=generator) if factor else None,
        channel_groups=torch.randperm(64, generator=generator) if order else None,
    )
    criterion = "second_order" if factor else "magnitude"
    online = Online(levels.pattern(1), criterion, (), parameters)
    found = changes_by_level(x, g, online, levels)
    for level in range(1, levels.count):
        at_level = Online(levels.pattern(level), criterion, (), parameters)
        kept = sparsify_online(x, at_level).values
        want = ((x - kept).float() * g).sum(1)
        torch.testing.assert_close(found[level - 1], want, rtol=1e-5, atol=1e-5)


def test_labels_are_drawn_by_their_chances():
    chances = torch.tensor([0.1, 0.0, 0.6, 0.3]).repeat(20_000, 1)
    drawn = _draw(chances, torch.Generator().manual_seed(0))
    shares = drawn.bincount(minlength=4) / len(drawn)
    torch.testing.assert_close(shares, chances[0], rtol=0, atol=0.01)
    assert shares[1] == 0
