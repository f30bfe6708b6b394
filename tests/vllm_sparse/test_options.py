"""Where the configuration comes from, and every way to say it wrongly."""

from __future__ import annotations

import json
import subprocess
import sys

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import EntryNotFoundError, HFValidationError

from nmsparse.config import ConfigError, Phase, SparsityConfig
from nmsparse.sidecar import SIDECAR_NAME, write_sidecar
from vllm_sparse.execution import CHOICES
from vllm_sparse.options import (
    FINGERPRINT,
    download_sidecar,
    local_model_folder,
    resolve_options,
)

WHERE = r"additional_config\['vllm_sparse'\]"
CONFIG = SparsityConfig.uniform("2:4", phase="both")
FITTED = SparsityConfig.parse(
    CONFIG.model_dump(mode="json")
    | {"parameters": {"file": "fitted.safetensors", "sha256": "0" * 64}},
    source="test",
)


def pattern_of(config):
    return str(config.groups["default"].activation.pattern)


@pytest.mark.parametrize("options", [None, {}, {"enabled": True}, {FINGERPRINT: "1"}])
def test_nothing_asked_for(options, tmp_path):
    assert resolve_options(options, None) is None
    assert resolve_options(options, tmp_path) is None


def test_pattern():
    config, source, _ = resolve_options({"activation_sparsity": "8:16"}, None)
    assert config == SparsityConfig.uniform("8:16")
    assert source == "activation sparsity 8:16"


def test_inline_configuration():
    data = CONFIG.model_dump(mode="json")
    config, source, _ = resolve_options({"config": data}, None)
    assert config == CONFIG
    assert source == "additional_config['vllm_sparse']"


def test_file(tmp_path):
    path = write_sidecar(tmp_path, CONFIG)
    found = resolve_options({"config_file": str(path)}, None)
    assert found == (CONFIG, str(path), None)


def test_sidecar(tmp_path):
    path = write_sidecar(tmp_path, CONFIG)
    assert resolve_options(None, tmp_path) == (CONFIG, f"sidecar {path}", None)


def test_parameters_lie_beside_their_configuration(tmp_path, monkeypatch):
    path = write_sidecar(tmp_path, FITTED)
    assert resolve_options(None, tmp_path).folder == tmp_path
    assert resolve_options({"config_file": str(path)}, None).folder == tmp_path
    monkeypatch.chdir(tmp_path)
    # Other processes may have another working directory.
    assert resolve_options({"config_file": path.name}, None).folder == tmp_path
    inline = {"config": FITTED.model_dump(mode="json"), "folder": str(tmp_path)}
    assert resolve_options(inline, None).folder == tmp_path
    for folder in ({}, {"folder": "beside"}, {"folder": 3}):
        with pytest.raises(ConfigError, match=r"folder is .*Expected the absolute"):
            resolve_options({"config": inline["config"], **folder}, tmp_path)


def test_criterion_and_mitigation():
    options = {"activation_sparsity": "8:16", "criterion": "wina"}
    config, source, folder = resolve_options(
        {**options, "mitigation": "d_pts, var"}, None
    )
    activation = config.groups["default"].activation
    assert (activation.criterion, activation.mitigation) == ("wina", ("d_pts", "var"))
    assert (source, folder) == ("activation sparsity 8:16", None)
    given = {"activation_sparsity": "8:16", "mitigation": ["var"]}
    activation = resolve_options(given, None).config.groups["default"].activation
    assert (activation.criterion, activation.mitigation) == ("magnitude", ("var",))


def test_an_explicit_source_wins_over_the_sidecar(tmp_path):
    write_sidecar(tmp_path, CONFIG)
    config, source, _ = resolve_options({"activation_sparsity": "8:16"}, tmp_path)
    assert pattern_of(config) == "8:16"
    assert config.phase is Phase.DECODE
    assert source == "activation sparsity 8:16"


def test_an_explicit_source_does_not_read_a_broken_sidecar(tmp_path):
    (tmp_path / SIDECAR_NAME).write_text("{")
    assert resolve_options({"activation_sparsity": "8:16"}, tmp_path) is not None
    assert resolve_options({"enabled": False}, tmp_path) is None
    with pytest.raises(ConfigError, match="cannot be read"):
        resolve_options({}, tmp_path)


def test_disabled_ignores_the_sidecar_and_every_other_key(tmp_path):
    write_sidecar(tmp_path, CONFIG)
    options = {"enabled": False, "activation_sparsity": "8:16", "phase": "prefill"}
    assert resolve_options(options, tmp_path) is None


def test_phase_overrides_only_the_phase(tmp_path):
    write_sidecar(tmp_path, CONFIG)
    config, *_ = resolve_options({"phase": "prefill"}, tmp_path)
    assert config.phase is Phase.PREFILL
    assert config.groups == CONFIG.groups
    assert config.ignore == CONFIG.ignore
    options = {"activation_sparsity": "8:16", "phase": "both"}
    assert resolve_options(options, None)[0].phase is Phase.BOTH


def test_the_source_can_be_told():
    options = {"activation_sparsity": "8:16", "source": "sidecar of my/model"}
    assert resolve_options(options, None)[1] == "sidecar of my/model"


@pytest.mark.parametrize("name", ["sparse_weights", "dense_weights"])
def test_weights_alone_activate_the_plugin(name):
    config, source, _ = resolve_options({name: "auto"}, None)
    assert config.groups == {}
    assert source == f"{name}: auto"
    assert resolve_options({name: "off"}, None) is None


@pytest.mark.parametrize("key", ["kernels", "dense_fallback"])
def test_how_layers_run_activates_nothing(key, tmp_path):
    options = {key: CHOICES[key][-1]}
    assert resolve_options(options, None) is None
    write_sidecar(tmp_path, CONFIG)
    assert resolve_options(options, tmp_path)[0] == CONFIG


def test_how_layers_run_is_no_part_of_the_configuration():
    options = {name: choices[-1] for name, choices in CHOICES.items()}
    found = resolve_options({**options, "activation_sparsity": "8:16"}, None)
    assert found == resolve_options({"activation_sparsity": "8:16"}, None)


def test_a_canary_activates_nothing_and_needs_generated_tokens():
    assert resolve_options({"canary": 0.5}, None) is None
    online = {"activation_sparsity": "8:16", "canary": 0.5}
    for phase in ("decode", "both"):
        found = resolve_options({**online, "phase": phase}, None)
        assert found.config == SparsityConfig.uniform("8:16", phase=phase)
    with pytest.raises(ConfigError, match=r"\.canary is set, but the phase is prefill"):
        resolve_options({**online, "phase": "prefill"}, None)


def test_a_source_and_a_sidecar_come_before_weights(tmp_path):
    both = {"sparse_weights": "auto", "activation_sparsity": "8:16"}
    assert resolve_options(both, None)[1] == "activation sparsity 8:16"
    write_sidecar(tmp_path, CONFIG)
    assert resolve_options({"sparse_weights": "auto"}, tmp_path)[0] == CONFIG
    off = {"sparse_weights": "auto", "enabled": False}
    assert resolve_options(off, tmp_path) is None


def test_options_are_not_modified():
    options = {"enabled": True, "activation_sparsity": "8:16", FINGERPRINT: "1"}
    before = dict(options)
    resolve_options(options, None)
    assert options == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"activation_sparsty": "8:16"},
            rf"{WHERE}: Unknown key 'activation_sparsty'\. Did you mean: "
            r"activation_sparsity\?",
        ),
        ({"kernel": "on"}, rf"{WHERE}: Unknown key 'kernel'\. Did you mean: kernels\?"),
        (
            {"kernels": "of"},
            rf"{WHERE}\.kernels: Unknown value 'of'\. Did you mean: off\?",
        ),
        ({"dense_fallback": True}, rf"{WHERE}\.dense_fallback: Unknown value 'True'"),
        (
            {"sparse_weights": "on", "enabled": False},
            rf"{WHERE}\.sparse_weights: Unknown value 'on'",
        ),
        ({"enabled": "no"}, rf"{WHERE}\.enabled is 'no'\. Expected true or false"),
        ({"enabled": 1}, rf"{WHERE}\.enabled is 1\. Expected true or false"),
        (
            {"activation_sparsity": "8:16", "config": {}},
            rf"{WHERE} has activation_sparsity and config\. Expected one of "
            r"activation_sparsity, config, config_file: remove the others",
        ),
        (
            {"config": {}, "config_file": "x"},
            rf"{WHERE} has config and config_file\. Expected one of",
        ),
        (
            {"phase": "both"},
            rf"{WHERE}\.phase is set, but no sparsity is\. Expected also one of .*"
            rf"or a model folder with {SIDECAR_NAME}",
        ),
        (
            {"activation_sparsity": "8:16", "phase": "never"},
            rf"{WHERE}\.phase: phase: Input should be 'decode', 'prefill' or 'both'",
        ),
        (
            {"activation_sparsity": 8},
            rf"{WHERE}\.activation_sparsity is 8\. Expected a string",
        ),
        ({"config_file": {}}, rf"{WHERE}\.config_file is {{}}\. Expected a string"),
        ({"activation_sparsity": "16:8"}, "16:8 is invalid.*number KEPT"),
        ({"config_file": "/no/such.json"}, r"/no/such\.json does not exist"),
        (
            {"activation_sparsity": "8:16", "criterion": "wnia"},
            r"Unknown criterion 'wnia'\. Did you mean: wina\?",
        ),
        (
            {"activation_sparsity": "8:16", "mitigation": "d_pts,l_pts"},
            "d_pts and l_pts both take the slot shift",
        ),
        (
            {"activation_sparsity": "8:16", "criterion": "second_order"},
            rf"{WHERE}: second_order needs parameters .*`offline-prune calibrate`",
        ),
        (
            {"activation_sparsity": "8:16", "mitigation": "var,ls"},
            rf"{WHERE}: magnitude, var, ls needs .*`offline-prune calibrate`",
        ),
        ({"criterion": "wina"}, rf"{WHERE}\.criterion is set, but activation_sparsity"),
        (
            {"config": {}, "mitigation": "var"},
            rf"{WHERE}\.mitigation is set, but activation_sparsity is not",
        ),
        (
            {"activation_sparsity": "8:16", "folder": "/x"},
            rf"{WHERE}\.folder is set, but config is not",
        ),
        ({"config": "8:16"}, rf"{WHERE}\.config: Input should be a valid dictionary"),
        ({"config": {"fase": "both"}}, rf"{WHERE}\.config: Unknown key 'fase'"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ConfigError, match=message):
        resolve_options(options, None)


def test_local_folder(tmp_path):
    assert local_model_folder(str(tmp_path)) == tmp_path


@pytest.mark.parametrize("model", ["nobody/nothing", "s3://bucket/model", "/no/such"])
def test_model_that_is_not_here(model):
    assert local_model_folder(model) is None


def test_folder_in_the_hub_cache(tmp_path, monkeypatch):
    asked = []

    def cached(model, name, revision=None):
        asked.append((model, name, revision))
        return str(tmp_path / name)

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", cached)
    assert local_model_folder("org/name", "v1") == tmp_path
    assert asked == [("org/name", SIDECAR_NAME, "v1")]
    # What the hub answers for a file it knows not to exist is no string.
    monkeypatch.setattr(
        huggingface_hub, "try_to_load_from_cache", lambda *a, **k: object()
    )
    assert local_model_folder("org/name") is None


@pytest.fixture
def downloads(monkeypatch, tmp_path):
    """Record downloads; fail with the exception put at index 0, if any."""
    calls = []
    failure = []

    def download(model, name, revision=None, token=None):
        calls.append((model, name, revision))
        if failure:
            raise failure[0]
        return str(tmp_path / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return calls, failure


def test_download(downloads, tmp_path, monkeypatch):
    calls, _ = downloads
    assert download_sidecar("org/name", "v1") is None
    assert calls == [("org/name", SIDECAR_NAME, "v1")]
    assert download_sidecar(str(tmp_path)) is None
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert download_sidecar("org/name") is None
    assert len(calls) == 1


def test_a_sidecar_brings_its_parameters(downloads, tmp_path):
    calls, _ = downloads
    write_sidecar(tmp_path, FITTED)
    assert download_sidecar("org/name", "v1") is None
    assert [name for _, name, _ in calls] == [SIDECAR_NAME, "fitted.safetensors"]
    # Whoever uses the sidecar reports what is wrong with it.
    (tmp_path / SIDECAR_NAME).write_text("{")
    assert download_sidecar("org/name", "v1") is None
    assert len(calls) == 3


@pytest.mark.parametrize("error", [EntryNotFoundError, HFValidationError])
def test_a_model_without_sidecar_is_fine(downloads, error):
    downloads[1].append(error("no"))
    assert download_sidecar("org/name") is None
    assert len(downloads[0]) == 1


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError("\nAccess is gated.\nAsk for it."), "Access is gated."),
        (ConnectionError(), "ConnectionError"),
    ],
    ids=["first line", "no text"],
)
def test_other_hub_errors_are_told(downloads, error, told):
    downloads[1].append(error)
    assert download_sidecar("org/name") == told


def test_resolving_imports_neither_torch_nor_vllm():
    code = (
        "import json, sys; from vllm_sparse.options import resolve_options;"
        "resolve_options({'activation_sparsity': '8:16'}, None);"
        "print(json.dumps(sorted({'torch', 'vllm', 'transformers'} & {*sys.modules})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == []
