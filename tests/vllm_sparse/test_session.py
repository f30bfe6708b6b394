"""The session: what it decides about every layer, and which engines it refuses."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from vllm.model_executor.layers.linear import LinearMethodBase

from nmsparse.config import ConfigError, SparsityConfig
from nmsparse.sidecar import write_sidecar
from vllm_sparse import engines
from vllm_sparse import session as module
from vllm_sparse.engines import current_session, find_phases, find_session
from vllm_sparse.method import SparseLinearMethod
from vllm_sparse.options import Found
from vllm_sparse.session import Session

BLOCK = "model.layers.0"


class Model:
    """The class vLLM builds, as far as the session looks at it."""

    packed_modules_mapping = {"in_proj": ["a_proj", "b_proj"]}  # noqa: RUF012


class FakeMethod(LinearMethodBase):
    def create_weights(self, layer, *args, **kwargs):
        pass

    def apply(self, layer, x, bias=None):
        return x


class FakeLinear(torch.nn.Module):
    """A linear layer of vLLM; ``tp`` ranks share K, as in a row-parallel layer."""

    def __init__(self, name, in_features=64, out_features=32, tp=1):
        super().__init__()
        self.prefix = name
        self.input_size = in_features
        self.input_size_per_partition = in_features // tp
        self.output_size = out_features
        self.tp_size = tp
        self.params_dtype = torch.bfloat16
        self.quant_method = FakeMethod()


class SparseRowParallelLinear(FakeLinear):
    pass


@pytest.fixture(autouse=True)
def hooks(monkeypatch):
    """Build sessions without a model and without touching vLLM's runners."""
    installed = []
    monkeypatch.setattr(module, "model_class", lambda config: Model)
    monkeypatch.setattr(
        engines.runner_hooks, "install", lambda *hooks: installed.append(hooks)
    )
    monkeypatch.setattr(engines, "_SESSIONS", {})
    monkeypatch.setattr(engines, "_INACTIVE", {})
    return installed


def engine(additional_config=None, model="nobody/nothing", **parallel):
    """Return the parts of a ``VllmConfig`` that are read."""
    options = {
        "use_ubatching": False,
        "use_sequence_parallel_moe": False,
        "pipeline_parallel_size": 1,
        "worker_cls": "vllm.v1.worker.worker_base.WorkerBase",
    } | parallel
    return SimpleNamespace(
        parallel_config=SimpleNamespace(**options),
        cache_config=SimpleNamespace(
            kv_sharing_fast_prefill=options.pop("fast_prefill", False)
        ),
        scheduler_config=SimpleNamespace(max_num_batched_tokens=32),
        device_config=SimpleNamespace(device="cpu"),
        speculative_config=None,
        model_config=SimpleNamespace(
            model=model, revision=None, enable_sleep_mode=False
        ),
        compilation_config=SimpleNamespace(),
        additional_config={} if additional_config is None else additional_config,
    )


def make_session(config="8:16", **parallel):
    if isinstance(config, str):
        config = SparsityConfig.uniform(config)
    return Session(engine(**parallel), Found(config, "a test", None))


def rules(ignore=(), phase="decode", **groups):
    data = {
        name: {"targets": targets, "activation": pattern and {"pattern": pattern}}
        for name, (pattern, *targets) in groups.items()
    }
    return SparsityConfig.parse(
        {"groups": data, "ignore": list(ignore), "phase": phase}, source="test"
    )


def test_a_targeted_layer_is_wrapped():
    session = make_session()
    layer = SparseRowParallelLinear(f"{BLOCK}.mlp.down_proj")
    inner = layer.quant_method
    session.attach(layer)
    method = layer.quant_method
    assert isinstance(method, SparseLinearMethod)
    assert method.inner is inner
    assert (method.kept, method.group, method.phase) == (8, 16, 2)
    assert method.criterion == "magnitude"
    (state,) = session.layers
    assert state.layer_class == "RowParallelLinear"
    assert (state.in_features, state.out_features) == (64, 32)
    assert str(state.pattern) == "8:16"
    assert state.reason.endswith("product by vLLM's FakeMethod")
    assert layer.vllm_sparse_codes is session.phases.codes
    assert layer.vllm_sparse_counters is state.counters
    assert layer.state_dict() == {}, "weight loading must not look for our buffers"


def test_an_untargeted_layer_is_left_alone():
    session = make_session()
    layer = FakeLinear("lm_head")
    session.attach(FakeLinear(f"{BLOCK}.mlp.up_proj"))
    session.attach(layer)
    assert type(layer.quant_method) is FakeMethod
    assert vars(layer.quant_method) == {}
    assert session.layers[1].backend == "dense"
    assert session.layers[1].pattern is None
    assert session.layers[1].counters is None
    assert session.layers[1].reason.startswith("ignored by ")
    assert not hasattr(layer, "vllm_sparse_codes")


def test_a_group_for_weights_only_leaves_the_activation_dense():
    data = {"groups": {"g": {"targets": ["Linear"], "weight": {"pattern": "2:4"}}}}
    session = make_session(SparsityConfig.parse(data, source="test"))
    layer = FakeLinear(f"{BLOCK}.mlp.up_proj")
    session.attach(layer)
    assert not isinstance(layer.quant_method, SparseLinearMethod)
    assert session.layers[0].weight_pattern == "2:4"
    assert session.layers[0].pattern is None


@pytest.mark.parametrize(
    ("name", "target"),
    [
        (f"{BLOCK}.self_attn.qkv_proj", r"re:.*\.[qkv]_proj$"),
        (f"{BLOCK}.mixer.in_proj", r"re:.*\.[ab]_proj$"),
        (f"{BLOCK}.mlp.down_proj", "RowParallelLinear"),
        (f"{BLOCK}.mlp.down_proj", "Linear"),
    ],
    ids=["fused", "fused by the model", "vLLM's class", "any class"],
)
def test_targets_name_parts_and_classes(name, target):
    class RowParallelLinear(FakeLinear):
        pass

    class SparseRowParallelLinear(RowParallelLinear):
        pass

    session = make_session(rules(g=("2:4", target)))
    layer = SparseRowParallelLinear(name)
    session.attach(layer)
    assert isinstance(layer.quant_method, SparseLinearMethod)


@pytest.mark.parametrize(
    ("phase", "code"), [("both", 0), ("prefill", 1), ("decode", 2)]
)
def test_the_phase_reaches_the_op(phase, code):
    session = make_session(rules(phase=phase, g=("2:4", "Linear")))
    layer = FakeLinear("x")
    session.attach(layer)
    assert layer.quant_method.phase == code


def test_unstructured_takes_the_whole_row_as_one_group():
    session = make_session("75%")
    layer = FakeLinear(f"{BLOCK}.mlp.up_proj")
    session.attach(layer)
    assert (layer.quant_method.kept, layer.quant_method.group) == (16, 64)


@pytest.mark.parametrize(
    ("pattern", "in_features", "tp", "message"),
    [
        (
            "8:16",
            72,
            1,
            r"down_proj: in_features 72 is not a multiple of m=16 \(pattern 8:16\)\. "
            r"Choose an M that divides 72, or add the layer to `ignore`",
        ),
        (
            "32:64",
            64,
            2,
            r"down_proj: in_features 32 \(a shard of 64 over tp=2\) is not a multiple "
            r"of m=64 .*Choose an M that divides 32, another tensor-parallel size",
        ),
        (
            "50%",
            64,
            2,
            r"down_proj: unstructured sparsity 50% needs whole rows, but in_features "
            r"is 32 \(a shard of 64 over tp=2\)\. Choose an N:M pattern",
        ),
    ],
    ids=["size", "shard", "unstructured shard"],
)
def test_a_pattern_that_does_not_fit_names_the_layer(pattern, in_features, tp, message):
    layer = FakeLinear(f"{BLOCK}.mlp.down_proj", in_features, tp=tp)
    with pytest.raises(ConfigError, match=rf"{BLOCK}\.mlp\.{message}"):
        make_session(pattern).attach(layer)


def test_a_shard_that_fits():
    session = make_session("8:16")
    session.attach(FakeLinear(f"{BLOCK}.mlp.down_proj", 64, tp=2))
    assert session.layers[0].in_features == 64
    assert session.layers[0].k_sharded


def load(*layers):
    for layer in layers:
        layer.quant_method.process_weights_after_loading(layer)


@pytest.mark.parametrize("first_is_sparse", [True, False])
def test_unknown_targets_are_found_when_the_model_is_loaded(first_is_sparse):
    targets = ("re:.*up_proj", "no.such.layer")
    session = make_session(rules(["lm_head"], g=("8:16", *targets)))
    layers = [FakeLinear("up_proj"), FakeLinear("lm_head")]
    for layer in layers if first_is_sparse else layers[::-1]:
        session.attach(layer)
    with pytest.raises(ConfigError, match=r"groups\.g: unknown target 'no\.such\.lay"):
        load(*layers)


def test_unknown_targets_are_found_even_if_no_layer_is_sparse():
    session = make_session(rules(g=("8:16", "no.such.layer")))
    layer = FakeLinear("up_proj")
    session.attach(layer)
    with pytest.raises(ConfigError, match="unknown target"):
        load(layer)


def test_a_pipeline_stage_does_not_miss_the_layers_of_others():
    config = rules(g=("8:16", "up_proj", "layer.of.another.stage"))
    session = make_session(config, pipeline_parallel_size=2)
    layer = FakeLinear("up_proj")
    session.attach(layer)
    load(layer)


def test_layers_built_after_loading_belong_to_the_draft_model():
    session = make_session()
    first, draft = (FakeLinear(f"{BLOCK}.mlp.up_proj") for _ in range(2))
    session.attach(first)
    load(first)
    session.attach(draft)
    assert not isinstance(draft.quant_method, SparseLinearMethod)
    assert session.layers[1].reason == "draft model of speculative decoding"
    assert session.layers[1].name == f"draft.{BLOCK}.mlp.up_proj"


@pytest.mark.parametrize(
    ("parallel", "message"),
    [
        ({"use_ubatching": True}, r"not work with micro-batching \(--enable-dbo"),
        ({"use_sequence_parallel_moe": True}, "with sequence-parallel MoE"),
        ({"fast_prefill": True}, "with --kv-sharing-fast-prefill"),
        ({"prefill_context_parallel_size": 2}, "with prefill context parallelism"),
    ],
)
def test_features_that_hide_tokens_are_refused(parallel, message):
    with pytest.raises(ConfigError, match=rf"{message}.*Turn one off"):
        make_session(**parallel)


def test_the_buffer_holds_a_padded_step():
    assert make_session().phases.codes.numel() >= 32 + 1024


@pytest.fixture
def building(monkeypatch):
    """Return a function that makes an engine the one being built."""

    def build(config):
        monkeypatch.setattr(engines, "get_current_vllm_config_or_none", lambda: config)
        return config

    return build


SPARSE = {"vllm_sparse": {"activation_sparsity": "8:16"}}


@pytest.mark.parametrize(
    "config",
    [
        None,
        SimpleNamespace(model_config=None),
        engine(),
        engine({"another_plugin": {}}),
        engine({"vllm_sparse": {"enabled": False}}),
    ],
    ids=["no engine", "no model", "no options", "other options", "disabled"],
)
def test_no_session(building, config, hooks):
    building(config)
    assert current_session() is None
    assert current_session() is None
    if config is not None and config.model_config is not None:
        assert find_session(config) is None
        assert find_phases(config) is None
    assert hooks == []


def test_one_session_an_engine(building, hooks):
    first, second = engine(dict(SPARSE)), engine(dict(SPARSE))
    building(first)
    session = current_session()
    assert current_session() is session
    assert hooks == [(find_phases, engines.prepare_session)]
    building(second)
    assert current_session() is not session
    assert find_session(first) is session
    assert find_phases(first) is session.phases
    assert find_session(engine()) is None


def test_the_compile_cache_key_gets_the_fingerprint(building):
    config = building(engine(dict(SPARSE)))
    session = current_session()
    assert config.additional_config["vllm_sparse"] == {
        "activation_sparsity": "8:16",
        "fingerprint": session.config.fingerprint,
    }


def test_a_sidecar_is_enough(building, tmp_path):
    path = write_sidecar(tmp_path, SparsityConfig.uniform("2:4"))
    config = building(engine(model=str(tmp_path)))
    session = current_session()
    assert session.source == f"sidecar {path}"
    fingerprint = {"fingerprint": session.config.fingerprint}
    assert config.additional_config == {"vllm_sparse": fingerprint}


def test_a_copied_configuration_is_the_same_engine(building):
    """Nested text models and drafts are built under copies of the configuration."""
    config = building(engine(dict(SPARSE)))
    session = current_session()
    other = copy.copy(config)
    other.model_config = SimpleNamespace(model="nested", revision=None)
    other.additional_config = dict(SPARSE)
    building(other)
    assert current_session() is session
    assert find_session(other) is find_session(config) is session
    # Whichever copy is compiled, its cache key says what is baked in.
    signed = other.additional_config["vllm_sparse"]["fingerprint"]
    assert signed == session.config.fingerprint
    assert SPARSE == {"vllm_sparse": {"activation_sparsity": "8:16"}}


@pytest.mark.parametrize("value", ["8:16", ["8:16"], True])
def test_options_of_the_wrong_kind(building, value):
    building(engine({"vllm_sparse": value}))
    with pytest.raises(
        ConfigError, match=r"additional_config\['vllm_sparse'\] is .*Expected an object"
    ):
        current_session()


def test_full_names_are_translated_for_the_model(monkeypatch):
    class Mapper:
        def _map_name(self, name):
            return name.replace("language_model.", "")

    monkeypatch.setattr(Model, "hf_to_vllm_mapper", Mapper(), raising=False)
    session = make_session(rules(g=("8:16", "language_model.x.up_proj")))
    layer = FakeLinear("x.up_proj")
    session.attach(layer)
    load(layer)
    assert isinstance(layer.quant_method, SparseLinearMethod)


def test_counting_starts_anew_when_start_up_has_ended(building):
    config = building(engine(dict(SPARSE)))
    session = current_session()
    layer = FakeLinear(f"{BLOCK}.mlp.up_proj")
    session.attach(layer)
    session.phases.publish(torch.tensor([0, 1]), torch.tensor([1, 1]))
    state = session.layers[0]
    state.counters += 5
    before = session.started
    engines.start_counting(config)
    assert session.started != before
    assert session.phases.totals.sum() == 0
    assert state.counters.tolist() == [0, 0]
    engines.start_counting(engine({}))  # of a dense engine: nothing to do
