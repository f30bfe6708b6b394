"""The script that runs all on a GPU machine, where every program is pretended."""

from __future__ import annotations

import os
import subprocess

import pytest

FAKE_PYTHON = """#!/bin/sh
case "$*" in
  -c*) exit 0 ;;
  "- "*) for name in "$@"; do [ "$name" != "$FAKE_LACKS" ] || exit 1; done; exit 0 ;;
  -) echo "python 0"; exit 0 ;;
esac
echo "$* interpret=${TRITON_INTERPRET:-unset} env=${FROM_ENV:-none}" >> "$FAKE_LOG"
case "$*" in
  *${FAKE_FAILS:-nothing}*) echo "it is broken"; exit 3 ;;
  *${FAKE_SLEEPS:-nothing}*) exec sleep 60 ;;
  *gpu_kernels.py*--results*) echo '{}' > "$FAKE_OUT/gpu_kernels.jsonl" ;;
esac
"""


def run(command, **environment):
    done = subprocess.run(
        [str(part) for part in command],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def script(repo_root, tmp_path):
    """Return a function that runs the script where all programs are pretended."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in {
        "python3": FAKE_PYTHON,
        "nvidia-smi": "#!/bin/sh\necho a GPU\n",
        "compute-sanitizer": '#!/bin/sh\nwhile [ "$1" != python3 ]; do shift; done\n'
        'exec "$@"\n',
    }.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    out, log = tmp_path / "out", tmp_path / "log"

    def call(*arguments, **environment):
        found = run(
            ["bash", repo_root / "benchmarks" / "gpu_all.sh", *arguments, out],
            **{"PATH": f"{programs}:{os.environ['PATH']}", "FAKE_LOG": str(log)},
            **{"FAKE_OUT": str(out), "TRITON_INTERPRET": "1", "PYTHON": "python3"},
            **environment,
        )
        lines = log.read_text().splitlines() if log.exists() else []
        return (*found, lines)

    return call


def test_syntax_and_help(repo_root):
    path = repo_root / "benchmarks" / "gpu_all.sh"
    assert os.access(path, os.X_OK)
    assert run(["bash", "-n", path])[0] == 0
    code, out, _ = run([path, "--help"])
    assert code == 0
    for word in ("--only PART", "GPU_ENV", "gpu-results", "kernels-more"):
        assert word in out


@pytest.mark.parametrize(
    "arguments",
    [["--none"], ["--only"], ["--only", "none"], ["--seconds", "soon"]],
)
def test_wrong_arguments_are_refused(script, arguments):
    code, _, err, log = script(*arguments)
    assert code == 2
    assert "Expected" in err
    assert log == []


def test_all_parts_run_in_order(script, tmp_path):
    env = tmp_path / "env.sh"
    env.write_text("export FROM_ENV=yes\n")
    code, out, err, log = script("--commit", "abc", GPU_ENV=str(env))
    assert code == 0, out + err
    parts = [
        "--check",
        "-m gpu",
        "-m not gpu",
        "--check --shapes",
        "--tokens 1 --seconds",
    ]
    parts += ["--batches 1 64", "--tokens 2 4 8 16 512 2048", "--batches 2 4"]
    parts += ["pruned 50%", "--model llama-1b", "gpu_roofline.py --rows"]
    assert len(log) == len(parts)
    for line, part in zip(log, parts, strict=True):
        assert part in line
        assert line.endswith("interpret=unset env=yes")
    timed = [x for x in log if "gpu_decode" in x or "gpu_kernels.py --results" in x]
    assert len(timed) == 6
    assert all("--commit abc" in line for line in timed)
    summary = (tmp_path / "out" / "summary.txt").read_text()
    assert summary.count(" ok") == 10
    assert "a GPU" in (tmp_path / "out" / "environment.log").read_text()


def test_a_part_that_fails_does_not_stop_the_others(script, tmp_path):
    code, out, _, log = script(FAKE_FAILS="gpu_decode.py")
    assert code == 1
    assert "gpu_roofline.py" in log[-1]
    assert "it is broken" in out
    summary = (tmp_path / "out" / "summary.txt").read_text()
    assert summary.count("failed: status 3, see decode") == 2
    assert summary.count(" ok") == 8


def test_what_is_not_installed_is_skipped(script, tmp_path):
    code, _, _, log = script(FAKE_LACKS="vllm")
    assert code == 0
    assert not [line for line in log if "gpu_decode" in line]
    summary = (tmp_path / "out" / "summary.txt").read_text()
    assert summary.count("skipped: vllm is not installed") == 2


def test_only_some_parts(script, tmp_path):
    code, _, _, log = script("--only", "kernels", "--only", "memcheck")
    assert code == 0
    assert len(log) == 2
    assert "--check" in log[0]
    summary = (tmp_path / "out" / "summary.txt").read_text()
    assert len(summary.splitlines()) == 3


def test_a_part_ends_when_time_is_up(script, tmp_path):
    code, _, _, log = script(
        *("--seconds", "6", "--only", "kernels", "--only", "decode"),
        FAKE_SLEEPS="gpu_kernels.py",
    )
    assert code == 1
    assert len(log) == 1
    summary = (tmp_path / "out" / "summary.txt").read_text()
    assert "failed: stopped after 6 s" in summary
    assert "skipped: no time left, run it with --only decode" in summary


def test_an_environment_that_is_not_there_is_refused(script, tmp_path):
    code, _, err, log = script(GPU_ENV=str(tmp_path / "none"))
    assert (code, log) == (2, [])
    assert "Expected a script that can be read" in err
