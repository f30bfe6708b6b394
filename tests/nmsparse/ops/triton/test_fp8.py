"""Float8 weights of ``gather_lists``: the scale is applied to sums."""

from __future__ import annotations

import pytest
import torch
from support.token_lists import (
    TERMS,
    TOLERANCE,
    assert_product,
    expected_product,
    normal,
    random_lists,
    random_terms,
)

from nmsparse.ops.linear.gather_triton import gather_lists
from nmsparse.ops.linear.tiles import GatherTiles

K, OUT, KEPT = 64, 40, 32
SHARED = pytest.mark.parametrize("shared", [False, True], ids=["per token", "shared"])


def cut(splits=2):
    return GatherTiles(32, 16, splits, warps=4, stages=1)


def weight_of(device, outputs=OUT):
    return normal(K, outputs, seed=1, device=device).to(torch.float8_e4m3fn)


@pytest.mark.usefixtures("poisoned_memory")
@SHARED
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", [(), (1,), (OUT,), (OUT, 1)], ids=str)
@pytest.mark.parametrize("splits", [1, 3])
def test_scale_of_the_weight(device, shared, dtype, shape, splits):
    lists = random_lists(3, K, KEPT, dtype=dtype, device=device, shared=shared)
    weight = weight_of(device)
    scale = (torch.rand(shape, generator=torch.Generator().manual_seed(2)) + 0.1).to(
        device
    )
    found = gather_lists(lists, weight, weight_scale=scale, tiles=cut(splits))
    expected = expected_product(lists, weight.float() * scale.flatten())
    assert_product(found, expected)


@SHARED
@pytest.mark.parametrize("dense", [(), (1,)], ids=["sparse", "mixed"])
def test_scale_comes_before_the_terms(device, shared, dense):
    """And a dense token's weight is scaled as well."""
    options = {"dense": dense, "device": device, "shared": shared}
    lists = random_lists(2, K, KEPT, scale=True, shift=True, **options)
    weight, scale = weight_of(device), torch.rand(OUT, device=device) + 0.1
    terms = random_terms(TERMS, 2, OUT, device=device)
    found = gather_lists(lists, weight, weight_scale=scale, tiles=cut(), **terms)
    assert_product(found, expected_product(lists, weight.float() * scale, **terms))


@SHARED
def test_every_number_of_the_format(device, shared):
    """Zeros, subnormals and the largest pass as they are; NaN where it is computed."""
    weight = torch.arange(256, dtype=torch.uint8, device=device)[:, None]
    weight = weight.view(torch.float8_e4m3fn)
    numbers = weight[:, 0].float()
    options = {"dtype": torch.float16, "device": device, "shared": shared}
    # Triton's interpreter takes the format's NaN for 480.
    not_numbers = (127, 255) if device == "cuda" else ()
    for code in (0, 1, 7, 8, 126, 128, 129, 200, 254, *not_numbers):
        lists = random_lists(2, 256, 1, **options)
        lists.indices.fill_(code)
        lists.values.fill_(1)
        scale = torch.ones((), device=device)
        found = gather_lists(lists, weight, weight_scale=scale, tiles=cut(1))
        expected = numbers[code].double().expand(2, 1)
        torch.testing.assert_close(
            found.double(), expected, rtol=0, atol=0, equal_nan=True
        )


@pytest.mark.parametrize("scale", [None, torch.ones(OUT + 1), torch.ones(0)])
def test_refuses(scale):
    with pytest.raises(ValueError, match="weight_scale of a float8 weight"):
        gather_lists(random_lists(1, K, KEPT), weight_of("cpu"), weight_scale=scale)


def test_refuses_old_devices(monkeypatch):
    from nmsparse.ops.linear import list_terms

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A100")
    list_terms._check_float8.cache_clear()
    try:
        with pytest.raises(RuntimeError, match=r"A100.*capability 8\.9"):
            list_terms._check_float8(torch.device("cuda", 0))
    finally:
        list_terms._check_float8.cache_clear()
