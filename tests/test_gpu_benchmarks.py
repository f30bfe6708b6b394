"""The benchmark of GPU kernels: what can be checked of it without a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from nmsparse import parse_pattern, sparsify


@pytest.fixture
def scripts(repo_root, monkeypatch):
    folder = repo_root / "benchmarks"
    monkeypatch.syspath_prepend(str(folder))
    return folder


@pytest.fixture
def device():
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def run(command, **environment):
    done = subprocess.run(
        [str(part) for part in command],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("shape", [(1, 64, 32), (3, 72, 40), (2, 33, 130)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_peer_multiplies_what_is_above_the_threshold(scripts, device, shape, dtype):
    import gpu_peer_triton as peer

    tokens, channels, outputs = shape
    torch.manual_seed(0)
    x = torch.randn(tokens, channels, dtype=dtype, device=device)
    weight = torch.randn(channels, outputs, dtype=dtype, device=device)
    threshold = float(x.float().abs().median())
    kept = torch.where(x.float().abs() > threshold, x, 0)
    assert 0 < int((kept != 0).sum()) < kept.numel()
    # What is at the threshold goes: the largest channel must not be a tie.
    x[0, 0] = kept[0, 0] = threshold
    kept[0, 0] = 0
    for tiles in (peer.PeerTiles(16, 64, 2), peer.candidates()[0]):
        found = peer.masked_rows(x, weight, threshold, tiles)
        torch.testing.assert_close(
            found, kept.float() @ weight.float(), rtol=1e-5, atol=1e-4
        )


def test_peer_refuses_what_it_cannot_read(scripts):
    import gpu_peer_triton as peer

    x, weight = torch.zeros(1, 8), torch.zeros(8, 4)
    tiles = peer.candidates()[0]
    with pytest.raises(ValueError, match=r"Expected \[8, O\] and 0 or more"):
        peer.masked_rows(x, weight[:4], 0.5, tiles)
    with pytest.raises(ValueError, match="0 or more"):
        peer.masked_rows(x, weight, -0.5, tiles)
    with pytest.raises(ValueError, match="contiguous"):
        peer.masked_rows(x, torch.zeros(4, 8).t(), 0.5, tiles)


def test_dry_run_checks_every_mode_and_writes_nothing(scripts, tmp_path):
    program = [sys.executable, scripts / "gpu_kernels.py", "--interpret"]
    code, out, err = run(
        [
            *(*program, "--shapes", "64x32", "--tokens", "1", "3", "20"),
            *("--results", tmp_path),
        ]
    )
    assert code == 0, out + err[-6000:]
    from gpu_modes import FEW_TOKENS, MODES

    right = dict.fromkeys(MODES, 0)
    for line in out.splitlines():
        assert "wrong" not in line
        assert "failed" not in line
        if line.endswith("right: not timed"):
            mode = line.split("  T ")[1][6:].partition("  right")[0].strip()
            right[mode] += 1
    without = {"2:4 weights, cuSPARSELt", "2:4 activations, cuSPARSELt"}
    for mode, times in right.items():
        shared, few = "shared" in mode, mode in FEW_TOKENS
        expected = 1 if shared or mode == "mask 2:4" else 2 if few else 3
        assert times == (0 if mode in without else expected), mode
    assert list(tmp_path.iterdir()) == []


def test_without_a_gpu_it_says_so(scripts):
    code, _, err = run(
        [sys.executable, scripts / "gpu_kernels.py"], CUDA_VISIBLE_DEVICES=""
    )
    assert code == 2
    assert "no CUDA GPU was found" in err


def test_copies_keep_weights_out_of_the_cache(scripts):
    from gpu_weights import Shape, copies_for

    cache = 60 << 20
    for text in ("4096x4096", "4096x28672"):
        shape = Shape.parse(text)
        nbytes = 2 * shape.in_features * shape.out_features
        copies = copies_for(nbytes, cache)
        assert copies >= 5
        assert copies * nbytes / 4 >= 3 * cache
    assert copies_for(1 << 40, cache) == 5
    assert str(Shape.parse("64x96")) == "64x96"


def test_unknown_modes_are_refused(scripts):
    from gpu_modes import modes_of

    assert modes_of(1, ["8:16"]) == ["cublas", "8:16"]
    assert modes_of(512, ["8:16", "mask 2:4"]) == ["cublas", "mask 2:4"]
    with pytest.raises(SystemExit, match="mode '9:16' is unknown"):
        modes_of(1, ["9:16"])


def mode_of(result, **others):
    from gpu_modes import Mode

    expected = torch.linspace(-1, 1, 64).view(2, 32)
    call = result if callable(result) else lambda number, tiles: result
    return Mode(call, lambda number: expected, 0, **others), expected


def test_right_results_pass(scripts):
    from gpu_check import check

    mode, expected = mode_of(lambda number, tiles: expected.bfloat16())
    verdict = check(mode, None, 1, 3)
    assert verdict.wrong is None
    assert verdict.repeatable
    assert 0 < verdict.error < 0.003


@pytest.mark.parametrize("damage", ["nan", "element", "scale", "shape", "copy"])
def test_wrong_results_do_not(scripts, damage):
    from gpu_check import check

    def broken(number, tiles):
        if damage == "copy" and number < 2:
            return expected.clone()
        result = expected.clone()
        if damage in ("nan", "copy"):
            result[1, 31] = torch.nan
        elif damage == "element":
            result[0, 16] += 0.1
        elif damage == "scale":
            result *= 1.01
        return result[:1] if damage == "shape" else result

    mode, expected = mode_of(broken)
    assert check(mode, None, 1, 3).wrong


def test_a_product_without_one_channel_is_wrong(scripts, device):
    """The size of a real layer: where one channel of 2048 matters least."""

    from gpu_check import check
    from gpu_modes import _lists, inputs
    from gpu_weights import Shape, Weights

    torch.manual_seed(0)
    weights = Weights(Shape(4096, 64), torch.bfloat16, device, 2)
    xs = inputs(1, weights)
    mode = _lists("8:16", weights, xs)
    right = replace(mode, run=lambda i, tiles: mode.expected(i % len(xs)).bfloat16())
    assert check(right, None, len(xs), 2).wrong is None

    def lacking(number, tiles):
        x = sparsify(xs[number % len(xs)], parse_pattern("8:16"))
        x[0, x.abs().argmax()] = 0
        return (x.float() @ weights.dense.float().t()).bfloat16()

    assert check(replace(mode, run=lacking), None, len(xs), 2).wrong


def test_results_that_vary_are_noted(scripts):
    from gpu_check import check

    calls = []

    def varying(number, tiles):
        calls.append(number)
        return expected + 1e-6 * len(calls)

    mode, expected = mode_of(varying)
    verdict = check(mode, None, 1, 2)
    assert verdict.wrong is None
    assert not verdict.repeatable


def test_fastest_tiles_are_those_that_are_right(scripts, capfd):
    from gpu_check import fastest

    seconds = {"slow": 3.0, "fast": 1.0, "wrong": 0.1, "broken": 0.1, "late": 2.0}

    def result(number, tiles):
        if tiles == "broken":
            raise RuntimeError("does not compile")
        return expected + (tiles == "wrong")

    mode, expected = mode_of(result, tiles=tuple(seconds))
    tiles, verdict = fastest(mode, 1, 2, seconds.__getitem__)
    assert (tiles, verdict.wrong) == ("fast", None)
    assert fastest(mode, 1, 2, seconds.__getitem__, most=1)[0] == "slow"
    err = capfd.readouterr().err
    assert "does not compile" in err
    assert "wrong: call 0: error" in err
    mode, expected = mode_of(result, tiles=("wrong", "broken"))
    assert fastest(mode, 1, 2, seconds.__getitem__)[1].wrong
    mode, expected = mode_of(result, tiles=("broken",))
    with pytest.raises(RuntimeError, match="does not compile"):
        fastest(mode, 1, 2, seconds.__getitem__)


@pytest.mark.parametrize(
    ("mode", "kernel"),
    [
        ("8:16", "gather_lists"),
        ("4:16 shared", "gather_lists"),
        ("packed 50%", "packed_linear_triton"),
        ("packed 2:4", "group_packed_linear_triton"),
    ],
)
def test_calls_take_the_tiles_and_the_next_copy(
    scripts, device, monkeypatch, mode, kernel
):
    import gpu_modes
    from gpu_weights import Shape, Weights

    seen = []

    def recorded(x, weight, *args, tiles):
        seen.append((id(weight), tiles))

    monkeypatch.setattr(gpu_modes, kernel, recorded)
    weights = Weights(Shape(64, 32), torch.bfloat16, device, 3)
    made = gpu_modes.MODES[mode](weights, gpu_modes.inputs(2, weights))
    assert len(made.tiles) == len(set(made.tiles)) > 1
    for number in range(6):
        made.run(number, made.tiles[number % 2])
    assert [tiles for _, tiles in seen] == [*made.tiles[:2]] * 3
    copies = [weight for weight, _ in seen]
    assert copies[:3] == copies[3:]
    assert len(set(copies)) == 3
