"""docs/quickstart.md is run, command by command, with a tiny model in its place.

What the page does not run it says with ``<!-- not run -->`` before the block. The port
is another one, because 8000 may be taken.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from support import tiny
from support.server import serve

pytestmark = pytest.mark.server

BLOCK = re.compile(
    r"(?P<skip><!-- not run -->\n)?^```(?P<language>console|python)\n(?P<code>.*?)^```",
    re.DOTALL | re.MULTILINE,
)
SERVE = "vllm-sparse serve "


@pytest.fixture(scope="module")
def steps(repo_root):
    """Return (language, code) of what the page runs; one step for each command."""
    text = (repo_root / "docs/quickstart.md").read_text(encoding="utf-8")
    found = []
    for block in BLOCK.finditer(text):
        if block["skip"]:
            continue
        if block["language"] == "python":
            found.append(("python", block["code"]))
            continue
        commands = re.split(r"^\$ ", block["code"], flags=re.MULTILINE)[1:]
        found += [("console", command.strip()) for command in commands]
    return found


def test_the_page_works(steps, tmp_path):
    tiny.build("llama", tmp_path / "gemma-3-270m")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    serving = [code for _, code in steps if code.startswith(SERVE)]
    assert len(serving) == 1
    flags = shlex.split(serving[0].replace("\\\n", " "))[3:]
    said = {}
    model = str(tmp_path / "gemma-3-270m")
    with serve(model, *flags, "--served-model-name", "gemma-3-270m") as running:
        for language, code in steps:
            if code.startswith(SERVE):
                continue
            code = code.replace("http://127.0.0.1:8000", running.url)
            command = ["bash", "-euo", "pipefail", "-c", code]
            if language == "python":
                command = [sys.executable, "-c", code]
            done = subprocess.run(
                command,
                cwd=tmp_path,
                env={**os.environ, "PATH": path},
                capture_output=True,
                text=True,
                timeout=300,
                check=False,
            )
            assert done.returncode == 0, (code, done.stdout, done.stderr)
            said[code.replace(running.url, "")] = done.stdout
    text = "\n".join(said.values())
    assert '"choices"' in text
    assert re.search(r'vllm_sparse_zero_elements_total\{kind="down"\} [1-9]', text)
    assert '"active":true' in text.replace(" ", "")
    (python,) = (out for code, out in said.items() if code.startswith("from openai"))
    assert python.strip()
    assert (tmp_path / "gemma-3-270m-8of16/vllm_sparse_config.json").is_file()
    packed = (tmp_path / "gemma-3-270m-packed/config.json").read_text("utf-8")
    assert '"quant_method": "vllm_sparse"' in packed
