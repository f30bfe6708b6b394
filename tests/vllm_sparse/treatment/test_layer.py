"""``Treatment`` and its method: what they take from a weight, and when."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from vllm.model_executor.layers.linear import LinearMethodBase, UnquantizedLinearMethod

from nmsparse.config import ActivationSparsity, ConfigError
from nmsparse.criteria import criteria
from nmsparse.ops.online import online_linear
from vllm_sparse.phases import DECODE, PREFILL
from vllm_sparse.treatment import weights as weights_module
from vllm_sparse.treatment.layer import make_treatment
from vllm_sparse.treatment.method import TreatedLinearMethod
from vllm_sparse.treatment.shards import Split
from vllm_sparse.treatment.weights import static_factor

CPU = torch.device("cpu")
K, OUT = 32, 12
LEARNED = ("l_pts", "var", "ls", "output_shift", "r_sparse")


def random(*shape, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(shape, generator=generator, dtype=torch.float32)


class Plain(UnquantizedLinearMethod):
    """vLLM's method on a CPU: keeps the weight its own way, and empties it."""

    def __init__(self):
        self.products = 0

    def process_weights_after_loading(self, layer):
        if layer.weight.numel():
            layer.kernel = layer.weight.data.clone()
            layer.weight = torch.nn.Parameter(torch.empty(0), requires_grad=False)

    def apply(self, layer, x, bias=None):
        self.products += 1
        return torch.nn.functional.linear(x, layer.kernel, bias)


Plain.__name__ = "UnquantizedLinearMethod"


class Quantized(LinearMethodBase):
    """Multiplies by a weight that nobody can read."""

    def create_weights(self, layer, *args, **kwargs):
        pass

    def process_weights_after_loading(self, layer):
        layer.kernel = layer.secret

    def apply(self, layer, x, bias=None):
        return torch.nn.functional.linear(x, layer.kernel, bias)


class Readable(Quantized):
    def dequantize_weight(self, layer):
        return layer.secret


class Layer(torch.nn.Module):
    def __init__(self, inner, weight, *, ranks=1, row=False):
        super().__init__()
        self.prefix = "x.y_proj"
        self.params_dtype = torch.float32
        self.tp_size, self.tp_rank = ranks, 0
        self.output_size = OUT if row else OUT * ranks
        self.output_size_per_partition = OUT
        self.input_size = K * ranks if row else K
        self.input_size_per_partition = K
        self.quant_method = inner
        self.load(weight)
        codes = torch.tensor([PREFILL, DECODE, DECODE, DECODE], dtype=torch.uint8)
        self.register_buffer("vllm_sparse_codes", codes)
        self.register_buffer("vllm_sparse_counters", torch.zeros(2).long())

    def load(self, weight):
        self.secret = weight.clone()
        self.weight = torch.nn.Parameter(weight.clone(), requires_grad=False)

    def weight_loader(self, parameter, loaded):
        parameter.data.copy_(loaded)


def fitted(*names):
    shapes = {
        "factor": lambda: random(K, seed=1).abs(),
        "channel_shift": lambda: random(K, seed=2, scale=0.3),
        "output_scale": lambda: random(OUT, seed=3, scale=0.2),
        "output_shift": lambda: random(OUT, seed=4),
        "low_rank_in": lambda: random(3, K, seed=5),
        "low_rank_out": lambda: random(OUT, 3, seed=6),
        "channel_groups": lambda: torch.randperm(K),
    }
    found = {name: shapes[name]() for name in names}
    return {"x.y_proj": found} if found else {}


ALL_OF_THEM = (
    "factor",
    "channel_shift",
    "output_scale",
    "output_shift",
    "low_rank_in",
    "low_rank_out",
)


def treat(layer, criterion="magnitude", mitigation=(), names=(), pattern="2:8"):
    activation = ActivationSparsity(
        pattern=pattern, criterion=criterion, mitigation=mitigation
    )
    return make_treatment(
        layer, activation, fitted(*names), device=CPU, file="fitted.safetensors"
    )


def wrap(layer, treatment, told=None):
    method = TreatedLinearMethod(
        layer.quant_method,
        layer=layer,
        treatment=treatment,
        phase=DECODE,
        after_load=lambda: None if told is None else told.append(1),
    )
    layer.quant_method = method
    return method


def check(layer, treatment, weight, bias=None):
    x = random(4, K, seed=9)
    y = layer.quant_method.apply(layer, x, bias)
    expected = online_linear(x[1:], weight, bias, treatment.online)
    torch.testing.assert_close(y[1:], expected, rtol=1e-4, atol=1e-4)
    dense = torch.nn.functional.linear(x[:1], weight, bias)
    torch.testing.assert_close(y[:1], dense)


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=str, autouse=True)
def default_dtype(request):
    """While vLLM builds a model, new tensors have the dtype of the model."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(request.param)
    yield
    torch.set_default_dtype(before)


@pytest.mark.parametrize("inner", [Plain, Quantized])
@pytest.mark.parametrize("with_bias", [False, True])
def test_learned_parameters_around_any_product(inner, with_bias):
    weight = random(OUT, K, seed=8)
    layer = Layer(inner(), weight)
    treatment = treat(layer, "second_order", LEARNED, ALL_OF_THEM)
    told = []
    wrap(layer, treatment, told).process_weights_after_loading(layer)
    assert told == [1]
    check(layer, treatment, weight, random(OUT, seed=7) if with_bias else None)
    assert treatment.origin == dict.fromkeys(ALL_OF_THEM, "fitted.safetensors")
    assert treatment.extra_weights == 3 * (K + OUT)
    assert treatment.label == f"second_order {' '.join(LEARNED)} rank 3"
    assert layer.vllm_sparse_counters.tolist() == [3 * K, 3 * K // 4]
    names = {n for n, _ in layer.named_buffers() if n.startswith("vllm_sparse")}
    assert {"vllm_sparse_factor", "vllm_sparse_constant"} <= names
    assert not {n for n in layer.state_dict() if "shift" in n or "rank" in n}


@pytest.mark.parametrize("criterion", ["wina", "amber_pruner"])
@pytest.mark.parametrize("inner", [Plain, Readable])
def test_factors_of_the_weight(inner, criterion):
    weight = random(OUT, K, seed=8)
    layer = Layer(inner(), weight)
    treatment = treat(layer, criterion, ("d_pts", "var"))
    wrap(layer, treatment).process_weights_after_loading(layer)
    expected = criteria.get(criterion).factor(weight)
    assert torch.equal(treatment.parameters.factor, expected)
    assert treatment.origin == {"factor": "weight"}
    check(layer, treatment, weight)
    # What a dense weight gives needs no product.
    assert getattr(layer.quant_method.inner, "products", 1) == 1


def test_a_weight_that_cannot_be_read_needs_a_stored_factor():
    layer = Layer(Quantized(), random(OUT, K))
    method = wrap(layer, treat(layer, "wina"))
    with pytest.raises(
        ConfigError,
        match=r"x\.y_proj: criterion wina needs the weight, which vLLM's Quantized "
        r"does not give back\. .*`offline-prune calibrate`",
    ):
        method.process_weights_after_loading(layer)
    layer = Layer(Quantized(), random(OUT, K))
    treatment = treat(layer, "wina", names=("factor",))
    wrap(layer, treatment).process_weights_after_loading(layer)
    assert torch.equal(
        treatment.parameters.factor, fitted("factor")["x.y_proj"]["factor"]
    )


def test_processed_again_and_loaded_again():
    weight = random(OUT, K, seed=8)
    layer = Layer(Plain(), weight)
    names = ("channel_shift", "output_shift")
    treatment = treat(layer, "wina", ("l_pts", "output_shift"), names)
    method = wrap(layer, treatment)
    buffers = dict(layer.named_buffers())
    for seed in (8, 8, 11, 12):
        if seed != 8:
            weight = random(OUT, K, seed=seed)
            layer.load(weight)
        method.process_weights_after_loading(layer)
        check(layer, treatment, weight)
    # The same tensors: compiled code holds them.
    for name, tensor in layer.named_buffers():
        assert tensor is buffers[name]


@pytest.mark.parametrize(
    ("criterion", "mitigation", "names", "pattern"),
    [
        ("magnitude", (), (), "2:8"),
        ("wina", ("d_pts", "var"), (), "8:8"),
        ("amber_pruner", (), (), "1:1"),
    ],
)
def test_nothing_to_treat(criterion, mitigation, names, pattern):
    layer = Layer(Plain(), random(OUT, K))
    assert treat(layer, criterion, mitigation, names, pattern) is None


def test_groups_alone_are_a_treatment():
    weight = random(OUT, K, seed=8)
    layer = Layer(Plain(), weight)
    treatment = treat(layer, names=("channel_groups",))
    wrap(layer, treatment).process_weights_after_loading(layer)
    assert treatment.label == "magnitude groups"
    assert not treatment.finishes
    check(layer, treatment, weight)


@pytest.mark.parametrize(
    ("criterion", "mitigation", "names", "message"),
    [
        ("second_order", (), (), r"second_order needs factor\. .*calibrate"),
        ("magnitude", ("ls",), (), r"ls needs output_scale\. .*calibrate"),
        ("magnitude", (), ("output_scale",), "no mitigation uses it"),
    ],
)
def test_missing_and_unused_parameters_name_the_layer(
    criterion, mitigation, names, message
):
    with pytest.raises(ConfigError, match=rf"x\.y_proj: .*{message}"):
        treat(Layer(Plain(), random(OUT, K)), criterion, mitigation, names)


@pytest.mark.parametrize("row", [False, True])
def test_a_shard_cannot_tell_quantiles_of_the_weight(row):
    layer = Layer(Plain(), random(OUT, K), ranks=2, row=row)
    with pytest.raises(
        ConfigError, match=r"x\.y_proj: criterion amber_pruner .* 2 ranks .*calibrate"
    ):
        treat(layer, "amber_pruner")
    assert treat(layer, "amber_pruner", names=("factor",)) if not row else True
    assert treat(layer, "wina").parameters.factor.shape == (K,)


def test_row_shards_of_a_weight_add_up(monkeypatch):
    """Heads that several ranks hold count once."""
    whole = random(16, K, seed=8)  # 4 query heads, 2 of keys, 2 of values, of 2 rows
    q, k, v = whole[:8], whole[8:12], whole[12:]
    group = SimpleNamespace(cpu_group=None)
    monkeypatch.setattr("vllm.distributed.get_tp_group", lambda: group)
    sums = []
    monkeypatch.setattr(
        weights_module.torch.distributed,
        "all_reduce",
        lambda tensor, group: sums.append(tensor.clone()),
    )
    for rank in range(4):
        head = slice(rank // 2 * 2, rank // 2 * 2 + 2)
        local = torch.cat([q[rank * 2 : rank * 2 + 2], k[head], v[head]])
        layer = SimpleNamespace(num_kv_head_replicas=2, num_heads=1, head_size=2)
        split = Split(rank, 4, K, 6, k_sharded=False, o_sharded=True)
        static_factor(layer, "wina", local, split)
    found = sum(sums).sqrt().float()
    torch.testing.assert_close(found, criteria.get("wina").factor(whole))
