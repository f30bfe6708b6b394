from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    """Return a folder that looks like a Hugging Face model."""
    folder = tmp_path / "model"
    (folder / "nested").mkdir(parents=True)
    (folder / "config.json").write_text('{ "model_type" : "llama" }\n')
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 33)
    (folder / "tokenizer.json").write_bytes('{"é": "\r\n"}'.encode())
    (folder / "nested" / "chat_template.jinja").write_text("{{ messages }}")
    return folder
