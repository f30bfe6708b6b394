"""The parameters file: whole or not at all, verified, and clear errors."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.online_cases import make_parameters

from nmsparse.config import ConfigError, ParametersFile
from nmsparse.parameters import PARAMETERS_NAME, read_parameters, write_parameters

ALL = ("l_pts", "ls", "output_shift", "r_sparse")
MODULES = ("model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj")


def content():
    shared = {"factor": torch.rand(32), "channel_groups": torch.randperm(32)}
    # The same tensor objects in both, as parts of a fused layer have them.
    return {
        module: dict(make_parameters(ALL, seed=seed).items()) | shared
        for seed, module in enumerate(MODULES)
    }


def test_round_trip(tmp_path):
    given = content()
    given[MODULES[0]]["low_rank_in"] = torch.ones(2, 32, dtype=torch.bfloat16)
    given[MODULES[1]]["low_rank_in"] = torch.ones(32, 3).t()  # not contiguous
    file = write_parameters(tmp_path, given)
    path = tmp_path / PARAMETERS_NAME
    assert file.file == PARAMETERS_NAME
    assert file.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    found = read_parameters(tmp_path, file)
    assert found.keys() == given.keys()
    for module, tensors in given.items():
        assert found[module].keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert found[module][name].dtype is tensor.dtype
            assert torch.equal(found[module][name], tensor)


def test_equal_content_has_an_equal_hash(tmp_path):
    given = content()
    first = write_parameters(tmp_path, given)
    again = write_parameters(tmp_path, dict(reversed(given.items())))
    assert first == again


def test_nothing_to_store(tmp_path):
    assert read_parameters(tmp_path, write_parameters(tmp_path, {})) == {}


def test_the_file_is_readable_by_others(tmp_path):
    old = os.umask(0o077)
    try:
        write_parameters(tmp_path, content())
    finally:
        os.umask(old)
    assert (tmp_path / PARAMETERS_NAME).stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path, monkeypatch, step
):
    write_parameters(tmp_path, content())
    before = (tmp_path / PARAMETERS_NAME).read_bytes()

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(*((os, step) if step == "fsync" else (Path, step)), fail)
    with pytest.raises(OSError, match="disk full"):
        write_parameters(tmp_path, content())
    assert [path.name for path in tmp_path.iterdir()] == [PARAMETERS_NAME]
    assert (tmp_path / PARAMETERS_NAME).read_bytes() == before


def test_write_refuses_what_is_no_parameter(tmp_path):
    with pytest.raises(ValueError, match=r"a\.b: Unknown parameter 'shift'.*channel_s"):
        write_parameters(tmp_path, {"a.b": {"shift": torch.ones(3)}})
    with pytest.raises(ValueError, match=r"a\.b: output_scale holds NaN"):
        write_parameters(
            tmp_path, {"a.b": {"output_scale": torch.full((3,), torch.nan)}}
        )
    with pytest.raises(ConfigError, match="does not exist"):
        write_parameters(tmp_path / "none", {})
    assert list(tmp_path.iterdir()) == []


def test_missing_file(tmp_path):
    file = ParametersFile(file="p.safetensors", sha256="0" * 64)
    with pytest.raises(
        ConfigError, match=r"p\.safetensors does not exist\. .*calibrate"
    ):
        read_parameters(tmp_path, file)
    (tmp_path / "p.safetensors").mkdir()
    with pytest.raises(ConfigError, match="cannot be read"):
        read_parameters(tmp_path, file)


@pytest.mark.parametrize("damage", ["truncated", "one bit", "another"])
def test_another_file_than_the_configuration_names(tmp_path, damage):
    file = write_parameters(tmp_path, content())
    path = tmp_path / PARAMETERS_NAME
    data = bytearray(path.read_bytes())
    if damage == "truncated":
        data = data[:-1]
    elif damage == "one bit":
        data[-1] ^= 1
    else:
        write_parameters(tmp_path, {MODULES[0]: {"factor": torch.ones(3)}})
        data = path.read_bytes()
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=rf"has sha256 .* Expected {file.sha256}"):
        read_parameters(tmp_path, file)


def stored(folder, tensors):
    """Write tensors as another program would, with the right hash."""
    path = folder / PARAMETERS_NAME
    if isinstance(tensors, bytes):
        path.write_bytes(tensors)
    else:
        save_file(tensors, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return ParametersFile(file=PARAMETERS_NAME, sha256=digest)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (b"", "is no safetensors file"),
        (b"\x00" * 100, "is no safetensors file"),
        ({"a.factr": torch.ones(3)}, r"a\.factr: Unknown parameter 'factr'.*factor\?"),
        ({"factor.": torch.ones(3)}, r"Unknown parameter ''"),
        ({"factor": torch.ones(3)}, r"factor: it belongs to no module"),
        ({"a.factor": torch.ones(3, 1)}, r"a\.factor: factor is float32 \[3, 1\]"),
        ({"a.factor": torch.ones(3).half()}, r"factor is float16 .*Expected float32"),
        ({"a.output_shift": torch.tensor([torch.nan])}, "output_shift holds NaN"),
        ({"a.channel_groups": torch.tensor([0, 0])}, "no permutation"),
    ],
    ids=str,
)
def test_other_content_is_refused(tmp_path, tensors, message):
    file = stored(tmp_path, tensors)
    with pytest.raises(ConfigError, match=message) as caught:
        read_parameters(tmp_path, file)
    assert str(tmp_path / PARAMETERS_NAME) in str(caught.value)
