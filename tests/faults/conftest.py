from __future__ import annotations

import pytest
from support import tiny
from support.pruned import prune as prune_by_hand

from offline_prune import pack, prune


@pytest.fixture(scope="session")
def long_model(tmp_path_factory):
    """Return a tiny model that takes 16,384 tokens."""
    folder = tmp_path_factory.mktemp("long") / "llama"
    return tiny.build("llama", folder, max_position_embeddings=16384)


@pytest.fixture(scope="session")
def packed(tmp_path_factory):
    """Return a packed folder with one layer. Copy it before damaging it."""
    root = tmp_path_factory.mktemp("packed")
    dense = tiny.build("llama", root / "dense", num_hidden_layers=1)
    pruned = prune_by_hand(dense, root / "pruned", "2:4")
    return pack(pruned, output=root / "packed").folder


@pytest.fixture(scope="session")
def saved_packed(tmp_path_factory):
    """Return what a pruning run saved packed, with its hashes."""
    root = tmp_path_factory.mktemp("run")
    dense = tiny.build("llama", root / "dense", num_hidden_layers=1)
    output = root / "packed"
    prune(dense, output=output, scorer="magnitude", sparsity=0.5, format="bitmask")
    return output


@pytest.fixture
def serve(monkeypatch, capsys):
    """Return ``vllm-sparse serve`` up to the engine: status and error output."""
    # What the command sets is taken back after the test.
    monkeypatch.setenv("VLLM_PLUGINS", "vllm_sparse")
    monkeypatch.setenv("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    from vllm.entrypoints.cli.serve import ServeSubcommand

    from vllm_sparse.cli.serve import serve

    def started(args):
        raise AssertionError("the engine was about to start")

    monkeypatch.setattr(ServeSubcommand, "cmd", staticmethod(started))

    def run(*arguments):
        capsys.readouterr()
        status = serve([str(argument) for argument in arguments])
        return status, capsys.readouterr().err

    return run
