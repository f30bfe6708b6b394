"""``SparsityConfig``: reading, writing, refusing, and its fingerprint."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nmsparse.config import SCHEMA_VERSION, ConfigError, Phase, SparsityConfig
from nmsparse.pattern import NMPattern, Unstructured
from nmsparse.targets import DEFAULT_TARGETS

FULL = {
    "schema_version": 2,
    "phase": "both",
    "dense_first_token": True,
    "groups": {
        "mlp": {
            "targets": ["re:.*mlp.*", "Linear"],
            "activation": {
                "pattern": "8:16",
                "criterion": "wina",
                "mitigation": ["l_pts", "var"],
            },
            "weight": {"pattern": "2:4", "sparsity": 0.5},
        },
        "attention": {
            "targets": ["re:.*attn.*"],
            "activation": {
                "pattern": "50%",
                "criterion": "magnitude",
                "mitigation": [],
            },
            "weight": None,
        },
    },
    "ignore": ["lm_head"],
    "parameters": {"file": "p.safetensors", "sha256": "0123456789abcdef" * 4},
    "provenance": {"tool": "offline-prune"},
}


def changed(path, value):
    """Return FULL with the value at a dotted path replaced."""
    data = json.loads(json.dumps(FULL))
    *parents, last = path.split(".")
    place = data
    for key in parents:
        place = place[key]
    place[last] = value
    return data


def parse(data):
    return SparsityConfig.parse(data, source="file.json")


def test_json_round_trips():
    config = parse(FULL)
    assert json.loads(config.to_json()) == FULL
    assert parse(json.loads(config.to_json())) == config
    assert config.groups["mlp"].activation.pattern == NMPattern(8, 16)
    assert config.groups["attention"].activation.pattern == Unstructured(0.5)


PATTERNS = st.one_of(
    st.tuples(st.integers(1, 64), st.integers(1, 64)).map(
        lambda pair: NMPattern(min(pair), max(pair))
    ),
    st.floats(0.0, 1.0, exclude_max=True).map(Unstructured),
)


@given(PATTERNS, st.sampled_from(Phase), st.dictionaries(st.text(), st.text()))
@settings(deadline=None)
def test_any_configuration_round_trips(pattern, phase, provenance):
    config = SparsityConfig(
        phase=phase,
        groups={"g": {"targets": ["Linear"], "activation": {"pattern": pattern}}},
        provenance=provenance,
    )
    again = parse(json.loads(config.to_json()))
    assert again == config
    assert again.fingerprint == config.fingerprint


def test_defaults():
    config = parse({})
    assert config.schema_version == SCHEMA_VERSION
    assert config.phase is Phase.DECODE
    assert config.groups == {}
    assert config.ignore == ()

    assert config.dense_first_token is False
    assert config.parameters is None


def test_version_1_is_read_and_written_as_today():
    old = {
        "schema_version": 1,
        "groups": {"g": {"targets": ["Linear"], "activation": {"pattern": "8:16"}}},
    }
    config = parse(old)
    assert config.groups["g"].activation.mitigation == ()
    assert json.loads(config.to_json())["schema_version"] == SCHEMA_VERSION == 2
    again = parse(json.loads(config.to_json()))
    assert again == config == parse(old | {"schema_version": 2})
    assert again.fingerprint == config.fingerprint


def test_version_3_is_refused():
    with pytest.raises(ConfigError, match=r"schema_version 3 is newer .* at most 2"):
        parse({"schema_version": 3})


@pytest.mark.parametrize(
    ("criterion", "mitigation", "needed"),
    [
        ("magnitude", [], False),
        ("wina", ["d_pts", "var"], False),
        ("second_order", [], True),
        ("clact", ["var", "ls"], True),
    ],
)
def test_what_needs_parameters(criterion, mitigation, needed):
    data = {"pattern": "8:16", "criterion": criterion, "mitigation": mitigation}
    groups = {"g": {"targets": ["Linear"], "activation": data}}
    assert parse({"groups": groups}).groups["g"].activation.needs_parameters is needed


def test_it_is_frozen():
    config = parse(FULL)
    with pytest.raises(ValueError, match="frozen"):
        config.phase = Phase.DECODE


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("grups", {}, r"file\.json: Unknown key 'grups'\. Did you mean: groups\?"),
        (
            "groups.mlp.target",
            [],
            r"file\.json: groups\.mlp: Unknown key 'target'\. Did you mean: targets\?",
        ),
        (
            "groups.mlp.activation.patern",
            "2:4",
            r"groups\.mlp\.activation: Unknown key 'patern'\. Did you mean: pattern\?",
        ),
        (
            "groups.mlp.activation.pattern",
            "9:8",
            r"groups\.mlp\.activation\.pattern: Sparsity pattern 9:8 is invalid",
        ),
        (
            "groups.mlp.activation.criterion",
            "magnitud",
            r"criterion: Unknown criterion 'magnitud'\. Did you mean: magnitude\?",
        ),
        (
            "groups.mlp.activation.mitigation",
            ["l_pts", "vra"],
            r"activation\.mitigation: Unknown mitigation 'vra'\. Did you mean: var\?",
        ),
        (
            "groups.mlp.activation.mitigation",
            ["d_pts", "var", "l_pts"],
            r"mitigation: Mitigations d_pts and l_pts both take the slot shift\. Exp",
        ),
        ("groups.mlp.activation.mitigation", "var", r"mitigation: Input should be a"),
        ("dense_first_token", "yes", r"dense_first_token: Input should be a valid boo"),
        ("parameters.file", "../p", r"parameters\.file: File name '\.\./p' is invalid"),
        ("parameters.file", "", r"parameters\.file: File name '' is invalid"),
        ("parameters.file", "a\\b", r"parameters\.file: .*without directories"),
        ("parameters.file", "..", r"parameters\.file: .*without directories"),
        ("parameters.sha256", "12", r"parameters\.sha256: Hash '12' is invalid\. Exp"),
        (
            "parameters.sha",
            "12",
            r"parameters: Unknown key 'sha'\. Did you mean: sha256",
        ),
        ("groups.mlp.targets", [], r"groups\.mlp\.targets: .*at least 1"),
        ("groups.mlp.targets", ["re:("], r"groups\.mlp\.targets: Target 're:\('"),
        ("groups.mlp.weight.sparsity", 1.5, r"weight\.sparsity: .*less than or equal"),
        ("ignore", [""], r"file\.json: ignore: A target is empty"),
        ("phase", "prefil", r"phase: Input should be 'decode', 'prefill' or 'both'"),
        (
            "schema_version",
            SCHEMA_VERSION + 1,
            rf"schema_version {SCHEMA_VERSION + 1} is newer .* Expected at most "
            rf"{SCHEMA_VERSION}: upgrade vllm-sparse",
        ),
        ("schema_version", "1", "schema_version: .*valid integer"),
        ("schema_version", 2.0, "schema_version: .*valid integer"),
        ("schema_version", 0, r"schema_version 0 is invalid\. Expected 1 or more"),
        ("schema_version", "one", "schema_version: .*valid integer"),
    ],
)
def test_errors_say_where_and_what(path, value, message):
    with pytest.raises(ConfigError, match=message):
        parse(changed(path, value))


def test_a_newer_schema_is_reported_before_its_unknown_keys():
    data = {"schema_version": SCHEMA_VERSION + 1, "keys_of_tomorrow": 1}
    with pytest.raises(ConfigError, match="is newer") as caught:
        parse(data)
    assert "Unknown key" not in str(caught.value)


def test_every_problem_gets_a_line():
    data = changed("phase", "x") | {"ignore": [""]}
    with pytest.raises(ConfigError) as caught:
        parse(data)
    lines = str(caught.value).splitlines()
    assert [line.split(": ")[:2] for line in lines] == [
        ["file.json", "phase"],
        ["file.json", "ignore"],
    ]


@pytest.mark.parametrize("data", [[], "8:16", None, 3])
def test_no_object(data):
    with pytest.raises(ConfigError, match=r"file\.json: Input should be a valid dict"):
        parse(data)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("phase", "decode"),
        ("ignore", []),
        ("groups.mlp.targets", ["Linear"]),
        ("groups.mlp.activation.pattern", "4:16"),
        ("groups.mlp.activation.criterion", "magnitude"),
        ("groups.mlp.activation.mitigation", []),
        ("groups.mlp.activation.mitigation", ["s_pts", "var"]),
        ("dense_first_token", False),
        ("parameters", None),
        ("parameters.sha256", "f" * 64),
        ("groups.mlp.activation", None),
        ("groups.attention.activation.pattern", "51%"),
        ("groups", {}),
        # Of two groups that match equally well the first decides.
        ("groups", dict(reversed(FULL["groups"].items()))),
    ],
)
def test_fingerprint_changes_with_what_changes_results(path, value):
    assert parse(changed(path, value)).fingerprint != parse(FULL).fingerprint


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("provenance", {}),
        ("provenance.tool", "another"),
        ("groups.mlp.activation.pattern", "8of16"),
    ],
)
def test_fingerprint_ignores_what_does_not(path, value):
    assert parse(changed(path, value)).fingerprint == parse(FULL).fingerprint


def test_fingerprint_is_stable_text():
    assert parse(FULL).fingerprint == parse(FULL).fingerprint
    assert len(parse(FULL).fingerprint) == 16
    assert int(parse(FULL).fingerprint, 16) >= 0


@pytest.mark.parametrize("pattern", ["8:16", NMPattern(8, 16)], ids=["text", "object"])
def test_uniform(pattern):
    config = SparsityConfig.uniform(pattern, phase="prefill")
    assert config.phase is Phase.PREFILL
    (group,) = config.groups.values()
    assert group.targets == DEFAULT_TARGETS
    assert group.activation.pattern == NMPattern(8, 16)
    assert group.activation.criterion == "magnitude"
    assert group.weight is None
    assert config.ignore == ()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pattern": "16:8"}, "sparsity options: .*16:8 is invalid"),
        ({"pattern": "8:16", "phase": "never"}, "sparsity options: phase: "),
        ({"pattern": "8:16", "criterion": "mag"}, "Unknown criterion 'mag'"),
        ({"pattern": "8:16", "mitigation": ("va",)}, "Unknown mitigation 'va'"),
    ],
)
def test_uniform_refuses(arguments, message):
    with pytest.raises(ConfigError, match=message):
        SparsityConfig.uniform(**arguments)
