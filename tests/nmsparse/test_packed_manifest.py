"""The manifest in ``config.json``: what is accepted, and headers against it."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nmsparse.packed_manifest import PackedFormatError, PackedManifest, is_packable

UP, DOWN = "model.layers.0.mlp.up_proj", "model.layers.0.mlp.down_proj"
GOOD = {
    "quant_method": "vllm_sparse",
    "format": "bitmask",
    "version": 1,
    "modules": {UP: [6, 70], DOWN: [70, 6]},
}
HEADERS = {
    f"{UP}.weight_bitmask": ("U8", (6, 9)),
    f"{UP}.weight_values": ("BF16", (123,)),
    f"{DOWN}.weight_bitmask": ("U8", (70, 1)),
    f"{DOWN}.weight_values": ("F16", (0,)),
    "lm_head.weight": ("BF16", (9, 6)),
}


def parse(**changes):
    data = {k: v for k, v in {**GOOD, **changes}.items() if v is not None}
    return PackedManifest.parse(data, source="config.json")


def test_reads_what_it_writes():
    manifest = PackedManifest.of({UP: (6, 70), DOWN: (70, 6)})
    assert manifest == parse()
    assert json.loads(manifest.model_dump_json()) == GOOD


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "version 2 of the packed format cannot be read. Expected 1"),
        ({"version": True}, "version True of the packed format"),
        ({"version": "1"}, "version '1' of the packed format"),
        ({"version": None}, "version None of the packed format"),
        ({"format": "zip"}, r"config\.json: format: Input should be 'bitmask'"),
        ({"quant_method": "gptq"}, r"quant_method: Input should be 'vllm_sparse'"),
        ({"modules": {}}, "modules: .*at least 1 item"),
        ({"modules": {UP: [0, 4]}}, r"modules\.model\.layers.*greater than or equal"),
        ({"modules": {UP: [4]}}, "modules"),
        ({"modules": {UP: [4.5, 4]}}, "modules"),
        ({"modules": {UP: ["4", 4]}}, "modules"),
        ({"modules": {"lm_head": [4, 4]}}, "'lm_head' cannot be packed"),
        ({"modules": None}, "modules: Field required"),
        ({"ignore": []}, "ignore: Extra inputs are not permitted"),
    ],
)
def test_refuses_what_it_cannot_read(changes, message):
    with pytest.raises(PackedFormatError, match=message):
        parse(**changes)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(json_values, st.sampled_from([None, *GOOD]))
@settings(deadline=None)
def test_any_json_is_read_or_refused(value, key):
    with contextlib.suppress(PackedFormatError):
        PackedManifest.parse({**GOOD, key: value} if key else value, source="x")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.layers.3.self_attn.q_proj", True),
        ("model.layers.3.self_attn.qkv_proj", True),
        ("model.decoder.layers.0.fc1", True),
        ("model.layers.0.self_attn.dense", True),
        ("lm_head", False),
        ("model.embed_tokens", False),
        ("model.layers.0.mlp.gate", False),
        ("model.layers.0.mlp.experts.0.up_proj", False),
        ("model.vision_tower.layers.0.mlp.fc1", False),
        ("transformer.h.0.attn.query_key_value", False),
        ("transformer.h.0.attn.c_attn", False),
        ("model.layers.0.self_attn.kv_b_proj", False),
        ("", False),
    ],
)
def test_packable_names(name, expected):
    assert is_packable(name) is expected


def test_headers_that_fit():
    parse().check_headers(HEADERS, source="folder")


@pytest.mark.parametrize(
    ("name", "header", "message"),
    [
        (f"{UP}.weight_bitmask", None, r"up_proj\.weight_bitmask is missing"),
        (f"{DOWN}.weight_values", None, r"down_proj\.weight_values is missing"),
        (f"{UP}.weight_bitmask", ("I8", (6, 9)), r"is I8 \[6, 9\]\. Expected U8 \[6"),
        (f"{UP}.weight_bitmask", ("U8", (6, 8)), r"is U8 \[6, 8\]\. Expected U8 \[6"),
        (f"{UP}.weight_values", ("I16", (3,)), r"Expected F16 or BF16 or F32 \[stored"),
        (f"{UP}.weight_values", ("BF16", (3, 1)), r"is BF16 \[3, 1\]"),
        (f"{UP}.weight", ("BF16", (6, 70)), r"stored both dense and packed"),
        ("a.up_proj.weight_values", ("BF16", (3,)), r"does not list a\.up_proj"),
        ("a.up_proj.weight_bitmask", ("U8", (3, 3)), r"does not list a\.up_proj"),
    ],
)
def test_headers_that_do_not_fit(name, header, message):
    found = {**HEADERS, name: header}
    if header is None:
        del found[name]
    with pytest.raises(PackedFormatError, match=message) as caught:
        parse().check_headers(found, source="folder")
    assert "folder: " in str(caught.value)


def test_needs_no_torch():
    program = "import sys, nmsparse.packed_manifest; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
