"""``verify`` on packed folders: bits are counted, values are looked at."""

from __future__ import annotations

import shutil

import pytest
from safetensors.torch import load_file, save_file
from support import tiny
from support.pruned import prune
from support.run_results import layer, results_of

from nmsparse.packed_manifest import BITMASK, VALUES
from nmsparse.pattern import parse_pattern
from offline_prune import pack
from offline_prune.checksum import sha256_of
from offline_prune.report.measurements import Sizes
from offline_prune.report.results import RESULTS_NAME, read_results, write_results
from offline_prune.verification import verify

UP = "model.layers.0.mlp.up_proj"
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module", params=["2:4", "50%"])
def pair(request, tmp_path_factory):
    """Return a pruned folder with results, and its packed copy."""
    root = tmp_path_factory.mktemp("models")
    folder = prune(tiny.build("llama", root / "dense"), root / "pruned", request.param)
    pattern = request.param if ":" in request.param else None
    layers = []
    for name, weight in load_file(folder / WEIGHTS).items():
        if name.endswith("_proj.weight"):
            zeros = int((weight == 0).sum())
            assert zeros == weight.numel() * parse_pattern(request.param).sparsity
            block = int(name.split(".")[2])
            shape = tuple(weight.shape)
            module = name.removesuffix(".weight")
            layers.append(layer(module, block, zeros, shape=shape, pattern=pattern))
    files = {p.name: sha256_of(p) for p in folder.iterdir() if p.is_file()}
    write_results(folder, results_of(layers, files=files))
    return folder, pack(folder, output=root / "packed").folder


@pytest.fixture
def packed(pair, tmp_path):
    return shutil.copytree(pair[1], tmp_path / "packed")


def change(folder, suffix, function):
    tensors = load_file(folder / WEIGHTS)
    tensors[UP + suffix] = function(tensors[UP + suffix])
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def test_dense_and_packed_are_sound(pair):
    dense, packed = map(verify, pair)
    assert dense.problems == packed.problems == ()
    assert dense.layers == packed.layers
    assert len(dense.layers) == 14
    assert any("packed afterwards" in note for note in packed.notes)
    assert not any("packed afterwards" in note for note in dense.notes)


def test_copied_files_are_still_compared(packed):
    (packed / "tokenizer.json").write_text("{}")
    (problem,) = verify(packed).problems
    assert problem.startswith("tokenizer.json was changed")


def test_folder_that_was_saved_packed_has_its_own_hashes(packed):
    results = read_results(packed)
    sizes = Sizes(dense_bytes=2, saved_bytes=1, saved_format="packed")
    files = {name: sha256_of(packed / name) for name in results.files}
    update = {"sizes": sizes, "files": files}
    write_results(packed, results.model_copy(update=update))
    found = verify(packed)
    assert found.ok
    assert not any("packed" in note for note in found.notes)
    path = packed / WEIGHTS
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert any(x.startswith(f"{WEIGHTS} was changed") for x in verify(packed).problems)


def test_moved_bits(packed):
    """As many bits as before in other places: a pattern notices, counts cannot."""
    pattern = read_results(packed).layers[0].pattern

    def move(bits):
        bits = bits.clone()
        before = f"{int(bits[3, 0]):08b}"
        # Two groups of two bits each become none and four.
        after = "11110000" if pattern is not None else before[::-1]
        assert after.count("1") == before.count("1")
        bits[3, 0] = int(after, 2)
        return bits

    change(packed, BITMASK, move)
    problems = verify(packed).problems
    if pattern is None:
        assert problems == ()
    else:
        (problem,) = problems
        assert problem.startswith(f"{UP}: 1 of 8,192 groups hold more than 2 non-zeros")
        assert "row 3, channels 4 to 7" in problem


def test_set_bit_without_a_value(packed):
    def fill(bits):
        bits = bits.clone()
        bits[0, 0] = 255
        return bits

    change(packed, BITMASK, fill)
    text = "\n".join(verify(packed).problems)
    assert f"{UP}: it holds" in text
    assert "Expected as many" in text


def test_stored_zero_counts_as_zero(packed):
    def spoil(values):
        values = values.clone()
        values[10] = -0.0
        return values

    change(packed, VALUES, spoil)
    (problem,) = verify(packed).problems
    assert problem.startswith(f"{UP}: 16,385 of 32,768 weights are zero")


def test_nan_among_the_values(packed):
    def spoil(values):
        values = values.clone()
        values[-1] = float("nan")
        return values

    change(packed, VALUES, spoil)
    (problem,) = verify(packed).problems
    assert problem.startswith(f"{UP}: 1 of 32,768 weights are NaN or infinite")


def test_missing_values(packed):
    tensors = load_file(packed / WEIGHTS)
    del tensors[UP + VALUES]
    save_file(tensors, packed / WEIGHTS)
    (problem,) = verify(packed).problems
    assert problem.startswith(f"{UP}: {UP}{VALUES} is missing")


def test_bits_of_another_shape(packed):
    change(packed, BITMASK, lambda bits: bits[:-1].contiguous())
    (problem,) = verify(packed).problems
    assert problem == (
        f"{UP}: {UP}{BITMASK} is U8 [255, 16]. Expected U8 [256, 16], by "
        f"{RESULTS_NAME}."
    )


def test_unreadable_manifest(packed):
    path = packed / "config.json"
    path.write_text(path.read_text().replace('"bitmask"', '"bitmusk"'))
    assert any("config.json" in problem for problem in verify(packed).problems)
