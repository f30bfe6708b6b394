"""What tensors are: roles, bytes, quantized and packed weights."""

from __future__ import annotations

import pytest

from vllm_sparse.plan.modules import Role, read_modules
from vllm_sparse.plan.stored import Stored

BLOCK = "model.layers.0."


def modules(tensors, size=2, **config):
    found = read_modules(Stored("test", config, tensors, "a test"), size)
    return {module.name: module for module in found}


def test_parameters_of_llama(llama):
    found = read_modules(llama, 2)
    # The number of its model card.
    assert sum(x.elements + x.others for x in found) == 8_030_261_248
    assert sum(x.nbytes + x.beside for x in found) == 2 * 8_030_261_248


@pytest.mark.parametrize(
    ("name", "role"),
    [
        (f"{BLOCK}mlp.down_proj", Role.LINEAR),
        ("model.decoder.layers.0.fc1", Role.LINEAR),
        (f"{BLOCK}mlp.gate", Role.LINEAR),
        (f"{BLOCK}mlp.shared_experts.up_proj", Role.LINEAR),
        (f"{BLOCK}self_attn.kv_b_proj", Role.LINEAR),
        (f"{BLOCK}mlp.experts.3.up_proj", Role.EXPERTS),
        ("lm_head", Role.HEAD),
        ("model.embed_tokens", Role.EMBEDDING),
        ("transformer.wpe", Role.EMBEDDING),
        ("model.vision_tower.layers.0.q_proj", Role.TOWER),
        ("visual.blocks.0.attn.qkv", Role.TOWER),
        ("model.multi_modal_projector.linear_1", Role.TOWER),
        ("mtp.layers.0.self_attn.q_proj", Role.DRAFT),
    ],
)
def test_roles(name, role):
    (module,) = modules({f"{name}.weight": ("BF16", (8, 4))}).values()
    assert module.role is role
    assert (module.out_features, module.in_features) == (8, 4)
    assert module.nbytes == 64


def test_norms_and_biases_are_beside():
    found = modules(
        {
            f"{BLOCK}norm.weight": ("F32", (8,)),
            f"{BLOCK}q_proj.weight": ("F32", (8, 4)),
            f"{BLOCK}q_proj.bias": ("F32", (8,)),
        }
    )
    norm, linear = found[f"{BLOCK}norm"], found[f"{BLOCK}q_proj"]
    assert (norm.role, norm.nbytes, norm.beside) == (Role.OTHER, 0, 16)
    # Floats are served in the type of the activations.
    assert (linear.nbytes, linear.beside, linear.elements) == (64, 16, 32)
    assert not linear.quantized


def test_fp8_is_a_byte_and_its_scales():
    found = modules(
        {
            f"{BLOCK}q_proj.weight": ("F8_E4M3", (8, 4)),
            f"{BLOCK}q_proj.weight_scale": ("F32", (8, 1)),
        }
    )[f"{BLOCK}q_proj"]
    assert found.quantized
    assert found.nbytes == 32 + 8 * 4
    assert found.elements == 32
    assert found.in_features == 4


def test_gptq_counts_what_is_stored():
    found = modules(
        {
            f"{BLOCK}q_proj.qweight": ("I32", (4, 8)),
            f"{BLOCK}q_proj.qzeros": ("I32", (1, 1)),
            f"{BLOCK}q_proj.scales": ("F16", (1, 8)),
            f"{BLOCK}q_proj.g_idx": ("I32", (32,)),
        }
    )[f"{BLOCK}q_proj"]
    assert found.role is Role.LINEAR
    assert found.quantized
    assert found.nbytes == 4 * 8 * 4 + 4 + 16 + 128
    assert found.in_features == 0


def test_packed_weights_stand_for_dense_ones():
    name = f"{BLOCK}mlp.down_proj"
    found = modules(
        {
            f"{name}.weight_bitmask": ("U8", (8, 8)),
            f"{name}.weight_values": ("BF16", (128,)),
        },
        quantization_config={"quant_method": "vllm_sparse", "modules": {name: [8, 64]}},
    )[name]
    assert (found.role, found.quantized) == (Role.LINEAR, False)
    assert found.nbytes == 8 * 64 * 2
    assert found.zeros == 0.75


@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_head_is_counted_once(tied):
    tensors = {
        "model.embed_tokens.weight": ("BF16", (16, 4)),
        "lm_head.weight": ("BF16", (16, 4)),
    }
    assert ("lm_head" in modules(tensors, tie_word_embeddings=tied)) is not tied


def test_conv1d_is_turned():
    tensors = {"h.0.attn.c_attn.weight": ("BF16", (4, 12))}
    found = modules(tensors, model_type="gpt2")["h.0.attn.c_attn"]
    assert (found.out_features, found.in_features) == (12, 4)
    other = modules(tensors, model_type="other")["h.0.attn.c_attn"]
    assert (other.out_features, other.in_features) == (4, 12)
