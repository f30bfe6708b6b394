from __future__ import annotations

import json
import subprocess
import sys

import pytest

from nmsparse.sidecar import SIDECAR_NAME, read_sidecar
from offline_prune.cli import main


def test_annotate_in_place(model_dir, capsys):
    assert main(["annotate", str(model_dir), "--pattern", "8:16"]) == 0
    assert read_sidecar(model_dir).phase == "decode"
    assert "8:16 activation sparsity" in capsys.readouterr().out


@pytest.mark.parametrize("flag", ["--output", "-o"])
def test_annotate_a_copy(model_dir, tmp_path, flag):
    output = tmp_path / "annotated"
    arguments = ["--pattern", "2:4", "--phase", "both", flag, str(output)]
    assert main(["annotate", str(model_dir), *arguments]) == 0
    assert read_sidecar(output).phase == "both"
    assert not (model_dir / SIDECAR_NAME).exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["annotate", "MODEL", "--pattern", "17:16"], "pattern 17:16 is invalid"),
        (["annotate", "MODEL", "--pattern", "half"], "'half' is not understood"),
        (["annotate", "MODEL"], "--pattern: Field required"),
        (
            ["annotate", "MODEL", "--pattern", "8:16", "--phase", "dec"],
            "--phase: Input should be 'decode', 'prefill' or 'both'",
        ),
        (["annotate", "no/where", "--pattern", "8:16"], "no/where does not exist"),
        (["embedded-model"], "--output: Field required"),
        (["embedded-model", "-o", "MODEL"], "is no earlier conversion"),
        (["embedded-model", "-o", "x", "--dtype", "int8"], "--dtype: Input should be"),
        ([], "No sub-command given"),
    ],
)
def test_user_errors_exit_with_2_and_no_traceback(
    model_dir, tmp_path, monkeypatch, capsys, arguments, message
):
    monkeypatch.chdir(tmp_path)
    arguments = [str(model_dir) if word == "MODEL" else word for word in arguments]

    assert main(arguments) == 2

    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""


@pytest.mark.parametrize("arguments", [["prune"], ["annotate", "m", "--patern", "2:4"]])
def test_unknown_words_exit_with_2_and_usage(capsys, arguments):
    with pytest.raises(SystemExit) as exit_info:
        main(arguments)
    assert exit_info.value.code == 2
    assert "usage: offline-prune" in capsys.readouterr().err


def test_bugs_keep_their_traceback(model_dir, monkeypatch):
    def broken(*_args, **_options):
        raise ZeroDivisionError

    monkeypatch.setattr("offline_prune.annotation.write_sidecar", broken)
    with pytest.raises(ZeroDivisionError):
        main(["annotate", str(model_dir), "--pattern", "8:16"])


def test_environment_variables_are_not_options(model_dir, monkeypatch):
    monkeypatch.setenv("ANNOTATE", json.dumps({"pattern": "2:4"}))
    monkeypatch.setenv("PATTERN", "2:4")
    assert main(["annotate", str(model_dir)]) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--help"], ["annotate", "embedded-model", "self-describing|describe"]),
        (["annotate", "--help"], ["--pattern", "{decode,prefill,both}", "8:16"]),
        (["embedded-model", "--help"], ["--output", "{bfloat16,float16,float32}"]),
    ],
)
def test_help_needs_neither_torch_nor_transformers(arguments, words):
    program = (
        "import sys\n"
        "from offline_prune.cli import main\n"
        "try:\n"
        f"    main({arguments!r})\n"
        "finally:\n"
        "    heavy = {'torch', 'transformers', 'vllm'} & set(sys.modules)\n"
        "    sys.stderr.write(f'heavy={sorted(heavy)}')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stderr == "heavy=[]"
    for word in words:
        assert any(option in done.stdout for option in word.split("|"))
