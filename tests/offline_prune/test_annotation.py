from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from nmsparse.config import ConfigError, Phase
from nmsparse.pattern import NMPattern
from nmsparse.sidecar import SIDECAR_NAME, read_sidecar
from offline_prune import InputError, annotate


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    ("pattern", "phase"), [("8:16", "decode"), ("1:4", "both"), ("6of8", "prefill")]
)
def test_in_place_adds_only_the_sidecar(model_dir, pattern, phase):
    before = contents(model_dir)

    assert annotate(model_dir, pattern=pattern, phase=phase) == model_dir

    after = contents(model_dir)
    assert after.pop(SIDECAR_NAME)
    assert after == before
    config = read_sidecar(model_dir)
    assert config.phase == Phase(phase)
    assert str(config.groups["default"].activation.pattern) == pattern.replace(
        "of", ":"
    )
    assert config.provenance["method"] == "annotate"


def test_copy_is_byte_identical_and_leaves_the_source_alone(model_dir, tmp_path):
    before = contents(model_dir)
    output = tmp_path / "deep" / "annotated"

    assert annotate(model_dir, pattern=NMPattern(2, 4), output=output) == output

    assert contents(model_dir) == before
    copied = contents(output)
    assert copied.pop(SIDECAR_NAME)
    assert copied == before
    assert leftovers(output.parent) == []


def test_copies_share_no_storage_with_the_source(model_dir, tmp_path):
    # Hub caches hold links; a copy must survive the cache's removal or change.
    snapshot = tmp_path / "models--org--name" / "snapshots" / "0123"
    snapshot.parent.mkdir(parents=True)
    model_dir = model_dir.rename(snapshot)
    weights = model_dir / "model.safetensors"
    blob = snapshot.parents[1] / "blobs" / "4567"
    blob.parent.mkdir()
    weights.rename(blob)
    weights.symlink_to(blob)
    content = blob.read_bytes()

    output = annotate(model_dir, pattern="8:16", output=tmp_path / "annotated")
    with blob.open("r+b") as file:
        file.write(b"changed")

    copy = output / "model.safetensors"
    assert not copy.is_symlink()
    assert copy.read_bytes() == content


def test_same_input_gives_the_same_bytes(model_dir, tmp_path):
    first = annotate(model_dir, pattern="8:16", output=tmp_path / "first")
    second = annotate(model_dir, pattern="8:16", output=tmp_path / "second")
    assert contents(first) == contents(second)


def test_annotating_again_replaces_the_sidecar(model_dir):
    annotate(model_dir, pattern="8:16")
    annotate(model_dir, pattern="2:4")
    assert str(read_sidecar(model_dir).groups["default"].activation.pattern) == "2:4"


def test_failure_while_copying_leaves_nothing(model_dir, tmp_path, monkeypatch):
    copied = []
    copy2 = shutil.copy2

    def fail_at_the_third(source, target):
        if len(copied) == 2:
            raise OSError("disk full")
        copied.append(source)
        return copy2(source, target)

    monkeypatch.setattr("offline_prune.annotation.shutil.copy2", fail_at_the_third)
    output = tmp_path / "annotated"
    with pytest.raises(OSError, match="disk full"):
        annotate(model_dir, pattern="8:16", output=output)

    assert len(copied) == 2
    assert not output.exists()
    assert leftovers(tmp_path) == []


def test_failure_while_writing_the_sidecar_leaves_nothing(
    model_dir, tmp_path, monkeypatch
):
    def fail(folder, config):
        assert (folder / "config.json").is_file()
        raise OSError("disk full")

    monkeypatch.setattr("offline_prune.annotation.write_sidecar", fail)
    with pytest.raises(OSError, match="disk full"):
        annotate(model_dir, pattern="8:16", output=tmp_path / "annotated")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_invalid_pattern_is_refused_before_anything_is_copied(model_dir, tmp_path):
    with pytest.raises(ConfigError, match="17:16 is invalid"):
        annotate(model_dir, pattern="17:16", output=tmp_path / "annotated")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_missing_folder_says_how_to_download(tmp_path):
    with pytest.raises(InputError, match=r"does not exist.*hf download"):
        annotate(tmp_path / "org" / "name", pattern="8:16")


def test_folder_without_config_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"has no config\.json"):
        annotate(tmp_path, pattern="8:16")


def test_full_output_folder_is_refused(model_dir, tmp_path):
    output = tmp_path / "annotated"
    output.mkdir()
    (output / "precious.txt").write_text("keep me")
    with pytest.raises(InputError, match="is not empty"):
        annotate(model_dir, pattern="8:16", output=output)
    assert contents(output) == {"precious.txt": b"keep me"}


def test_empty_output_folder_is_used(model_dir, tmp_path):
    output = tmp_path / "annotated"
    output.mkdir()
    annotate(model_dir, pattern="8:16", output=output)
    assert (output / "model.safetensors").is_file()


@pytest.mark.parametrize("inside", [".", "nested/annotated"])
def test_output_inside_the_model_is_refused(model_dir, inside):
    before = contents(model_dir)
    with pytest.raises(InputError, match="lies in it"):
        annotate(model_dir, pattern="8:16", output=model_dir / inside)
    assert contents(model_dir) == before
