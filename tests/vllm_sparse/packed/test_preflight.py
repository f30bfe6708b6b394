"""The checks of ``vllm-sparse serve`` see a packed folder as the model it is."""

from __future__ import annotations

import argparse

import pytest
from support import tiny
from support.pruned import prune

from nmsparse.config import ConfigError, SparsityConfig
from offline_prune import pack
from vllm_sparse.cli.preflight import check_model, check_model_exists


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    dense = tiny.build("llama", root / "dense", num_hidden_layers=1)
    return pack(prune(dense, root / "pruned", "2:4"), output=root / "packed").folder


def check(folder, pattern):
    args = argparse.Namespace(
        model=str(folder),
        hf_config_path=None,
        revision=None,
        trust_remote_code=False,
        code_revision=None,
        hf_token=None,
        hf_overrides={},
        config_format="auto",
        tensor_parallel_size=2,
    )
    check_model_exists(str(folder))
    check_model(SparsityConfig.uniform(pattern), args)


def test_layers_are_found(packed, capsys):
    check(packed, "8:16")
    assert "4 of 4 linear layers will be sparse" in capsys.readouterr().err


def test_patterns_are_checked(packed):
    with pytest.raises(ConfigError, match="is not a multiple of m=17"):
        check(packed, "8:17")
