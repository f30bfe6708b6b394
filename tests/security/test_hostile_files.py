"""What a hostile model folder tries, and what happens: findings of the fuzzer first."""

from __future__ import annotations

import json
import os
import time

import pytest
import torch
from safetensors.torch import save_file

from nmsparse import expression
from nmsparse.beside import beside, check_link
from nmsparse.config import ConfigError, ParametersFile, SparsityConfig
from nmsparse.json_text import parse_json
from nmsparse.packed_manifest import PackedFormatError, PackedManifest
from nmsparse.parameters import read_parameters
from nmsparse.pattern import parse_pattern
from nmsparse.resolve import Resolver
from nmsparse.sidecar import SIDECAR_NAME, read_config, read_sidecar
from vllm_sparse.options import resolve_options
from vllm_sparse.packed.headers import read_headers

MODULE = "model.layers.0.mlp.up_proj"
GOOD = {"targets": ["Linear"], "activation": {"pattern": "8:16"}}


def sidecar(folder, text):
    (folder / SIDECAR_NAME).write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"schema_version": ' + "9" * 5000 + "}", "digit"),
        ('{"groups": {}, "groups": {}}', "there twice"),
        ('{"schema_version": NaN}', "NaN is no JSON"),
        (
            '{"groups": {"a": {"targets": ["x"], "weight": {"pattern": "2:4", '
            '"sparsity": 1e999}}}}',
            "finite number",
        ),
        ('{"provenance": {"a": "\\ud800"}}', "Unicode|valid string"),
        ('{"groups": {"\\ud800": {"targets": ["x"]}}}', "Unicode"),
        ('{"\\u001b[2J\\nINFO forged": 1}', r"\\x1b\[2J\\nINFO forged"),
        ('{"' + "x" * 100_000 + '": 1}', "100000 characters"),
        (
            '{"groups": {"a": {"targets": ["x"], "activation": {"pattern": [[]]}}}}',
            "list",
        ),
        (
            '{"parameters": {"file": "../../etc/passwd", "sha256": ""}}',
            "without direct",
        ),
        (
            '{"parameters": {"file": "/etc/passwd", "sha256": ""}}',
            "without directories",
        ),
        ('{"parameters": {"file": "a\\u0000b", "sha256": ""}}', "without directories"),
        ('{"phase": "{{7*7}}"}', "phase"),
        ('{"groups": {"a": {"targets": ["re:(?R)"]}}}', "no valid regular expression"),
    ],
)
def test_a_hostile_sidecar_is_refused_in_a_short_message(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        resolve_options(None, sidecar(tmp_path, text))
    assert len(str(caught.value)) < 5000
    assert "\x1b" not in str(caught.value)


def test_a_thousand_problems_are_a_short_message(tmp_path):
    text = json.dumps({"groups": {str(key): {"targets": []} for key in range(1000)}})
    with pytest.raises(ConfigError, match="and 980 more problems"):
        read_sidecar(sidecar(tmp_path, text))


def test_a_sidecar_that_never_ends_is_refused(monkeypatch):
    monkeypatch.setattr("nmsparse.sidecar.MAX_BYTES", 1 << 20)
    from pathlib import Path

    with pytest.raises(ConfigError, match="more than 1 MiB"):
        read_config(Path("/dev/zero"))


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "x" * 5000])
def test_a_path_that_cannot_be_is_an_error_of_ours(name):
    with pytest.raises(ConfigError, match="cannot be read"):
        resolve_options({"config_file": name}, None)
    parameters = {"parameters": {"file": "p.st", "sha256": "0" * 64}}
    found = resolve_options({"config": parameters, "folder": f"/{name}"}, None)
    with pytest.raises(ConfigError, match="Parameters file"):
        read_parameters(found.folder, found.config.parameters)


@pytest.mark.parametrize("code", ["__import__('os').system('x')", "{{7*7}}", "${7*7}"])
def test_text_stays_text(tmp_path, code):
    data = {"provenance": {"method": code}, "groups": {code: GOOD}}
    config = read_sidecar(sidecar(tmp_path, json.dumps(data)))
    assert config.provenance == {"method": code}
    assert list(config.groups) == [code]


@pytest.mark.parametrize(
    "target",
    [
        *("re:(a|a)*$", "re:(a|aa)+$", "re:((a|a)+)+$"),
    ],
)
def test_an_expression_without_end_is_stopped(monkeypatch, target):
    monkeypatch.setattr(expression, "MATCH_S", 0.2)
    config = SparsityConfig.parse(
        {"groups": {"a": {**GOOD, "targets": [target]}}}, source="x"
    )
    start = time.monotonic()
    with pytest.raises(ConfigError, match="takes too long"):
        Resolver(config).resolve(["a" * 200 + "!"])
    assert time.monotonic() - start < 20


def test_many_slow_matches_share_one_budget(monkeypatch):
    monkeypatch.setattr(expression, "BUDGET_S", 0.05)
    monkeypatch.setattr(expression, "_SLOW_S", 0.0)
    monkeypatch.setattr(expression, "_spent", 0.0)

    def many():
        for _ in range(1_000_000):
            expression.matches("a*b", "aaaa")

    with pytest.raises(ConfigError, match="takes too long"):
        many()


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("re:(?:(?:a{999}){999}){999}", "counted repetitions"),
        ("re:a{99999999999999}", "counted repetitions"),
        ("re:" + "(" * 400 + ")" * 400, "nested too deeply"),
        ("re:" + "a" * 2000, "2000 characters"),
        ("re:(?:a){e<=3}", "begins no count"),
        ("re:[", "unterminated"),
        ("x" * 2000, "no name"),
        ("a\nb", "no name"),
    ],
)
def test_an_expression_too_large_is_refused_before_it_is_compiled(target, why):
    with pytest.raises(ConfigError, match=why):
        SparsityConfig.parse({"ignore": [target]}, source="x")


@pytest.mark.parametrize(
    ("target", "name", "found"),
    [
        (r"re:.*\.layers\.[0-9]{1,2}\.mlp\..*", "model.layers.11.mlp.up_proj", True),
        (r"re:model\.layers\.(0|1)\..*", "model.layers.11.mlp.up_proj", False),
        (r"re:^(?!.*lm_head).*_proj$", "model.layers.0.mlp.up_proj", True),
        (r"re:up_proj", "model.up_proj", False),  # from the start, as re.match
        (r"re:a\{b", "a{b", True),
        (r"re:[{]x", "{x", True),
    ],
)
def test_ordinary_expressions_match_as_before(target, name, found):
    config = SparsityConfig.parse(
        {"groups": {"a": {**GOOD, "targets": [target]}}}, source="x"
    )
    assert (Resolver(config).resolve([name]).group is not None) is found


def test_too_many_expressions_are_refused():
    targets = [f"re:layer{number}" for number in range(1001)]
    with pytest.raises(ConfigError, match="1001 targets are regular expressions"):
        SparsityConfig.parse(
            {"groups": {"a": {**GOOD, "targets": targets}}}, source="x"
        )


@pytest.mark.parametrize(
    "text", ["9" * 5000 + ":4", "1" * 2_000_000 + "%", "٨:١٦", ["8:16"]]
)
def test_a_pattern_of_any_size_is_refused_at_once(text):
    with pytest.raises(ValueError, match="not understood") as caught:
        parse_pattern(text)
    assert len(str(caught.value)) < 400


def packed(folder, index):
    save_file({f"{MODULE}.weight_values": torch.ones(1)}, folder / "a.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize(
    "name",
    [
        "../x/a.safetensors",
        "/etc/passwd",
        "..",
        "a/b",
        "a\0b",
        "\ud800",
        "",
        3,
        None,
        [1],
    ],
)
def test_an_index_cannot_name_files_elsewhere(tmp_path, name):
    index = {"weight_map": {"x": name, "y": "a.safetensors"}}
    with pytest.raises(PackedFormatError, match=r"without directories|cannot be read"):
        read_headers(packed(tmp_path, index))


@pytest.mark.parametrize(
    "content", [b"[" * 100_000, b"[]", b"\xff", b'{"weight_map": 1}']
)
def test_a_damaged_index_is_an_error_of_ours(tmp_path, content):
    packed(tmp_path, {})
    (tmp_path / "model.safetensors.index.json").write_bytes(content)
    with pytest.raises(PackedFormatError, match="cannot be read"):
        read_headers(tmp_path)


def test_a_weight_file_that_is_a_pipe_is_refused_not_waited_for(tmp_path):
    folder = packed(tmp_path, {"weight_map": {"x": "pipe"}})
    os.mkfifo(folder / "pipe")
    with pytest.raises(PackedFormatError, match="is no file"):
        read_headers(folder)


@pytest.mark.parametrize("version", [2, "1", True, None, [[]], float("nan"), 10**30])
def test_a_manifest_of_another_version_is_refused(version):
    data = {"quant_method": "vllm_sparse", "format": "bitmask", "version": version}
    with pytest.raises(PackedFormatError, match="version"):
        PackedManifest.parse({**data, "modules": {MODULE: [1, 1]}}, source="x")


def test_control_characters_of_a_module_name_stay_out_of_the_log():
    data = {"quant_method": "vllm_sparse", "format": "bitmask", "version": 1}
    name = "\x1b[2J.up_proj"
    with pytest.raises(PackedFormatError, match=r"\\x1b"):
        PackedManifest.parse({**data, "modules": {name: [1, 1]}}, source="x")


def test_names_stay_in_the_folder_and_are_those_of_files(tmp_path):
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    os.mkfifo(folder / "pipe")
    (folder / "device").symlink_to("/dev/zero")
    (folder / "circle").symlink_to(folder / "circle")
    (folder / "dangling").symlink_to(tmp_path / "gone")
    (folder / "real").write_text("{}")
    (folder / "inside").symlink_to("real")
    for name in ("real", "inside", "missing"):
        assert beside(folder, name) == folder / name
    for name in ("sub", "pipe", "device"):
        with pytest.raises(ValueError, match="is no file"):
            beside(folder, name)
    for name in ("circle", "dangling"):
        with pytest.raises(ValueError, match=r"leads nowhere.*copy the folder again"):
            beside(folder, name)
    for name in ("", ".", "..", "a/b", "a\\b", "a\0b", "\u202ex", "x" * 300):
        with pytest.raises(ValueError, match="without directories"):
            beside(folder, name)
    with pytest.raises(ConfigError, match="is no file"):
        read_parameters(folder, ParametersFile(file="sub", sha256="0" * 64))
    with pytest.raises(ConfigError, match=r"cannot be read.*too long"):
        read_sidecar(tmp_path / ("x" * 5000))


@pytest.mark.parametrize(
    ("target", "message"), [("/dev/zero", "is no file"), ("gone", "leads nowhere")]
)
def test_a_sidecar_that_cannot_be_read_is_not_overlooked(tmp_path, target, message):
    (tmp_path / SIDECAR_NAME).symlink_to(target)
    with pytest.raises(ConfigError, match=message):
        read_sidecar(tmp_path)


def test_the_hub_cache_is_one_folder(tmp_path):
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    blobs = tmp_path / "models--a--b" / "blobs"
    blobs.mkdir()
    (blobs / "4567").write_text("{}")
    (snapshot / SIDECAR_NAME).symlink_to("../../blobs/4567")
    assert read_sidecar(snapshot) == SparsityConfig()
    (tmp_path / "models--c--d").mkdir()
    (tmp_path / "models--c--d" / "x").write_text("")
    (snapshot / "x").symlink_to(tmp_path / "models--c--d" / "x")
    with pytest.raises(ValueError, match=r"outside.*replace the link"):
        check_link(snapshot, snapshot / "x")


def test_json_of_models_may_hold_what_ours_may_not():
    assert parse_json('{"a": Infinity, "a": 1}') == {"a": 1}
    for text in ('{"a": Infinity}', '{"a": 1, "a": 1}'):
        with pytest.raises(ValueError, match=r"no JSON|there twice"):
            parse_json(text, strict=True)
