"""How layers are executed: the choices, their defaults, and every wrong value."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, fields

import pytest

from nmsparse.config import ConfigError
from vllm_sparse.execution import (
    CANARY,
    CHOICES,
    DEFAULT,
    EXECUTION_KEYS,
    Execution,
)

WHERE = "additional_config['vllm_sparse']"


def test_defaults():
    assert Execution.parse({}, WHERE) == DEFAULT == Execution()
    assert asdict(DEFAULT) == {
        "kernels": "auto",
        "dense_fallback": "keep",
        "sparse_weights": "auto",
        "dense_weights": "off",
        "sparse_steps": "auto",
        "shared_lists": "off",
        "kernel_timing": "off",
        "canary": 0.0,
    }


def test_every_field_has_its_choices():
    assert tuple(field.name for field in fields(Execution)) == EXECUTION_KEYS
    assert (*CHOICES, CANARY) == EXECUTION_KEYS
    for name, choices in CHOICES.items():
        assert getattr(DEFAULT, name) in choices
        assert len(set(choices)) == len(choices) >= 2


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, c in CHOICES.items() for value in c]
)
def test_every_choice(name, value):
    found = Execution.parse({name: value}, WHERE)
    assert getattr(found, name) == value
    others = [other for other in CHOICES if other != name]
    assert all(getattr(found, x) == getattr(DEFAULT, x) for x in others)


@pytest.mark.parametrize(
    ("steps", "on_cpu", "on_gpu"),
    [("auto", False, True), ("all", False, False), ("fast", True, True)],
)
def test_what_leaves_steps_dense(steps, on_cpu, on_gpu):
    execution = Execution(sparse_steps=steps)
    assert execution.leaves_steps_dense("cpu") is on_cpu
    assert execution.leaves_steps_dense("cuda") is on_gpu


def test_a_gpu_packs_only_what_it_measures():
    assert Execution().may_pack_on_gpu
    assert not Execution(kernels="on").may_pack_on_gpu
    assert not Execution(sparse_weights="off").may_pack_on_gpu


def test_keys_of_others_are_ignored():
    options = {"activation_sparsity": "8:16", "kernels": "off", "phase": "both"}
    assert Execution.parse(options, WHERE) == Execution(kernels="off")
    assert options.keys() == {"activation_sparsity", "kernels", "phase"}


@pytest.mark.parametrize("value", ["ON", "of", "", True, None, 1, ["on"], {}])
@pytest.mark.parametrize("name", CHOICES)
def test_a_wrong_value_names_the_choices(name, value):
    with pytest.raises(ConfigError) as error:
        Execution.parse({name: value}, WHERE)
    text = str(error.value)
    assert text.startswith(f"{WHERE}.{name}: Unknown value '{value}'.")
    assert any(choice in text for choice in CHOICES[name])


@pytest.mark.parametrize("share", [1, 1.0, 0.001])
def test_a_share_of_steps(share):
    found = Execution.parse({"canary": share}, WHERE)
    assert found == Execution(canary=float(share))


@pytest.mark.parametrize(
    "value", [0, -0.1, 1.01, float("nan"), float("inf"), True, None, "0.1", [0.1]]
)
def test_no_share_of_steps(value):
    with pytest.raises(ConfigError) as error:
        Execution.parse({"canary": value}, WHERE)
    text = str(error.value)
    assert text.startswith(f"{WHERE}.canary is {value!r}. Expected the share")
    assert text.endswith("for example 0.001; leave it out for none.")


def test_choices_are_known_without_torch_and_vllm():
    code = (
        "import json, sys; import vllm_sparse.execution;"
        "print(json.dumps(sorted({'torch', 'vllm', 'transformers'} & {*sys.modules})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == []
