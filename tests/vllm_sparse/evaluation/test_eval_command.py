"""``vllm-sparse eval``: every mistake is told before an engine starts."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from support import tiny

from vllm_sparse.cli import main
from vllm_sparse.cli.eval import describe
from vllm_sparse.evaluation import evaluate


@pytest.fixture(autouse=True)
def no_engine(monkeypatch):
    def started(plan):
        raise AssertionError("an engine was started")

    monkeypatch.setattr(evaluate, "evaluate", started)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny.build("llama", tmp_path_factory.mktemp("eval") / "model"))


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("a few words to be judged by. " * 20)
    return str(path)


SPARSE = ("--activation-sparsity", "8:16")
MISTAKES = {
    "nothing": ((), "Nothing to measure. Expected a text or tasks"),
    "missing text": (("--text", "/no/such.txt", *SPARSE), "such.txt does not exist"),
    "short text": (
        ("--text", "TEXT", "--seq-len", "900", *SPARSE),
        "found 580 tokens. Expected at least one window of 900",
    ),
    "tiny windows": (
        ("--text", "TEXT", "--seq-len", "3", *SPARSE),
        "--seq-len is 3. Expected 4 or more",
    ),
    "no windows": (
        ("--text", "TEXT", "--windows", "0", *SPARSE),
        "--windows is 0. Expected 1 or more",
    ),
    "one token": (
        ("--text", "TEXT", "--continuation-tokens", "1", *SPARSE),
        "--continuation-tokens is 1. Expected 0, or 2",
    ),
    "no sparsity": (("--text", "TEXT"), "has no sidecar, and no sparsity is given"),
    "pattern": (
        ("--text", "TEXT", "--activation-sparsity", "16:8"),
        "Sparsity pattern 16:8 is invalid",
    ),
    "two sources": (
        ("--text", "TEXT", *SPARSE, "--sparsity-config", "x.json"),
        "are both given. Expected one",
    ),
    "tasks at decode": (
        ("--tasks", "piqa", "--phase", "decode", *SPARSE),
        "--tasks with --phase decode",
    ),
    "output": (
        ("--text", "TEXT", *SPARSE, "--output", "/no/such/folder/r.json"),
        "/no/such/folder does not exist",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes(capsys, model, text, arguments, message):
    given = [text if x == "TEXT" else x for x in arguments]
    assert main(["eval", model, *given]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("vllm-sparse eval: error: ")
    assert message in captured.err


def test_a_model_that_is_not_there(capsys, text):
    assert main(["eval", "/no/such/model", "--text", text, *SPARSE]) == 2
    assert "'/no/such/model' does not exist" in capsys.readouterr().err


def test_tasks_that_are_unknown_or_without_data(capsys, model, tmp_path):
    pytest.importorskip("lm_eval")
    (tmp_path / "data" / "hellaswag").mkdir(parents=True)
    command = ["eval", model, *SPARSE, "--task-data", str(tmp_path / "data"), "--tasks"]
    assert main([*command, "pica"]) == 2
    assert "Unknown task 'pica'. Did you mean: piqa" in capsys.readouterr().err
    assert main([*command, "piqa"]) == 2
    error = capsys.readouterr().err
    assert "no piqa/*.jsonl. Expected a folder for every task" in error
    assert "found hellaswag" in error


def test_task_rows_of_another_form_are_refused(capsys, model, tmp_path):
    pytest.importorskip("lm_eval")
    folder = tmp_path / "hellaswag"
    folder.mkdir()
    row = {"query": "A", "endings": ["b", "c"], "label": 0}
    (folder / "val.jsonl").write_text(json.dumps(row))
    command = ["eval", model, *SPARSE, "--task-data", str(tmp_path), "--tasks"]
    assert main([*command, "hellaswag"]) == 2
    error = capsys.readouterr().err
    assert f"Task data {folder}: the rows have no field" in error
    assert "Expected the rows of the original data set" in error


BOOLQ = {"question": "is it", "passage": "It is.", "idx": 0}
ODD_ROWS = {
    # The form of BoolQ itself, not of SuperGLUE, which lm-eval reads.
    "an answer in another field": (BOOLQ | {"answer": True}, "its answer is 'label'"),
    "a hidden answer": (BOOLQ | {"label": -1}, "its answer is -1, which is none of 2"),
    "an answer too far": (BOOLQ | {"label": 2}, "cannot read the rows as boolq (Index"),
    "no passage": ({"question": "is it", "label": 1}, "'passage' is undefined"),
}


@pytest.mark.parametrize(("row", "problem"), ODD_ROWS.values(), ids=ODD_ROWS)
def test_rows_that_would_score_nothing_are_refused(
    capsys, model, tmp_path, row, problem
):
    pytest.importorskip("lm_eval")
    (tmp_path / "boolq").mkdir()
    (tmp_path / "boolq" / "val.jsonl").write_text(json.dumps(row))
    command = ["eval", model, *SPARSE, "--task-data", str(tmp_path), "--tasks", "boolq"]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert f"Task data {tmp_path / 'boolq'}: " in error
    assert problem in error
    assert "Expected the rows of the original data set" in error


def test_a_later_row_is_refused_too(capsys, model, tmp_path):
    pytest.importorskip("lm_eval")
    (tmp_path / "boolq").mkdir()
    rows = [BOOLQ | {"label": 1}, BOOLQ | {"label": 0}, BOOLQ | {"label": 7}]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "boolq" / "val.jsonl").write_text(text)
    command = ["eval", model, *SPARSE, "--task-data", str(tmp_path), "--tasks", "boolq"]
    assert main(command) == 2
    assert "row 3 (idx, label, passage, question)" in capsys.readouterr().err


GOOD_ROWS = {
    "boolq": BOOLQ | {"label": 1},
    "piqa": {"goal": "A", "sol1": "b", "sol2": "c", "label": 0},
    "arc_easy": {
        "question": "A",
        "choices": {"text": ["b", "c"], "label": ["A", "B"]},
        "answerKey": "B",
    },
    "winogrande": {"sentence": "A _ b", "option1": "c", "option2": "d", "answer": "2"},
    "hellaswag": {
        "ctx_a": "A",
        "ctx_b": "b",
        "endings": ["c", "d", "e", "f"],
        "label": "3",
        "activity_label": "x",
    },
    "openbookqa": {
        "question_stem": "A",
        "choices": {"text": ["b", "c"], "label": ["A", "B"]},
        "answerKey": "A",
    },
}


def test_rows_of_the_original_data_sets_are_taken(tmp_path):
    pytest.importorskip("lm_eval")
    from vllm_sparse.evaluation.tasks import load_tasks

    for name, row in GOOD_ROWS.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "val.jsonl").write_text(json.dumps(row))
    assert len(load_tasks(list(GOOD_ROWS), tmp_path)) == len(GOOD_ROWS)


def test_without_lm_eval_the_extra_is_named(capsys, model, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    assert main(["eval", model, *SPARSE, "--tasks", "piqa"]) == 2
    assert 'pip install "vllm-sparse[eval]"' in capsys.readouterr().err


def test_engine_arguments_are_an_object(capsys, model):
    with pytest.raises(SystemExit):
        main(["eval", model, "--engine-args", "[1]"])
    assert "--engine-args: '[1]' is no JSON object" in capsys.readouterr().err


def test_a_mistake_imports_neither_vllm_nor_torch():
    code = (
        "import json, sys; from vllm_sparse.cli import main;"
        "status = main(['eval', 'nobody/nothing']);"
        "heavy = {'torch', 'vllm', 'transformers'} & set(sys.modules);"
        "print(json.dumps([status, sorted(heavy)]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert json.loads(done.stdout) == [2, []]


def test_modes(monkeypatch, model, text, tmp_path, capsys):
    plans = []

    def run(plan):
        plans.append(plan)
        yield {"mode": "dense", "perplexity": 2.5, "tasks": {"piqa": {"acc": 0.5}}}
        yield {"mode": "decode", "decode_top1_agreement": 0.25}

    monkeypatch.setattr(evaluate, "evaluate", run)
    output = tmp_path / "results.json"
    command = ["eval", model, "--text", text, "--seq-len", "64", "--windows", "2"]
    command += [*SPARSE, "--mitigation", "d_pts,var", "--kernels", "off", "--dense"]
    command += ["--phase", "decode", "both", "--output", str(output)]
    assert main(command) == 0, capsys.readouterr().err
    (plan,) = plans
    assert [mode.name for mode in plan.modes] == ["dense", "decode", "both"]
    assert plan.modes[0].options == {"enabled": False}
    assert plan.modes[1].options == {
        "activation_sparsity": "8:16",
        "mitigation": "d_pts,var",
        "kernels": "off",
        "phase": "decode",
    }
    assert [len(ids) for ids in plan.windows.ids] == [64, 64]
    written = json.loads(output.read_text())
    assert [mode["mode"] for mode in written["modes"]] == ["dense", "decode"]
    assert written["text"]["prompt_len"] == 32
    assert "  piqa acc 0.5000" in capsys.readouterr().out.splitlines()


def test_lines():
    mode = {"mode": "both", "decode_top1_agreement": 0.25, "decode_tokens": 7}
    assert describe(mode) == [
        "both:",
        "  decode top1 agreement 0.25",
        "  decode tokens 7",
    ]
