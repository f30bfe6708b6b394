"""``ParameterSource``: which layer gets which parameters, and every mismatch."""

from __future__ import annotations

import pytest
import torch

from nmsparse.config import ConfigError, SparsityConfig
from nmsparse.parameters import write_parameters
from vllm_sparse.treatment.source import ParameterSource

PART = {"channel_shift": torch.zeros(4)}
QKV = ["a.qkv_proj", "a.q_proj", "a.k_proj", "a.v_proj"]


def source(*names):
    return ParameterSource(dict.fromkeys(names, PART), "fitted.safetensors")


def test_parts_of_a_fused_layer_in_its_order():
    found = source("a.v_proj", "a.q_proj", "a.k_proj", "b.o_proj").take(QKV)
    assert list(found) == QKV[1:]


def test_a_layer_that_is_fused_in_the_file():
    assert list(source("a.qkv_proj").take(QKV)) == ["a.qkv_proj"]


def test_a_layer_without_parameters():
    assert source("b.o_proj").take(QKV) == {}


def test_parts_without_parameters_are_named():
    with pytest.raises(
        ConfigError,
        match=r"fitted\.safetensors: a\.qkv_proj has parameters for a\.q_proj, but "
        r"none for a\.k_proj, a\.v_proj\. .*`offline-prune calibrate`",
    ):
        source("a.q_proj").take(QKV)


def test_parameters_of_no_layer_are_named():
    found = source("a.q_proj", "a.k_proj", "a.v_proj", "a.dwon_proj")
    found.take(QKV)
    found.take(["a.down_proj"])
    with pytest.raises(
        ConfigError,
        match=r"parameters for 'a\.dwon_proj' match none .* such as a\.down_proj",
    ):
        found.check_used()


def test_a_dense_layer_may_have_parameters():
    found = source("a.down_proj")
    found.take(["a.down_proj"])
    found.check_used()


def read(folder, config, translate=str):
    return ParameterSource.read(config, folder, translate)


def test_names_are_translated(tmp_path):
    file = write_parameters(tmp_path, {"model.x.up_proj": PART})
    config = SparsityConfig(parameters=file)
    found = read(tmp_path, config, lambda name: name.removeprefix("model."))
    assert found.file == file.file
    assert list(found.take(["x.up_proj"])) == ["x.up_proj"]


def test_nothing_is_read_without_a_file():
    found = read(None, SparsityConfig())
    assert found.take(["x"]) == {}
    found.check_used()


def test_errors_of_the_file(tmp_path):
    config = SparsityConfig(parameters=write_parameters(tmp_path, {"x": PART}))
    with pytest.raises(ConfigError, match="the folder is not known"):
        read(None, config)
    path = tmp_path / config.parameters.file
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(ConfigError, match="has sha256"):
        read(tmp_path, config)
    path.unlink()
    with pytest.raises(ConfigError, match="does not exist"):
        read(tmp_path, config)
