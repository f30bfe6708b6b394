"""``vllm-sparse serve``: flags to options, and options checked against the model."""

from __future__ import annotations

import argparse
import os
from importlib import metadata

import pytest
from support import tiny

from nmsparse.config import ConfigError, Phase, SparsityConfig
from nmsparse.sidecar import write_sidecar
from vllm_sparse.cli import serve as module
from vllm_sparse.cli.serve import add_sparsity_arguments, sparsity_options
from vllm_sparse.execution import CHOICES


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.build("llama", tmp_path_factory.mktemp("model"))


def parse(*arguments):
    parser = argparse.ArgumentParser()
    add_sparsity_arguments(parser)
    return parser.parse_args(arguments)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], None),
        (["--activation-sparsity", "8:16"], {"activation_sparsity": "8:16"}),
        (["--sparsity-config", "x.json"], {"config_file": "x.json"}),
        (["--sparsity-phase", "both"], {"phase": "both"}),
        (
            ["--activation-sparsity", "50%", "--sparsity-phase", "prefill"],
            {"activation_sparsity": "50%", "phase": "prefill"},
        ),
        (["--activation-sparsity", "off"], {"enabled": False}),
        (["--activation-sparsity", "off", "--kernels", "on"], {"enabled": False}),
        (["--kernels", "on"], {"kernels": "on"}),
        (["--dense-fallback", "drop"], {"dense_fallback": "drop"}),
        (["--sparse-weights", "off"], {"sparse_weights": "off"}),
        (["--sparse-steps", "fast"], {"sparse_steps": "fast"}),
        (["--shared-lists", "auto"], {"shared_lists": "auto"}),
        (
            ["--activation-sparsity", "2:4", "--dense-weights", "auto"],
            {"activation_sparsity": "2:4", "dense_weights": "auto"},
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_flags_become_options(arguments, expected):
    assert sparsity_options(parse(*arguments)) == expected


def test_two_sources_contradict_each_other():
    args = parse("--activation-sparsity", "8:16", "--sparsity-config", "x.json")
    with pytest.raises(ConfigError, match=r"are both given\. Expected one"):
        sparsity_options(args)


@pytest.mark.parametrize("name", CHOICES)
def test_flags_of_execution(name, capsys):
    flag = f"--{name.replace('_', '-')}"
    assert getattr(parse(), name) is None, "what is not given is not passed on"
    for choice in CHOICES[name]:
        assert getattr(parse(flag, choice), name) == choice
    with pytest.raises(SystemExit):
        parse(flag, "perhaps")
    assert "invalid choice: 'perhaps'" in capsys.readouterr().err


def test_the_share_of_the_canary(capsys):
    assert parse().canary is None, "what is not given is not passed on"
    assert parse("--canary", "0.01").canary == 0.01
    options = sparsity_options(parse("--activation-sparsity", "8:16", "--canary", "1"))
    assert options == {"activation_sparsity": "8:16", "canary": 1.0}
    for wrong in ("0", "1.5", "nan", "often"):
        with pytest.raises(SystemExit):
            parse("--canary", wrong)
        assert "Expected the share of decode steps" in capsys.readouterr().err


def test_help_explains_the_pattern():
    parser = argparse.ArgumentParser(prog="x")
    add_sparsity_arguments(parser)
    text = parser.format_help()
    assert "Keep N of every M" in text
    assert "50% for unstructured" in text
    assert "{decode,prefill,both}" in text


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("--activation_sparsity", "--activation-sparsity"),
        ("--activation_sparsity=8of16", "--activation-sparsity=8of16"),
        ("--sparsity_config=/a_b/c_d.json", "--sparsity-config=/a_b/c_d.json"),
        ("--sparsity_config", "--sparsity-config"),
        ("--dense_fallback=drop", "--dense-fallback=drop"),
        ("--dense_weights", "--dense-weights"),
        ("--sparse_weights", "--sparse-weights"),
        ("--sparse_steps=fast", "--sparse-steps=fast"),
        ("--shared_lists", "--shared-lists"),
        ("--kernel_config", "--kernel_config"),
        ("/a_b/c_d.json", "/a_b/c_d.json"),
        ("--max_model_len=1", "--max_model_len=1"),
    ],
)
def test_underscores_only_in_our_flags(given, expected):
    assert module._dashed(given) == expected


def activate(model, *flags, additional_config=None):
    """Resolve and check flags against a model; return what vLLM is given."""
    args = parse(*flags)
    args.model = str(model)
    args.revision = args.hf_config_path = None
    args.code_revision = args.hf_token = args.hf_overrides = None
    args.config_format = "auto"
    args.trust_remote_code = False
    args.tensor_parallel_size = 1
    args.additional_config = additional_config
    module._activate(args)
    return args.additional_config


def test_the_checked_configuration_travels_inline(model, capsys):
    extra = activate(model, "--activation-sparsity", "8:16", "--sparsity-phase", "both")
    options = extra["vllm_sparse"]
    expected = SparsityConfig.uniform("8:16", phase="both")
    assert SparsityConfig.parse(options["config"], source="test") == expected
    assert options["source"] == "activation sparsity 8:16"
    assert capsys.readouterr().err == (
        "vllm-sparse serve: 8 of 8 linear layers will be sparse\n"
        "vllm-sparse serve: activation sparsity 8:16 (magnitude; phase both), from "
        "activation sparsity 8:16; they read 50.0 % of their weights\n"
    )


def test_how_layers_run_travels_beside_the_configuration(model):
    flags = ("--kernels", "on", "--dense-fallback", "drop", "--sparse-steps", "fast")
    flags += ("--canary", "0.1")
    options = activate(model, "--activation-sparsity", "8:16", *flags)["vllm_sparse"]
    assert (options["kernels"], options["dense_fallback"]) == ("on", "drop")
    assert options["sparse_steps"] == "fast"
    assert options["canary"] == 0.1
    assert "sparse_weights" not in options
    found = SparsityConfig.parse(options["config"], source="test")
    assert found == SparsityConfig.uniform("8:16")
    given = {"vllm_sparse": {"activation_sparsity": "8:16", "kernels": "off"}}
    options = activate(model, additional_config=given)["vllm_sparse"]
    assert options["kernels"] == "off"


@pytest.mark.parametrize("flag", ["--sparse-weights", "--dense-weights"])
def test_weights_alone_activate_the_plugin(model, flag):
    options = activate(model, flag, "auto")["vllm_sparse"]
    assert options[flag[2:].replace("-", "_")] == "auto"
    assert SparsityConfig.parse(options["config"], source="test") == SparsityConfig()


def test_other_plugins_keep_their_configuration(model):
    before = {"another": {"x": 1}}
    extra = activate(model, "--activation-sparsity", "8:16", additional_config=before)
    assert extra["another"] == {"x": 1}
    assert before == {"another": {"x": 1}}


def test_a_sidecar_needs_no_flag(tmp_path):
    folder = tiny.build("llama", tmp_path)
    path = write_sidecar(folder, SparsityConfig.uniform("2:4"))
    options = activate(folder)["vllm_sparse"]
    config = SparsityConfig.parse(options["config"], source="test")
    assert config == SparsityConfig.uniform("2:4")
    assert options["source"] == f"sidecar {path}"
    options = activate(folder, "--sparsity-phase", "prefill")["vllm_sparse"]
    config = SparsityConfig.parse(options["config"], source="test")
    assert config.phase is Phase.PREFILL


def test_off_ignores_the_sidecar_and_says_so_to_every_process(tmp_path):
    folder = tiny.build("llama", tmp_path)
    write_sidecar(folder, SparsityConfig.uniform("2:4"))
    extra = activate(folder, "--activation-sparsity", "off")
    # The workers look for a sidecar too: they must be told.
    assert extra is not None
    assert extra["vllm_sparse"]["enabled"] is False


def test_without_any_sparsity_vllm_gets_what_was_given(model):
    assert activate(model) is None
    assert activate(model, additional_config={"a": 1}) == {"a": 1}


def test_additional_config_is_checked_too(model):
    options = {"vllm_sparse": {"activation_sparsity": "8:17"}}
    with pytest.raises(ConfigError, match="in_features 128 is not a multiple of m=17"):
        activate(model, additional_config=options)


def test_flags_and_additional_config_contradict_each_other(model):
    with pytest.raises(
        ConfigError,
        match=r"both by flags and by --additional-config vllm_sparse\. Expected one",
    ):
        activate(
            model,
            "--activation-sparsity",
            "8:16",
            additional_config={"vllm_sparse": {"activation_sparsity": "2:4"}},
        )


def test_a_phase_without_sparsity(model):
    with pytest.raises(ConfigError, match=r"phase is set, but no sparsity is"):
        activate(model, "--sparsity-phase", "both")


def test_model_path_that_does_not_exist():
    with pytest.raises(ConfigError, match=r"Model '/no/such' does not exist"):
        activate("/no/such", "--activation-sparsity", "8:16")


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        (None, {"vllm_sparse"}),
        ("mine", {"mine", "vllm_sparse"}),
        ("mine,vllm_sparse", {"mine", "vllm_sparse"}),
        ("", {"vllm_sparse"}),
    ],
    ids=["unset", "another", "named", "none"],
)
def test_vllm_loads_the_endpoint_only_if_named(monkeypatch, before, expected):
    # Set before they are deleted, so that what the call sets is undone.
    for name in ("VLLM_PLUGINS", "VLLM_WORKER_MULTIPROC_METHOD"):
        monkeypatch.setenv(name, before or "")
        if before is None or name != "VLLM_PLUGINS":
            monkeypatch.delenv(name)
    module._prepare_environment()
    names = os.environ["VLLM_PLUGINS"].split(",")
    assert set(names) >= expected
    assert len(names) == len(set(names))
    assert before is None or set(names) == expected
    assert os.environ["VLLM_WORKER_MULTIPROC_METHOD"] == "spawn"


def test_plugins_of_others_stay_allowed(monkeypatch):
    monkeypatch.setenv("VLLM_PLUGINS", "")
    monkeypatch.delenv("VLLM_PLUGINS")
    point = metadata.EntryPoint("lora_resolver", "x:y", "vllm.general_plugins")
    monkeypatch.setattr(
        metadata,
        "entry_points",
        lambda group: [point] if group == point.group else [],
    )
    module._prepare_environment()
    assert os.environ["VLLM_PLUGINS"] == "lora_resolver,vllm_sparse"


def test_a_sidecar_that_cannot_be_looked_for_is_told(model, monkeypatch, capsys):
    monkeypatch.setattr(module, "download_sidecar", lambda *args: "no network")
    assert activate(model) is None
    assert "note: no sidecar was looked for: no network" in capsys.readouterr().err
    activate(model, "--activation-sparsity", "8:16")
    assert "no network" not in capsys.readouterr().err


def test_unsupported_vllm(monkeypatch, capsys):
    monkeypatch.setattr(module, "installed_vllm", lambda: "0.29.0")
    assert module.serve(["x"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("vllm-sparse serve: error: vLLM 0.29.0 is not supported")
