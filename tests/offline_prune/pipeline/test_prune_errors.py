"""What cannot be pruned is refused before any work, and nothing is left behind."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from support import zoo

from offline_prune import InputError, prune
from offline_prune.cli import main
from offline_prune.commands.run import Run
from offline_prune.compensation.energy import Energy
from offline_prune.config import PruneConfig, make_config
from offline_prune.packing import save
from offline_prune.pipeline import assemble
from offline_prune.pipeline.methods import Methods
from offline_prune.pipeline.store import Store
from offline_prune.verification.verify import verify

ROWS = zoo.windows()
TEXT = {"calibration": ROWS, "num_samples": len(ROWS), "seq_len": 32, "report": False}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return zoo.build("llama", tmp_path_factory.mktemp("zoo") / "dense", shard="60KB")


@pytest.fixture
def source(model, tmp_path):
    """Return a copy that a test may damage."""
    return shutil.copytree(model, tmp_path / "source")


def refused(match, source, **options):
    output = source.parent / "out"
    before = sorted(source.parent.iterdir())
    with pytest.raises(InputError, match=match):
        prune(source, output=output, **options)
    assert sorted(source.parent.iterdir()) == before


def test_nan_weight(source):
    path = sorted(source.glob("*.safetensors"))[1]
    tensors = load_file(path)
    name = next(iter(tensors))
    tensors[name].view(-1)[3] = float("nan")
    save_file(tensors, path, metadata={"format": "pt"})
    refused(f"{name} holds 1 NaN or infinite", source, sparsity=0.5, **TEXT)


def test_corrupt_shard(source):
    path = sorted(source.glob("*.safetensors"))[1]
    path.write_bytes(path.read_bytes()[:-7])
    refused(f"{path.name} cannot be read", source, sparsity=0.5, **TEXT)


def test_missing_shard(source):
    path = sorted(source.glob("*.safetensors"))[1]
    path.unlink()
    refused(path.name, source, sparsity=0.5, **TEXT)


def test_missing_tokenizer(source, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("some words " * 200)
    for path in (*source.glob("tokenizer*"), *source.glob("special*")):
        path.unlink()
    refused(
        "has no tokenizer",
        source,
        sparsity=0.5,
        calibration=str(text),
        num_samples=1,
        seq_len=32,
        report=False,
    )


def test_text_shorter_than_a_window(source, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("short")
    refused(
        "(?s)text.txt.*64",
        source,
        sparsity=0.5,
        calibration=text,
        num_samples=1,
        seq_len=64,
        report=False,
    )


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"sparsity": 1.2}, "sparsity"),
        ({"sparsity": -0.1}, "sparsity"),
        ({}, "exactly one of pattern and sparsity"),
        ({"sparsity": 0.5, "pattern": "2:4"}, "exactly one of pattern and sparsity"),
        ({"sparsity": 0.5, "scorer": "wnda"}, "Did you mean: wanda"),
        ({"sparsity": 0.5, "allocator": "own"}, "Did you mean: owl"),
        ({"sparsity": 0.5, "scorer_options": {"alpa": 1}, "scorer": "cvr"}, "alpha"),
        ({"pattern": "4:2"}, "4:2"),
        ({"pattern": "50%"}, "no N:M pattern"),
        ({"pattern": "2:4", "allocator": "owl"}, "mixed: true"),
        ({"pattern": "2:4", "channels": "ogas"}, "every row"),
        ({"sparsity": 0.5, "permutation": True}, "needs a pattern"),
        ({"pattern": "3:7"}, "not a multiple of m=7"),
        ({"sparsity": 0.5, "ignore": ["re:.*"]}, "No layer of the decoder blocks"),
        ({"sparsity": 0.5, "recipe": "wanda-5"}, "wanda-50"),
        ({"sparsity": 0.5, "targets": ["re:.*up_prj"]}, "up_prj' matches no layer"),
        ({"sparsity": 0.5, "device": "gpu"}, "Device 'gpu' cannot be used"),
    ],
)
def test_options(source, options, match):
    refused(match, source, **{**TEXT, **options})


def test_unknown_model(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        prune(tmp_path / "nothing", output=tmp_path / "out", sparsity=0.5)


def test_existing_output_and_output_in_the_source(source):
    taken = source.parent / "taken"
    taken.mkdir()
    (taken / "file").write_text("mine")
    with pytest.raises(InputError, match="exists and is not empty"):
        prune(source, output=taken, sparsity=0.5, **TEXT)
    assert (taken / "file").read_text() == "mine"
    with pytest.raises(InputError, match="lies in it"):
        prune(source, output=source / "out", sparsity=0.5, **TEXT)


def test_no_room_is_seen_before_the_work(source, monkeypatch):
    usage = shutil.disk_usage(source)
    monkeypatch.setattr(
        assemble.shutil, "disk_usage", lambda place: usage._replace(free=10)
    )
    refused("No room to write", source, sparsity=0.5, **TEXT)


@pytest.mark.parametrize("format", ["dense", "bitmask"])
def test_a_disk_that_fills_up_loses_nothing(source, monkeypatch, format):
    real = save.save_file
    whole = len(list(source.glob("*.safetensors")))
    calls = []

    def full(tensors, path, metadata=None):
        calls.append(path)
        if len(calls) == (2 if format == "dense" else whole + 2):
            # What safetensors raises, which is no OSError.
            raise SafetensorError(
                "Error while serializing: I/O error: No space left on device "
                "(os error 28)"
            )
        real(tensors, path, metadata=metadata)

    output = source.parent / "out"
    with monkeypatch.context() as patch:
        patch.setattr(save, "save_file", full)
        with pytest.raises(InputError, match="Finished blocks are kept"):
            prune(source, output=output, sparsity=0.5, format=format, **TEXT)
    assert not output.exists()
    assert len(list(source.parent.glob(".out.work/block-*.bin"))) == 3
    prune(source, output=output, sparsity=0.5, format=format, **TEXT)
    assert (output / "config.json").exists()


def test_activations_that_overflow_are_named(source):
    path = next(p for p in source.glob("*.safetensors") if "norm" in str(load_file(p)))
    for path in source.glob("*.safetensors"):
        tensors = load_file(path)
        for name in tensors:
            if name == "model.layers.1.mlp.up_proj.weight":
                tensors[name].fill_(3e38)
                save_file(tensors, path, metadata={"format": "pt"})
    refused("NaN or infinite", source, sparsity=0.5, **TEXT)


def test_recipes_and_flags_agree(source, tmp_path, capsys):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "scorer: ria\nsparsity: 0.6\nscorer_options: {exponent: 0.5}\n"
        "calibration: {source: synthetic, num_samples: 2, seq_len: 32}\n"
    )
    config = make_config(recipe, {"pattern": "2:4"}, calibration={"seed": 3})
    assert (config.scorer, config.pattern, config.sparsity) == ("ria", "2:4", None)
    assert config.calibration.seed == 3
    assert config.calibration.num_samples == 2
    assert PruneConfig.parse(config.model_dump(mode="json"), source="x") == config
    code = main(
        [
            *("run", str(source), "-o", str(tmp_path / "out")),
            *("--recipe", str(recipe), "--scorer", "magnitude"),
        ]
    )
    assert code == 0, capsys.readouterr()
    found = load_file(next((tmp_path / "out").glob("*.safetensors")))
    assert found
    assert torch.isfinite(next(iter(found.values())).float()).all()
    assert main(["verify", str(tmp_path / "out")]) == 0
    assert main(["run", str(source), "-o", str(tmp_path / "b"), "--sparsity", "2"]) == 2
    assert "sparsity" in capsys.readouterr().err


def test_permutation_without_room_is_refused(tmp_path):
    source = zoo.build("opt", tmp_path / "model")
    refused("OPTForCausalLM has no channels", source, pattern="2:4", permutation=True)


def configuration(monkeypatch, *flags):
    """Return the configuration that flags of ``run`` make."""
    made = []
    monkeypatch.setattr(Run, "cli_cmd", lambda run: made.append(run._config()))
    assert main(["run", "model", "-o", "out", *flags]) == 0
    return made[0]


def test_flags_of_zero_and_no_replace_a_recipe(monkeypatch, tmp_path):
    assert configuration(monkeypatch, "--sparsity", "0").sparsity == 0.0
    recipe = "ria-2of4-permuted"
    assert configuration(monkeypatch, "--recipe", recipe).permutation
    flags = ("--recipe", recipe, "--no-permutation")
    assert not configuration(monkeypatch, *flags).permutation
    mine = tmp_path / "mine.yaml"
    mine.write_text("sparsity: 0.6\nlower: 0.2\nseed: 3\n")
    found = configuration(monkeypatch, "--recipe", str(mine))
    assert (found.lower, found.seed, found.calibration.seed) == (0.2, 3, 3)
    found = configuration(
        monkeypatch, "--recipe", str(mine), "--lower", "0", "--seed", "0"
    )
    assert (found.lower, found.seed, found.calibration.seed) == (0.0, 0, 0)


def test_one_seed_is_for_everything_random():
    fields = {"sparsity": 0.5, "correction": "absorption", "seed": 7}
    config = make_config(None, fields)
    assert (config.calibration.seed, Methods.of(config).correction.seed) == (7, 7)
    own = make_config(
        None, {**fields, "correction_options": {"seed": 1}}, calibration={"seed": 2}
    )
    assert (own.calibration.seed, Methods.of(own).correction.seed) == (2, 1)


def test_ctrl_c_gives_no_traceback(monkeypatch, capsys):
    def stop(run):
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "cli_cmd", stop)
    assert main(["run", "model", "-o", "out", "--sparsity", "0.5"]) == 130
    assert "goes on when its command is repeated" in capsys.readouterr().err


def test_a_budget_too_small_to_pack_is_refused_before_the_work(source):
    match = "the sparsest layer will have 30% zeros. Expected at least 40%"
    refused(match, source, sparsity=0.3, format="bitmask", **TEXT)


def test_what_was_put_at_the_output_meanwhile_stays(source, monkeypatch):
    output = source.parent / "out"
    real = Store.save

    def beside(self, index, tensors, record):
        output.mkdir(exist_ok=True)
        (output / "file").write_text("mine")
        real(self, index, tensors, record)

    monkeypatch.setattr(Store, "save", beside)
    with pytest.raises(InputError, match="exists and is not empty"):
        prune(source, output=output, sparsity=0.5, **TEXT)
    assert [path.name for path in output.iterdir()] == ["file"]


def test_dense_weights_in_other_forms_are_not_copied(source):
    shutil.copy(next(source.glob("*.safetensors")), source / "consolidated.safetensors")
    (source / "pytorch_model.bin").write_bytes(b"dense")
    output = source.parent / "out"
    prune(source, output=output, sparsity=0.5, **TEXT)
    names = {path.name for path in output.iterdir()}
    assert not names & {"consolidated.safetensors", "pytorch_model.bin"}
    assert "tokenizer.json" in names
    assert verify(output).ok


def test_weights_that_overflow_their_type_are_refused(tmp_path, monkeypatch):
    source = zoo.build("llama", tmp_path / "model", dtype="float16")
    # Finite in float32, in which weights are changed; not in float16.
    monkeypatch.setattr(Energy, "apply", lambda *args: args[2] * 1e6)
    refused(
        r"layers.0.self_attn.q_proj: magnitude gave weights too large for float16",
        source,
        sparsity=0.5,
        scorer="magnitude",
        compensation=["energy"],
        report=False,
    )


def test_a_singular_hessian_names_the_layer(source):
    refused(
        "layers.0.*: Hessian of .* raise percdamp",
        source,
        sparsity=0.5,
        scorer="sparsegpt",
        scorer_options={"percdamp": 0.0},
        calibration=[row[:3] for row in ROWS[:1]],
        num_samples=1,
        seq_len=3,
        report=False,
    )
