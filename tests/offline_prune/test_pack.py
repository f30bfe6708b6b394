"""``pack`` and ``unpack``: exact copies, and folders that are refused."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support import tiny
from support.pruned import prune
from transformers import AutoConfig

from nmsparse import SparsityConfig, write_sidecar
from nmsparse.packed_manifest import PackedFormatError
from offline_prune import InputError, pack, unpack
from offline_prune.cli import main
from offline_prune.packing import shards
from offline_prune.packing.config_text import insert, remove
from offline_prune.packing.folder import INDEX_NAME

UP = "model.layers.0.mlp.up_proj"


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    """Return a pruned model with a sidecar and files that nothing reads."""
    root = tmp_path_factory.mktemp("models")
    dense = tiny.build("llama", root / "dense", tie_word_embeddings=True)
    folder = prune(dense, root / "pruned", "50%")
    write_sidecar(folder, SparsityConfig.uniform("8:16"))
    (folder / "nested").mkdir()
    (folder / "nested" / "notes.bin").write_bytes(bytes(range(256)))
    return folder


@pytest.fixture(scope="module")
def packed(pruned):
    done = pack(pruned, output=pruned.parent / "packed")
    return done.folder


@pytest.fixture
def source(pruned, tmp_path):
    """Return a copy that a test may damage."""
    return shutil.copytree(pruned, tmp_path / "source")


@pytest.fixture
def packed_source(packed, tmp_path):
    return shutil.copytree(packed, tmp_path / "packed-source")


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def tensors_of(folder):
    found = {}
    for path in folder.glob("*.safetensors"):
        found |= load_file(path)
    return found


def assert_same_tensors(a, b):
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert torch.equal(tensor.view(torch.int16), b[name].view(torch.int16)), name


def shard(folder):
    """Split a model into two weight files and an index, as transformers does."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    files = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({n: tensors[n] for n in part}, folder / file, {"format": "pt"})
        files |= dict.fromkeys(part, file)
    size = sum(tensor.nbytes for tensor in tensors.values())
    index = {
        "metadata": {"total_size": size},
        "weight_map": dict(sorted(files.items())),
    }
    (folder / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n")
    return index


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def change_tensors(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def test_round_trip(pruned, packed, tmp_path):
    back = unpack(packed, output=tmp_path / "back").folder
    before, after = contents(pruned), contents(back)
    assert before.keys() == after.keys()
    for name in before.keys() - {"model.safetensors"}:
        assert before[name] == after[name], name
    assert_same_tensors(tensors_of(pruned), tensors_of(back))


def test_what_is_packed(pruned, packed):
    dense, found = tensors_of(pruned), tensors_of(packed)
    linears = {n.removesuffix(".weight") for n in dense if n.endswith("_proj.weight")}
    assert len(linears) == 14
    expected = {n for n in dense if not n.endswith("_proj.weight")}
    for suffix in (".weight_bitmask", ".weight_values"):
        expected |= {name + suffix for name in linears}
    assert found.keys() == expected
    assert found[f"{UP}.weight_bitmask"].shape == (256, 16)
    assert found[f"{UP}.weight_values"].shape == (256 * 64,)
    manifest = json.loads((packed / "config.json").read_text())["quantization_config"]
    assert manifest["quant_method"] == "vllm_sparse"
    assert manifest["modules"].keys() == linears
    assert manifest["modules"][UP] == [256, 128]
    with safe_open(packed / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    others = contents(pruned).keys() - {"config.json", "model.safetensors"}
    for name in others:
        assert contents(packed)[name] == contents(pruned)[name]


def test_transformers_reads_the_configuration(packed):
    config = AutoConfig.from_pretrained(packed)
    assert config.quantization_config["modules"][UP] == [256, 128]


def test_sizes(pruned, packed, tmp_path):
    done = pack(pruned, output=tmp_path / "packed")
    assert (done.modules, done.linears) == (14, 14)
    for folder, size in ((pruned, done.bytes_before), (packed, done.bytes_after)):
        assert size == (folder / "model.safetensors").stat().st_size
    assert done.bytes_after < done.bytes_before


def test_sharded_model(source, tmp_path):
    index = shard(source)
    done = pack(source, output=tmp_path / "packed")
    found = json.loads((done.folder / INDEX_NAME).read_text())
    tensors = tensors_of(done.folder)
    assert found["weight_map"].keys() == tensors.keys()
    for name, file in found["weight_map"].items():
        assert name in load_file(done.folder / file)
    size = sum(tensor.nbytes for tensor in tensors.values())
    assert found["metadata"]["total_size"] == size
    assert not (done.folder / "model.safetensors").exists()

    back = unpack(done.folder, output=tmp_path / "back").folder
    assert json.loads((back / INDEX_NAME).read_text()) == index
    assert (back / INDEX_NAME).read_bytes() == (source / INDEX_NAME).read_bytes()
    assert_same_tensors(tensors_of(source), tensors_of(back))


def test_negative_zeros_come_back_positive(source, tmp_path):
    def negate_zeros(tensors):
        name = f"{UP}.weight"
        tensors[name] = torch.where(tensors[name] == 0, -0.0, tensors[name])

    change_tensors(source, negate_zeros)
    done = pack(source, output=tmp_path / "packed")
    found = tensors_of(unpack(done.folder, output=tmp_path / "back").folder)
    assert not found[f"{UP}.weight"].view(torch.int16).eq(-0x8000).any()
    assert torch.equal(found[f"{UP}.weight"], tensors_of(source)[f"{UP}.weight"])


def test_dense_linears_stay_dense(source, tmp_path):
    change_tensors(source, lambda tensors: tensors[f"{UP}.weight"].fill_(1.0))
    done = pack(source, output=tmp_path / "packed")
    assert (done.modules, done.linears) == (13, 14)
    assert f"{UP}.weight" in tensors_of(done.folder)


def test_min_sparsity(pruned, tmp_path):
    with pytest.raises(
        InputError, match=r"none of its 14 linear weights has 60% zeros \(most has mod"
    ):
        pack(pruned, output=tmp_path / "packed", min_sparsity=0.6)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match=r"min_sparsity 1\.0 is invalid"):
        pack(pruned, output=tmp_path / "packed", min_sparsity=1.0)


@pytest.mark.parametrize("tail", ["", "\n", "\r\n  \r\n"])
@pytest.mark.parametrize(
    "text", ['{"a":1}', '{\r\n\t"a": {"b": "}"}\r\n}', '{"ä": "ü", "c": [1, 2.50]  }']
)
def test_config_text_is_restored_byte_by_byte(text, tail):
    from nmsparse.packed_manifest import PackedManifest

    manifest = PackedManifest.of({UP: (256, 128)})
    packed_text = insert(text + tail, manifest)
    assert json.loads(packed_text) == {
        **json.loads(text),
        "quantization_config": manifest.model_dump(mode="json"),
    }
    assert remove(packed_text, manifest) == text + tail
    # Edited elsewhere by hand: still removed cleanly. Written anew: content is kept.
    edited = packed_text.replace('"a":', '"z":')
    assert remove(edited, manifest) == (text + tail).replace('"a":', '"z":')
    anew = json.dumps(json.loads(packed_text))
    assert json.loads(remove(anew, manifest)) == json.loads(text)


def _quantized(folder):
    edit_config(folder, quantization_config={"quant_method": "gptq"})


def _truncated(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


def _other_shape(folder):
    change_tensors(folder, lambda tensors: tensors.update({f"{UP}.weight": ZEROS}))


def _incomplete_index(folder):
    index = shard(folder)
    index["weight_map"]["ghost.weight"] = next(iter(index["weight_map"].values()))
    (folder / INDEX_NAME).write_text(json.dumps(index))


def _foreign_index(folder):
    index = {"weight_map": {"x": "../model.safetensors"}}
    (folder / INDEX_NAME).write_text(json.dumps(index))


ZEROS = torch.zeros(4, 4, dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_quantized, r"is quantized \(quantization_config in config\.json\)"),
        (lambda f: edit_config(f, compression_config={}), "is quantized"),
        (lambda f: (f / "quantize_config.json").write_text("{}"), "is quantized"),
        (lambda f: (f / "config.json").unlink(), r"has no config\.json"),
        (lambda f: (f / "config.json").write_text("{"), r"config\.json cannot be read"),
        (lambda f: (f / "config.json").write_text("[]"), "holds no JSON object"),
        (lambda f: (f / "model.safetensors").unlink(), r"has no model\.safetensors"),
        (lambda f: edit_config(f, architectures=["Foo"]), "of Foo were not seen"),
        (lambda f: edit_config(f, model_type="foo"), "transformers cannot build"),
        (_truncated, r"model\.safetensors cannot be read .*whole"),
        (_other_shape, r"up_proj\.weight has shape \[4, 4\]\. Expected \[256, 128\]"),
        (_incomplete_index, r"lacks the tensor ghost\.weight"),
        (_foreign_index, "is no index of safetensors"),
    ],
)
def test_folders_that_cannot_be_packed(source, tmp_path, damage, message):
    damage(source)
    with pytest.raises(InputError, match=message):
        pack(source, output=tmp_path / "packed")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def _drop(suffix):
    return lambda folder: change_tensors(
        folder, lambda tensors: tensors.pop(UP + suffix)
    )


def _flip_a_bit(folder):
    def flip(tensors):
        tensors[f"{UP}.weight_bitmask"][0, 0] ^= 1

    change_tensors(folder, flip)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_drop(".weight_bitmask"), r"up_proj\.weight_bitmask is missing"),
        (_drop(".weight_values"), r"up_proj\.weight_values is missing"),
        (_flip_a_bit, r"up_proj\.weight_values holds 16384 values, but"),
    ],
)
def test_damaged_packed_folders(packed_source, tmp_path, damage, message):
    damage(packed_source)
    with pytest.raises(PackedFormatError, match=message):
        unpack(packed_source, output=tmp_path / "back")
    assert [path.name for path in tmp_path.iterdir()] == ["packed-source"]


def test_packing_twice_and_unpacking_what_is_dense(pruned, packed, tmp_path):
    with pytest.raises(InputError, match="is packed already"):
        pack(packed, output=tmp_path / "again")
    with pytest.raises(InputError, match="is not packed"):
        unpack(pruned, output=tmp_path / "back")


@pytest.mark.parametrize("inside", [".", "deeper"])
def test_output_in_the_source_is_refused(source, inside):
    with pytest.raises(InputError, match="lies in it"):
        pack(source, output=source / inside)


def test_full_output_is_refused(pruned, tmp_path):
    (tmp_path / "precious").write_text("keep me")
    with pytest.raises(InputError, match="is not empty"):
        pack(pruned, output=tmp_path)


def test_failure_leaves_nothing(pruned, tmp_path, monkeypatch):
    def fail(*_args, **_options):
        raise OSError("disk full")

    monkeypatch.setattr(shards, "save_weights", fail)
    with pytest.raises(OSError, match="disk full"):
        pack(pruned, output=tmp_path / "packed")
    assert list(tmp_path.iterdir()) == []


def test_command_line(pruned, tmp_path, capsys):
    packed, back = tmp_path / "packed", tmp_path / "back"
    assert main(["pack", str(pruned), "-o", str(packed), "--min-sparsity", "0.5"]) == 0
    out = capsys.readouterr().out
    assert "14 of 14 linear weights are packed: 0." in out
    assert f"vllm-sparse serve {packed}" in out
    assert main(["unpack", str(packed), "--output", str(back)]) == 0
    assert "14 weights" in capsys.readouterr().out
    assert_same_tensors(tensors_of(pruned), tensors_of(back))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pack", "MODEL"], "offline-prune pack --output: Field required"),
        (["pack", "MODEL", "-o", "x", "--min-sparsity", "1"], "less than 1"),
        (["pack", "PACKED", "-o", "x"], "is packed already"),
        (["unpack", "MODEL", "-o", "x"], "is not packed"),
        (["unpack", "nowhere", "-o", "x"], "nowhere does not exist"),
    ],
)
def test_user_errors(pruned, packed, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    folders = {"MODEL": str(pruned), "PACKED": str(packed)}
    assert main([folders.get(word, word) for word in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error


def test_damaged_folder_on_the_command_line(packed_source, tmp_path, capsys):
    _flip_a_bit(packed_source)
    assert main(["unpack", str(packed_source), "-o", str(tmp_path / "back")]) == 2
    assert "the file is damaged, copy it again" in capsys.readouterr().err
