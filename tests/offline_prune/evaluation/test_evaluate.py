"""``offline-prune eval``: both models on one text, recorded in the folder."""

from __future__ import annotations

import pytest
from support import zoo

from offline_prune import prune, read_results
from offline_prune.cli import main
from offline_prune.evaluation import evaluate


@pytest.mark.parametrize("format", ["dense", "bitmask"])
def test_eval_measures_and_records(tmp_path, monkeypatch, capsys, format):
    rows = zoo.windows()
    source = zoo.build("llama", tmp_path / "model")
    done = prune(
        source,
        output=tmp_path / "pruned",
        sparsity=0.5,
        calibration=rows,
        num_samples=len(rows),
        seq_len=32,
        format=format,
        report=False,
    )
    text = tmp_path / "text.txt"
    text.write_text("some words to be judged by, and a few more of them. " * 20)
    asked = []
    monkeypatch.setattr(evaluate, "locate", lambda x: asked.append(str(x)) or source)
    # An id of the Hub is looked for as "run" does.
    command = ["eval", str(done.folder), "--text", str(text), "--seq-len", "32"]
    assert main([*command, "--dense", "org/name"]) == 0, capsys.readouterr()
    assert asked == ["org/name"]
    assert "perplexity" in capsys.readouterr().out
    found = read_results(done.folder).evaluation
    assert [type(one).__name__ for one in found] == [
        "PerplexityResult",
        "FidelityResult",
    ]
    perplexity, fidelity = found
    assert perplexity.pruned != perplexity.dense
    assert fidelity.kl > 0
    assert (done.folder / "report.md").is_file()
    # Measured again, it replaces what it was.
    assert main([*command, "--dense", "org/name"]) == 0
    assert read_results(done.folder).evaluation == found
    assert main(["eval", str(done.folder)]) == 2
    assert "Nothing to measure" in capsys.readouterr().err
