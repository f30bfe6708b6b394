"""Check a sparsity configuration against a model's layers before the engine starts.

The layers come from the model's configuration, built by transformers on the meta
device: no weights are read. A model that only vLLM knows is left to the engine, which
makes the same checks while it builds the layers.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nmsparse.config import ConfigError, SparsityConfig
from nmsparse.resolve import Resolver, require_sparse_layers
from vllm_sparse.checks import check_fits
from vllm_sparse.names import FUSED

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class LinearShape:
    """A linear layer: names (fused first), K, and whether tensor parallelism splits K.

    ``row_parallel`` is None if transformers has no plan for the model.
    """

    names: tuple[str, ...]
    in_features: int
    row_parallel: bool | None


def check_model_exists(model: str) -> None:
    """Refuse a path that does not exist, before anything slow.

    Raises:
        ConfigError: if ``model`` looks like a path and is none.
    """
    looks_local = model.startswith(("/", "./", "../", "~"))
    if looks_local and "://" not in model and not Path(model).expanduser().exists():
        raise ConfigError(
            f"Model {model!r} does not exist. Expected a Hugging Face id (org/name) or "
            "an existing folder: check the path."
        )


def check_model(config: SparsityConfig, args: argparse.Namespace) -> None:
    """Check targets and divisibility of every layer.

    Raises:
        ConfigError: naming the layer or target, or the model if it cannot be found.
    """
    shapes = _model_shapes(args)
    if shapes is None:
        return
    sparse = 0
    resolver = Resolver(config)
    tp = args.tensor_parallel_size or 1
    for shape in shapes:
        classes = ("Linear", "LinearBase", *_vllm_classes(shape))
        group = resolver.resolve(shape.names, classes).group
        if group is None or group.activation is None:
            continue
        sparse += 1
        shards = tp if shape.row_parallel else 1
        if shape.in_features % shards == 0:  # or vLLM itself refuses this size
            pattern = group.activation.pattern
            check_fits(shape.names[0], pattern, shape.in_features, shards)
    resolver.check_targets()
    require_sparse_layers(config, sparse, len(shapes))
    sys.stderr.write(
        f"vllm-sparse serve: {sparse} of {len(shapes)} linear layers will be sparse\n"
    )


def _model_shapes(args: argparse.Namespace) -> list[LinearShape] | None:
    """Return the model's linear layers, or None if transformers cannot tell."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    special = (
        any((":" in args.model, args.model.endswith(".gguf"))),
        bool(args.hf_overrides),
        args.config_format not in ("auto", "hf"),
        os.environ.get("VLLM_USE_MODELSCOPE", "").lower() in ("1", "true"),
    )
    if any(special):
        _note("only vLLM knows how to read this model's configuration")
        return None
    try:
        hf_config = AutoConfig.from_pretrained(
            args.hf_config_path or args.model,
            revision=args.revision,
            code_revision=args.code_revision,
            token=args.hf_token,
            trust_remote_code=args.trust_remote_code,
        )
    except OSError as error:
        if "gated" in str(error).lower():
            _note("access to the model is restricted")
            return None
        raise ConfigError(
            f"Model {args.model!r} cannot be found: {str(error).splitlines()[0]} "
            "Expected a Hugging Face id (org/name) or a folder with config.json."
        ) from None
    except Exception as error:
        _note(f"transformers cannot read its configuration ({error})")
        return None
    # The pinned code, as vLLM runs it; only remote classes take the argument.
    pinned = args.trust_remote_code and args.code_revision
    remote = {"code_revision": args.code_revision} if pinned else {}
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                hf_config, trust_remote_code=args.trust_remote_code, **remote
            )
    except Exception as error:
        _note(f"transformers cannot build it ({type(error).__name__})")
        return None
    return list(linear_shapes(model))


def _note(reason: str) -> None:
    sys.stderr.write(
        f"vllm-sparse serve: note: layers are checked by the engine, because {reason}\n"
    )


def linear_shapes(model: torch.nn.Module) -> Iterator[LinearShape]:
    """Yield every linear of a transformers model, fused as vLLM fuses them."""
    plan: dict[str, Any] = getattr(model, "tp_plan", None) or {}
    siblings: dict[str, dict[str, int]] = defaultdict(dict)
    # vLLM's head is no linear layer of its own, so no target reaches it.
    head = getattr(model, "get_output_embeddings", lambda: None)()
    for name, module in model.named_modules():
        size = _in_features(module)
        if size is not None and module is not head:
            parent, _, last = name.rpartition(".")
            siblings[parent][last] = size
    for parent, children in siblings.items():
        prefix = f"{parent}." if parent else ""
        for fused, parts in FUSED.items():
            if all(part in children for part in parts):
                names = (prefix + fused, *(prefix + part for part in parts))
                yield LinearShape(names, children[parts[0]], row_parallel=False)
                for part in parts:
                    del children[part]
        for child, size in children.items():
            name = prefix + child
            row = any(
                "row" in str(style) and fnmatchcase(name, wildcard)
                for wildcard, style in plan.items()
            )
            yield LinearShape((name,), size, row if plan else None)


def _in_features(module: torch.nn.Module) -> int | None:
    import torch

    if isinstance(module, torch.nn.Linear):
        return module.in_features
    if type(module).__name__ == "Conv1D":  # GPT-2: weight is [K, O]
        return int(module.get_parameter("weight").shape[0])
    return None


def _vllm_classes(shape: LinearShape) -> tuple[str, ...]:
    """Class names vLLM may use for the layer: targets may name them."""
    if len(shape.names) > 1:
        fused = shape.names[0].rpartition(".")[2]
        special = {"qkv_proj": "QKVParallelLinear"}
        return (
            "ColumnParallelLinear",
            special.get(fused, "MergedColumnParallelLinear"),
        )
    if shape.row_parallel:
        return ("RowParallelLinear",)
    unknown = ("RowParallelLinear",) if shape.row_parallel is None else ()
    return ("ColumnParallelLinear", "ReplicatedLinear", *unknown)
