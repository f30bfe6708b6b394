"""The table of GPUs: names, and what is not in it."""

from __future__ import annotations

import pytest

from nmsparse.config import ConfigError
from vllm_sparse.plan.machines import GPUS, find_gpu, given


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("H200", "H200"),
        ("nvidia h200", "H200"),
        ("h100", "H100-SXM"),
        ("H100 PCIe", "H100-PCIe"),
        ("a100-40gb", "A100-40GB"),
        ("A100", "A100-80GB-SXM"),
        ("GeForce RTX 4090", "RTX-4090"),
        ("rtx5090", "RTX-5090"),
    ],
)
def test_names_are_found_however_they_are_written(name, found):
    assert find_gpu(name).name == found


def test_numbers_are_in_bytes_and_operations():
    h200 = GPUS["H200"]
    assert (h200.memory, h200.bandwidth, h200.flops) == (141e9, 4.8e12, 989e12)
    for gpu in GPUS.values():
        assert gpu.source.startswith("NVIDIA, ")
        # From batches of 100 to 450 on, arithmetic is the limit on all of them.
        assert 100 < gpu.flops / gpu.bandwidth < 450, gpu.name


def test_unknown_gpus_are_named_with_those_that_are_close():
    with pytest.raises(ConfigError, match=r"'l40'. Did you mean: L40S\?.*--bandwidth"):
        find_gpu("l40")


@pytest.mark.parametrize("name", ["MI300X", "AMD Instinct MI250", "rx7900"])
def test_other_makers_are_refused(name):
    with pytest.raises(ConfigError, match=r"is AMD's\. Expected an NVIDIA GPU"):
        find_gpu(name)


def test_what_the_user_gives_wins():
    changed = given(
        find_gpu("H200"), device="gpu", bandwidth=4000, memory=None, teraflops=None
    )
    assert (changed.bandwidth, changed.memory) == (4e12, 141e9)
    assert changed.source.endswith("data sheet, SXM; bandwidth as given")
    own = given(None, device="cpu", bandwidth=20, memory=32, teraflops=1)
    assert (own.device, own.bandwidth, own.memory, own.flops) == (
        "cpu",
        20e9,
        32e9,
        1e12,
    )
    assert own.source == "bandwidth, memory, arithmetic as given"
    nothing = given(None, device="gpu", bandwidth=None, memory=None, teraflops=None)
    assert nothing.bandwidth is None
