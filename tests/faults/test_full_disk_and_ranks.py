"""Two ranks with their cache folder on a full disk; then one of them is killed.

The disk is a memory file system of a few pages in the server's own mount namespace.
"""

from __future__ import annotations

import shutil
import subprocess

import pytest
from support import tiny
from support.processes import named, outlived, tree
from support.server import serve

pytestmark = pytest.mark.server

# $1: where the cache is. Filled until nothing fits, then what follows is run.
FULL = (
    'mount -t tmpfs -o size=64k tmpfs "$1" && { cat /dev/zero > "$1/rest"; shift; '
    'exec "$@"; }'
)
NAMESPACE = ("unshare", "--map-root-user", "--mount")


@pytest.fixture(scope="module")
def full_disk(tmp_path_factory):
    """Return a folder and the command that runs a program where it is a full disk."""
    folder = tmp_path_factory.mktemp("full")
    prefix = (*NAMESPACE, "sh", "-c", FULL, "sh", str(folder))
    write = ("sh", "-c", 'echo text 2>&1 > "$0/file"', str(folder))
    if shutil.which("unshare") is None:
        pytest.skip("no unshare (util-linux), so no full disk can be made")
    tried = subprocess.run([*prefix, *write], capture_output=True, text=True)
    said = tried.stdout + tried.stderr
    if "No space left" not in said:
        pytest.skip(f"this user cannot mount in a namespace of its own: {said}")
    return folder, prefix


@pytest.fixture(scope="module")
def server(full_disk, tmp_path_factory):
    folder, prefix = full_disk
    model = tiny.build("llama", tmp_path_factory.mktemp("models") / "llama")
    with serve(
        str(model),
        *("--activation-sparsity", "8:16", "--tensor-parallel-size", "2"),
        prefix=prefix,
        NMSPARSE_CACHE=str(folder),
        VLLM_CPU_OMP_THREADS_BIND="0|1",
    ) as running:
        yield running


def test_a_full_disk_costs_one_warning(server):
    client = server.client()
    done = client.completions.create(prompt="abcde", max_tokens=4, model="m")
    assert done.usage.completion_tokens == 4
    report = server.get("/sparsity").json()
    assert {layer["backend"] for layer in report["layers"]} == {"cpu"}
    lines = server.log.read_text().splitlines()
    # The ranks share a table, and the first one speaks.
    (warning,) = [x for x in lines if "not written: No space left on device" in x]
    assert "WARNING" in warning
    assert "dispatch-" in warning
    assert not any("Traceback" in x for x in lines)


def test_a_killed_worker_ends_the_server(server):
    """The other worker, the engine and the API server must notice."""
    processes = tree(server)
    first, _ = named(server, "Worker")
    first.kill()
    assert server.process.wait(60) == 1
    assert outlived(processes, 10) == []
    assert "error: the engine died" in server.log.read_text()
