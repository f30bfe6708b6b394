"""Policies beside the dense model: the right tokens, and the definitions by hand."""

from __future__ import annotations

import json

import pytest
import torch
from support import zoo
from transformers import AutoModelForCausalLM

from nmsparse import SparsityConfig, write_sidecar
from offline_prune import InputError, prune, read_results
from offline_prune.cli import main
from offline_prune.evaluation.online import POLICIES, continuations, online_result
from offline_prune.evaluation.policies import Forced, View, compare
from offline_prune.evaluation.windows import windows_of
from offline_prune.online.emulation import attach

ROWS = zoo.windows(3, 16)
CONFIG = SparsityConfig.uniform("8:16", mitigation=("var",))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = zoo.build("llama", tmp_path_factory.mktemp("m") / "model", dtype="float32")
    write_sidecar(made, CONFIG)
    return made


@pytest.fixture
def model(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def logprobs(model, row):
    with torch.inference_mode():
        return model(torch.tensor([row])).logits[0].log_softmax(-1)


@pytest.mark.parametrize("decode_only", [False, True])
def test_numbers_are_those_of_the_definitions(model, decode_only):
    lengths = (8, 5, 12)
    sequences = [
        Forced(torch.tensor(row), n) for row, n in zip(ROWS, lengths, strict=True)
    ]
    emulation = attach(model, CONFIG)
    dense = View(model, lambda _: emulation.off())
    sparse = View(model, lambda n: emulation.using(phase="decode", prompt_len=n))
    found = compare(
        dense, {"decode": sparse}, sequences=sequences, decode_only=decode_only
    )
    every, late, kl, same, before = [], [], [], [], []
    for row, n in zip(ROWS, lengths, strict=True):
        with emulation.off():
            a = logprobs(model, row)
        with emulation.using(phase="decode", prompt_len=n):
            b = logprobs(model, row)
        picked = b[range(15), row[1:]]
        every.append(picked)
        late.append(picked[n:])
        kl.append((a.exp() * (a - b)).sum(-1)[n:15])
        same.append((a.argmax(-1) == b.argmax(-1))[n:15])
        before.append((a - b)[:n].abs().max())
    # The prompt is dense, so what it predicts is the dense model's, up to the order of
    # additions: a product of fewer rows may round another way.
    assert max(before) < 1e-4
    one = found["decode"]
    if decode_only:
        assert one.perplexity is None
    else:
        assert one.perplexity == pytest.approx(torch.cat(every).mean().neg().exp())
        assert one.tokens == 45
    assert one.decode_perplexity == pytest.approx(torch.cat(late).mean().neg().exp())
    assert one.kl == pytest.approx(torch.cat(kl).mean().item(), rel=1e-4)
    assert one.kl > 0.1
    assert one.top1_agreement == pytest.approx(torch.cat(same).float().mean().item())
    assert one.decode_tokens == 7 + 10 + 3
    assert (found["dense"].kl, found["dense"].top1_agreement) == (0, 1)
    emulation.detach()


def test_a_prompt_without_continuation_is_refused(model):
    with pytest.raises(InputError, match="no prediction beyond a prompt"):
        compare(View(model), {}, sequences=[Forced(torch.tensor(ROWS[0]), 15)])


def test_continuations_are_the_greedy_text_of_the_model(model):
    with attach(model, CONFIG) as emulation:
        made = {}
        for name, within in (
            ("dense", lambda _: emulation.off()),
            ("both", lambda _: emulation.using(phase="both")),
        ):
            prompts = [torch.tensor(row[:8]) for row in ROWS]
            made[name] = continuations(View(model, within), prompts, max_new_tokens=6)
            assert [x.prompt_len for x in made[name]] == [8, 8, 8]
            for one, prompt in zip(made[name], prompts, strict=True):
                assert torch.equal(one.ids[:8], prompt)
                with within(8):
                    likeliest = logprobs(model, one.ids.tolist()).argmax(-1)
                assert torch.equal(likeliest[7:-1], one.ids[8:])
    assert any(
        not torch.equal(a.ids, b.ids)
        for a, b in zip(made["dense"], made["both"], strict=True)
    )


def test_policies_side_by_side(model, folder):
    windows = windows_of([x for row in ROWS for x in row], None, seq_len=16)
    with attach(model, CONFIG) as emulation:
        found = online_result(
            model,
            emulation,
            windows=windows,
            text="ids",
            policies=POLICIES,
            continuation_tokens=6,
        )
    by_name = {x.policy: x for x in found.policies}
    assert list(by_name) == ["dense", *POLICIES]
    assert (found.reference, found.prompt_len) == ("same weights", 8)
    assert found.generated_tokens == 3 * 5
    assert (by_name["dense"].kl, by_name["dense"].generated_kl) == (0, 0)
    assert all(by_name[name].kl > 0 for name in POLICIES)
    # Each policy treats other tokens.
    assert len({x.perplexity for x in found.policies}) == 5
    assert len({x.generated_kl for x in found.policies}) == 5


def words(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("some words to be judged by, and a few more of them. " * 20)
    return text


def test_eval_emulates_the_sidecar(tmp_path, folder, capsys):
    command = ["eval", str(folder), "--text", str(words(tmp_path))]
    command += ["--seq-len", "32", "--windows", "3", "--continuation-tokens", "4"]
    assert main([*command, "--phases"]) == 0, capsys.readouterr()
    lines = capsys.readouterr().out.splitlines()
    assert "decode from token 16 on; dense is the same weights" in lines[0]
    named = [line.split(":")[0].strip() for line in lines[1:]]
    assert named == ["dense", *POLICIES]
    assert main([*command, "--phase", "decode"]) == 0
    one = capsys.readouterr().out.splitlines()
    # One policy alone gives the same numbers as among others.
    assert one[1:] == [lines[1], lines[1 + named.index("decode")]]
    assert main([*command, "--no-online"]) == 0
    plain = capsys.readouterr().out
    dense = lines[1].split("perplexity ")[1].split(",")[0]
    assert plain.startswith(f"perplexity {dense} on text.txt")


def test_eval_refuses_what_would_measure_nothing(tmp_path, folder, capsys):
    text = ["--text", str(words(tmp_path)), "--seq-len", "32"]
    assert main(["eval", str(folder), *text, "--no-online", "--phases"]) == 2
    assert "a phase is given, but online sparsity is off" in capsys.readouterr().err
    bare = zoo.build("llama", tmp_path / "bare")
    assert main(["eval", str(bare), *text, "--phase", "both"]) == 2
    assert "whose vllm_sparse_config.json has activation" in capsys.readouterr().err
    tasks = ["--tasks", "piqa", "--phase", "decode"]
    assert main(["eval", str(folder), *tasks]) == 2
    assert "Tasks with phase decode" in capsys.readouterr().err
    short = ["--text", str(words(tmp_path)), "--seq-len", "3"]
    assert main(["eval", str(folder), *short]) == 2
    assert "windows of 3 tokens" in capsys.readouterr().err


def test_a_pruned_folder_records_both(tmp_path, capsys):
    rows = zoo.windows()
    source = zoo.build("llama", tmp_path / "model")
    done = prune(
        source,
        output=tmp_path / "pruned",
        sparsity=0.5,
        calibration=rows,
        num_samples=len(rows),
        seq_len=32,
        report=False,
    )
    sidecar = done.folder / "vllm_sparse_config.json"
    data = json.loads(sidecar.read_text())
    for group in data["groups"].values():
        group["activation"] = {"pattern": "8:16"}
    sidecar.write_text(json.dumps(data))
    command = ["eval", str(done.folder), "--text", str(words(tmp_path))]
    command += ["--seq-len", "32", "--windows", "2", "--dense", str(source)]
    assert main(command) == 0, capsys.readouterr()
    (found,) = read_results(done.folder).evaluation
    assert found.kind == "online"
    assert found.reference == "dense model"
    assert [x.policy for x in found.policies] == ["dense", "both"]
    assert "Online sparsity on text.txt" in (done.folder / "report.md").read_text()
    # Weights alone are another measurement, kept beside it.
    assert main([*command, "--no-online"]) == 0
    kinds = {x.kind for x in read_results(done.folder).evaluation}
    assert kinds == {"online", "perplexity", "fidelity"}
