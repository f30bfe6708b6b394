"""Sidecars: parsed, checked by hand, written and read again, applied to layers."""

from __future__ import annotations

import json
import math
import random
import re
from typing import Any

from fuzzing.case import Finding
from fuzzing.files import Folder
from fuzzing.mutate import mutate_bytes, mutate_json

from nmsparse.config import ConfigError, SparsityConfig
from nmsparse.resolve import Resolver
from nmsparse.sidecar import SIDECAR_NAME, read_sidecar
from vllm_sparse.options import resolve_options

_SEEDS: list[Any] = [
    {
        "schema_version": 1,
        "groups": {"a": {"targets": ["Linear"], "activation": {"pattern": "2:4"}}},
    },
    {
        "schema_version": 2,
        "phase": "decode",
        "dense_first_token": True,
        "groups": {
            "default": {
                "targets": [
                    r"re:.*\.(q_proj|k_proj)$",
                    r"re:.*layers\.[0-9]+\..*down_proj$",
                ],
                "activation": {
                    "pattern": "8:16",
                    "criterion": "wina",
                    "mitigation": ["d_pts", "var"],
                },
                "weight": {"pattern": "50%", "sparsity": 0.5},
            },
            "one": {
                "targets": ["model.layers.0.mlp.up_proj"],
                "weight": {"pattern": "2:4"},
            },
        },
        "ignore": ["lm_head", "re:.*vision.*"],
        "parameters": {"file": "vllm_sparse_parameters.st", "sha256": "0" * 64},
        "provenance": {"method": "by hand", "created": "2026-11-23"},
    },
]
_KEYS = {
    "schema_version",
    "phase",
    "dense_first_token",
    "groups",
    "ignore",
    "parameters",
    "provenance",
}
_NAMES = [
    (
        "model.layers.0.self_attn.qkv_proj",
        "model.layers.0.self_attn.q_proj",
        "model.layers.0.self_attn.k_proj",
    ),
    ("model.layers.11.mlp.down_proj",),
    ("model.layers.0.mlp.up_proj",),
    ("a" * 60 + "!",),
]


class ConfigTarget:
    """``read_sidecar``, ``resolve_options`` and ``Resolver``."""

    name = "config"
    errors = (ConfigError,)

    def __init__(self) -> None:
        self._folder = Folder()

    def make(self, rng: random.Random) -> dict[str, bytes]:
        """Return a sidecar."""
        seed = rng.choice(_SEEDS)
        if rng.random() < 0.75:
            content = mutate_json(rng, seed).encode("utf-8", "surrogatepass")
        else:
            content = mutate_bytes(rng, json.dumps(seed).encode())
        return {SIDECAR_NAME: content}

    def read(self, files: dict[str, bytes]) -> None:
        """Read the sidecar; check it if it was accepted."""
        folder = self._folder.fill(files)
        found = resolve_options(None, folder)
        if found is None:
            raise Finding("the sidecar was not seen")
        config = found.config
        check_config(json.loads(files[SIDECAR_NAME]), config)
        if config != read_sidecar(folder):
            raise Finding("two readings differ")
        text = config.to_json()
        again = SparsityConfig.parse(_plain(text), source="again")
        if again != config or again.fingerprint != config.fingerprint:
            raise Finding("what is written is read as something else")
        resolver = Resolver(config)
        for names in _NAMES:
            resolver.resolve(names)


def _plain(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise Finding(f"{constant} was accepted")

    return json.loads(text, parse_constant=refuse)


def check_config(data: Any, config: SparsityConfig) -> None:
    """Check an accepted configuration against its JSON, without pydantic.

    Raises:
        Finding: naming what should have been refused.
    """
    wrong = {
        "keys": not set(data) <= _KEYS,
        "version": data.get("schema_version", 2) not in (1, 2)
        or config.schema_version != 2,
        "phase": config.phase.value != data.get("phase", "decode"),
        "groups": list(config.groups) != list(data.get("groups", {})),
        "ignore": list(config.ignore) != data.get("ignore", []),
        "file": bool(config.parameters) and not _is_plain(config.parameters.file),
        "hash": bool(config.parameters)
        and not re.fullmatch("[0-9a-f]{64}", config.parameters.sha256),
    }
    for key, group in config.groups.items():
        given = data["groups"][key]
        wrong[f"targets of {key}"] = (
            list(group.targets) != given["targets"] or not group.targets
        )
        for part in filter(None, (group.activation, group.weight)):
            pattern = part.pattern
            density = pattern.density
            wrong[f"pattern of {key}"] = not (
                math.isfinite(density) and 0 < density <= 1
            )
        share = group.weight.sparsity if group.weight else None
        wrong[f"sparsity of {key}"] = share is not None and not 0 <= share <= 1
    found = [name for name, is_wrong in wrong.items() if is_wrong]
    if found:
        raise Finding(f"accepted with wrong {', '.join(found)}")


def _is_plain(name: str) -> bool:
    return (
        name.isprintable()
        and not set(name) & set("/\\\0")
        and name not in ("", ".", "..")
    )
