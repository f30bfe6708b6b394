"""``calibrate`` from end to end: what is written, what is refused, what is resumed."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch
from support.zoo import build, windows
from transformers import AutoModelForCausalLM

from nmsparse.config import ConfigError, SparsityConfig
from nmsparse.parameters import read_parameters
from nmsparse.pattern import parse_pattern
from nmsparse.sidecar import read_sidecar
from offline_prune.cli import main
from offline_prune.config import make_config
from offline_prune.errors import InputError
from offline_prune.online import calibrate as calibrate_module
from offline_prune.online.calibrate import calibrate
from offline_prune.online.config import CalibrateConfig, make_calibrate_config
from offline_prune.online.emulation import attach
from offline_prune.online.results import read_calibration
from offline_prune.pipeline.run import run_prune
from offline_prune.recipes import ONLINE, recipe_names

TEXT = {"seq_len": 32, "num_samples": 6}
SETTINGS = {
    "rows": {"budget": 0.5},
    "groups": {"budget": 0.6, "group": "16", "balanced": True},
    "fours": {
        "budget": 0.55,
        "group": "4",
        "criterion": "second_order",
        "mitigation": ["d_pts", "var", "output_shift"],
    },
    "block": {"budget": 0.4, "allocator": "block"},
    "owl": {"budget": 0.5, "allocator": "owl", "correction": "absorption"},
    "dlp": {"budget": 0.5, "allocator": "dlp", "group": "16"},
    "even": {"budget": 0.5, "allocator": "uniform"},
    "fitted": {
        "pattern": "2:4",
        "criterion": "wina",
        "mitigation": ["l_pts", "ls", "r_sparse"],
        "fit": {"rank": 2},
    },
}


def config(name, **changes):
    fields = {**SETTINGS[name], "calibration": TEXT, **changes}
    return CalibrateConfig.parse(fields, source="test")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return build("llama", tmp_path_factory.mktemp("models") / "llama")


def digests(folder):
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if path.is_file()
    }


@pytest.mark.parametrize("name", SETTINGS)
def test_a_folder_that_serves_itself(name, model, tmp_path):
    done = calibrate(model, config(name), output=tmp_path / "out", texts=windows(8))
    before, after = digests(model), digests(done.folder)
    # Every file of the model is there, byte for byte.
    assert before.items() <= after.items()
    sidecar = read_sidecar(done.folder)
    assert sidecar == done.config
    record = read_calibration(done.folder)
    asked = SETTINGS[name]
    if "budget" in asked:
        assert record.read_bytes <= asked["budget"] * record.dense_bytes
        # Not left lying: less than the dearest step of a layer.
        step = max(x.dense_bytes for x in record.layers) / 4
        assert record.read_bytes > asked["budget"] * record.dense_bytes - step
    for layer in record.layers:
        if layer.pattern is not None and not asked.get("mitigation"):
            kept, group = parse_pattern(layer.pattern).group(layer.in_features)
            share = kept / group * layer.dense_bytes
            extra = 4 * layer.in_features if asked.get("balanced") else 0
            assert layer.read_bytes == round(share) + extra
    assert (done.folder / "calibration.md").read_text().count("| model.layers.") >= 12
    tokens = torch.tensor(windows(1))
    dense = AutoModelForCausalLM.from_pretrained(done.folder, dtype=torch.float32)
    with torch.no_grad():
        want = dense(tokens).logits
        parameters = (
            read_parameters(done.folder, sidecar.parameters)
            if sidecar.parameters
            else None
        )
        with attach(dense, sidecar, parameters) as emulation:
            assert len(emulation.names) == sum(
                x.pattern is not None for x in record.layers
            )
            sparse = dense(tokens).logits
        assert not torch.equal(sparse, want)
        assert torch.equal(dense(tokens).logits, want)


def test_the_same_run_gives_the_same_folder(model, tmp_path):
    outs = [
        calibrate(model, config("fours"), output=tmp_path / x, texts=windows(8)).folder
        for x in ("a", "b")
    ]
    first, second = (digests(out) for out in outs)
    for name in ("calibration.json", "calibration.md"):  # seconds differ
        del first[name], second[name]
    assert first == second


def test_a_run_that_was_stopped_goes_on(model, tmp_path, monkeypatch):
    whole = calibrate(model, config("fours"), output=tmp_path / "a", texts=windows(8))

    def fail(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(calibrate_module, "fit_blocks", fail)
        with pytest.raises(KeyboardInterrupt):
            calibrate(model, config("fours"), output=tmp_path / "b", texts=windows(8))
        # Nothing half-written.
        assert not (tmp_path / "b").exists()
    with monkeypatch.context() as patch:
        # The plan is not measured again.
        patch.setattr(calibrate_module, "make_plan", fail)
        again = calibrate(
            model, config("fours"), output=tmp_path / "b", texts=windows(8)
        )
    assert again.config == whole.config
    assert not list(tmp_path.glob(".b*"))


def test_other_settings_are_not_mixed_with_what_is_left(model, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(calibrate_module, "fit_blocks", fail)
        with pytest.raises(KeyboardInterrupt):
            calibrate(model, config("fours"), output=tmp_path / "b", texts=windows(8))
    with pytest.raises(InputError, match=r"other settings .*--restart"):
        calibrate(
            model, config("fours", budget=0.7), output=tmp_path / "b", texts=windows(8)
        )
    done = calibrate(
        model,
        config("fours", budget=0.7),
        output=tmp_path / "b",
        texts=windows(8),
        restart=True,
    )
    assert done.record.read_share <= 0.7


def test_a_full_disk_leaves_nothing(model, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("offline_prune.online.folder.write_calibration", fail)
    with pytest.raises(InputError, match=r"(?i)space"):
        calibrate(model, config("rows"), output=tmp_path / "b", texts=windows(8))
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "exactly one of pattern and budget"),
        ({"pattern": "8:16", "budget": 0.5}, "exactly one of pattern and budget"),
        ({"budget": 1.2}, "less than 1"),
        ({"budget": 0.5, "group": "7"}, "Expected row, 4, 8, 16, 32"),
        ({"budget": 0.5, "allocator": "fnal"}, "final"),
        ({"budget": 0.5, "criterion": "wnia"}, "wina"),
        ({"budget": 0.5, "mitigation": ["vra"]}, "var"),
        ({"budget": 0.5, "mitigation": ["d_pts", "s_pts"]}, "shift"),
        ({"budget": 0.5, "balanced": True}, "a row is one group"),
        ({"budget": 0.5, "correction": "absorption"}, "allocator final has none"),
        ({"budget": 0.5, "group": "4", "lower": 5}, "above 4"),
        ({"pattern": "8of7"}, "8:7 is invalid"),
        ({"budgett": 0.5}, "budget"),
    ],
)
def test_settings_that_make_no_sense(fields, message):
    with pytest.raises(InputError, match=message):
        CalibrateConfig.parse(fields, source="test")


def test_what_does_not_fit_the_model_is_refused_at_once(model, tmp_path):
    def run(**fields):
        calibrate(
            model, config("rows", **fields), output=tmp_path / "o", texts=windows(8)
        )

    with pytest.raises(ConfigError, match="unknown target"):
        run(targets=["model.layers.0.mlp.up_prj"])
    with pytest.raises(InputError, match="at least one"):
        run(ignore=["re:.*"])
    with pytest.raises(InputError, match="learned tensors included"):
        run(budget=0.05, mitigation=["r_sparse"])
    with pytest.raises(ConfigError, match="not a multiple"):
        calibrate(
            model,
            CalibrateConfig.parse(
                {"pattern": "1:7", "calibration": TEXT}, source="test"
            ),
            output=tmp_path / "o",
            texts=windows(8),
        )
    assert not (tmp_path / "o").exists()
    with pytest.raises(InputError, match="lies in it"):
        calibrate(model, config("rows"), output=model / "o", texts=windows(8))


def test_only_targeted_layers_are_sparse_and_paid_for(model, tmp_path):
    done = calibrate(
        model,
        config("rows", targets=[r"re:.*\.down_proj$"], lower=3),
        output=tmp_path / "o",
        texts=windows(8),
    )
    assert {x.name.rpartition(".")[2] for x in done.record.layers} == {"down_proj"}
    targets = [t for g in done.config.groups.values() for t in g.targets]
    assert all(target.endswith("down_proj") for target in targets)


def test_parts_of_a_fused_layer_get_one_rule(model, tmp_path):
    done = calibrate(model, config("fours"), output=tmp_path / "o", texts=windows(8))
    sidecar: SparsityConfig = done.config
    rule = {t: g.activation for g in sidecar.groups.values() for t in g.targets}
    tensors = read_parameters(done.folder, sidecar.parameters)
    for parts in (("q_proj", "k_proj", "v_proj"),):
        names = [f"model.layers.1.self_attn.{part}" for part in parts]
        assert len({rule.get(name) for name in names}) == 1
        if names[0] in tensors:
            for name in names[1:]:
                assert torch.equal(tensors[names[0]]["factor"], tensors[name]["factor"])


def test_a_pruned_model_keeps_what_is_known_of_its_weights(model, tmp_path):
    text = {"seq_len": 32, "num_samples": 4}
    pruning = make_config(None, {"pattern": "2:4"}, calibration=text)
    run_prune(model, pruning, output=tmp_path / "pruned", texts=windows(8))
    done = calibrate(
        tmp_path / "pruned",
        config("rows"),
        output=tmp_path / "both",
        texts=windows(8),
    )
    rules = list(done.config.groups.values())
    assert all(str(rule.weight.pattern) == "2:4" for rule in rules)
    assert sum(rule.activation is not None for rule in rules) > 1


@pytest.mark.parametrize("recipe", recipe_names(ONLINE))
def test_shipped_recipes_are_valid(recipe):
    found = make_calibrate_config(recipe, {})
    assert found.phase.value == "decode"
    # A pattern beside a recipe replaces its budget.
    assert (
        make_calibrate_config(recipe, {"pattern": "8:16", "allocator": "final"}).budget
        is None
    )


def test_the_command(model, tmp_path, capsys):
    rows = [{"input_ids": row} for row in windows(8)]
    text = tmp_path / "rows.jsonl"
    text.write_text("\n".join(json.dumps(row) for row in rows))
    command = ["calibrate", str(model), "--output", str(tmp_path / "out")]
    assert main([*command, "--budget", "0.5", "--calibration", str(text)]) == 2
    assert "at least one window" in capsys.readouterr().err
    short = ["--seq-len", "32", "--num-samples", "4", "--phase", "both"]
    assert main([*command, "--budget", "0.5", "--calibration", str(text), *short]) == 0
    assert "A sparse token reads" in capsys.readouterr().out
    assert read_sidecar(tmp_path / "out").phase.value == "both"
    assert main([*command, "--budget", "0.5", "--calibration", str(text), *short]) == 2
    assert "not empty" in capsys.readouterr().err
