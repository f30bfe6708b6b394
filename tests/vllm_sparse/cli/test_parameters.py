"""The parameters file, checked before the engine starts."""

from __future__ import annotations

import argparse

import pytest
import torch
from support import tiny
from support.treated import treat

from nmsparse.config import ConfigError
from nmsparse.parameters import PARAMETERS_NAME, read_parameters, write_parameters
from nmsparse.sidecar import SIDECAR_NAME, read_sidecar, write_sidecar
from vllm_sparse.cli import serve as module

MITIGATION = ("l_pts", "r_sparse")


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    return tiny.build("llama", tmp_path_factory.mktemp("dense") / "x")


@pytest.fixture
def folder(dense, tmp_path):
    return treat(dense, tmp_path / "model", "8:16", mitigation=MITIGATION)


def activate(model, *flags, additional_config=None):
    """Resolve and check flags against a model; return the plugin's options."""
    parser = argparse.ArgumentParser()
    module.add_sparsity_arguments(parser)
    args = parser.parse_args(flags)
    args.model = str(model)
    args.revision = args.hf_config_path = None
    args.code_revision = args.hf_token = args.hf_overrides = None
    args.config_format = "auto"
    args.trust_remote_code = False
    args.tensor_parallel_size = 1
    args.additional_config = additional_config
    module._activate(args)
    return args.additional_config["vllm_sparse"]


def rewrite(folder, change):
    """Change the parameters, and the sidecar with them."""
    config = read_sidecar(folder)
    found = read_parameters(folder, config.parameters)
    change(found)
    file = write_parameters(folder, found)
    write_sidecar(folder, config.model_copy(update={"parameters": file}))


def test_the_folder_travels_with_the_configuration(folder, capsys):
    options = activate(folder)
    assert options["folder"] == str(folder)
    assert options["config"]["parameters"]["file"] == PARAMETERS_NAME
    error = capsys.readouterr().err
    assert "8:16 (magnitude + l_pts + r_sparse; phase decode)" in error
    # Half of the weights, and low-rank matrices beside them.
    assert "they read 54.5 % of their weights" in error


def test_a_configuration_file_lies_beside_its_parameters(folder, dense, capsys):
    file = str(folder / SIDECAR_NAME)
    options = activate(dense, "--sparsity-config", file)
    assert options["folder"] == str(folder)
    inline = {"config": options["config"], "folder": str(folder)}
    again = activate(dense, additional_config={"vllm_sparse": inline})
    assert again["folder"] == str(folder)


def test_flags_without_parameters(dense, capsys):
    flags = ("--activation-sparsity", "8:16", "--sparsity-criterion", "wina")
    options = activate(dense, *flags, "--sparsity-mitigation", "d_pts,var")
    activation = options["config"]["groups"]["default"]["activation"]
    assert activation["criterion"] == "wina"
    assert activation["mitigation"] == ["d_pts", "var"]
    assert "folder" not in options
    assert "(wina + d_pts + var; phase decode)" in capsys.readouterr().err


def remove(folder):
    (folder / PARAMETERS_NAME).unlink()


def damage(folder):
    path = folder / PARAMETERS_NAME
    path.write_bytes(path.read_bytes()[:-1] + b"x")


def rename(folder):
    def change(found):
        found["model.layers.0.mlp.dwon_proj"] = found["model.layers.0.mlp.down_proj"]

    rewrite(folder, change)


def forget(folder):
    rewrite(folder, lambda found: found.pop("model.layers.0.mlp.down_proj"))


def forget_a_part(folder):
    rewrite(folder, lambda found: found.pop("model.layers.0.mlp.up_proj"))


def shorten(folder):
    def change(found):
        found["model.layers.0.mlp.down_proj"]["channel_shift"] = torch.zeros(8)

    rewrite(folder, change)


def call_it_weights(folder):
    config = read_sidecar(folder)
    name = "parameters.safetensors"
    (folder / PARAMETERS_NAME).rename(folder / name)
    file = config.parameters.model_copy(update={"file": name})
    write_sidecar(folder, config.model_copy(update={"parameters": file}))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (remove, rf"{PARAMETERS_NAME} does not exist\. Expected"),
        (damage, r"has sha256 [0-9a-f]{64}\. Expected"),
        (
            rename,
            r"'model\.layers\.0\.mlp\.dwon_proj' match none .*such as "
            r"model\.layers\.0\.mlp\.down_proj",
        ),
        (
            forget,
            r"model\.layers\.0\.mlp\.down_proj: Mitigation l_pts needs channel_sh",
        ),
        (forget_a_part, r"gate_up_proj has parameters for .*gate_proj, but none for"),
        (shorten, r"down_proj: .*channel_shift has shape \[8\]\. Expected \[256\]"),
        (
            call_it_weights,
            r"holds parameters\.safetensors but no model\.safetensors\.index\.json\. "
            r"vLLM would load",
        ),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_wrong_is_found_before_the_engine(folder, spoil, message):
    spoil(folder)
    with pytest.raises(ConfigError, match=message):
        activate(folder)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--sparsity-criterion", "wina"), "is given without --activation-sparsity"),
        (
            ("--activation-sparsity", "8:16", "--sparsity-criterion", "second_order"),
            "second_order needs parameters .*`offline-prune calibrate`",
        ),
        (
            ("--activation-sparsity", "8:16", "--sparsity-mitigation", "var,l_pts"),
            "l_pts needs parameters .*`offline-prune calibrate`",
        ),
        (
            ("--activation-sparsity", "8:16", "--sparsity_mitigation=vra"),
            "Did you mean: var",
        ),
    ],
)
def test_bad_flags_end_at_once(flags, message, capsys, monkeypatch):
    monkeypatch.setattr(module, "_parse", None)  # vLLM is not even imported
    assert module.serve(["x", *flags]) == 2
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(capsys.readouterr().err)


def test_a_damaged_file_ends_at_once(folder, capsys, monkeypatch):
    monkeypatch.setattr(module, "_parse", None)
    damage(folder)
    flags = ["--sparsity-config", str(folder / SIDECAR_NAME)]
    assert module.serve(["x", *flags]) == 2
    assert "has sha256" in capsys.readouterr().err
