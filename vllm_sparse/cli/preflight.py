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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from nmsparse.config import ConfigError, SparsityConfig
from nmsparse.json_text import parse_json
from nmsparse.packed_manifest import QUANT_METHOD, PackedFormatError, PackedManifest
from nmsparse.parameters import PARAMETERS_NAME
from nmsparse.resolve import Resolver, require_sparse_layers
from nmsparse.targets import FUSED
from vllm_sparse.checks import check_fits
from vllm_sparse.cli.parameters import check_parameters
from vllm_sparse.describe import WeightsRead
from vllm_sparse.treatment.source import ParameterSource

if TYPE_CHECKING:
    import torch

    from vllm_sparse.treatment.source import Part


@dataclass(frozen=True, slots=True)
class LinearShape:
    """A linear layer.

    Attributes:
        names: the fused name first, then those of its parts.
        in_features: K.
        row_parallel: whether tensor parallelism splits K; None if transformers has no
            plan for the model.
        outputs: O of every part.
    """

    names: tuple[str, ...]
    in_features: int
    row_parallel: bool | None
    outputs: tuple[int, ...] = ()


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


def check_packed(model: str) -> None:
    """Refuse a damaged packed folder by its headers; other models are not looked at.

    Args:
        model: a folder; a hub id is left to vLLM, which downloads its weights later.

    Raises:
        ConfigError: naming the file or tensor. What only the values tell is found when
            the workers load them.
    """
    folder = Path(model)
    path = folder / "config.json"
    if not path.is_file():
        return
    try:
        packed = parse_json(path.read_bytes())["quantization_config"]
        if packed["quant_method"] != QUANT_METHOD:
            return
    except (OSError, ValueError, LookupError, TypeError):
        return  # vLLM says what is wrong with a config.json
    from vllm_sparse.packed.headers import read_headers

    try:
        manifest = PackedManifest.parse(packed, source=f"{path}: quantization_config")
        manifest.check_headers(read_headers(folder), source=str(folder))
    except PackedFormatError as error:
        raise ConfigError(str(error)) from None


def check_model(
    config: SparsityConfig,
    args: argparse.Namespace,
    parameters: Mapping[str, Part] = MappingProxyType({}),
) -> list[WeightsRead]:
    """Check targets, divisibility and parameters of every layer.

    Args:
        config: what to sparsify.
        args: of the command, which name the model.
        parameters: fitted tensors by module name.

    Returns:
        What sparsified layers read; nothing if only vLLM knows the model.

    Raises:
        ConfigError: naming the layer or target, or the model if it cannot be found.
    """
    shapes = _model_shapes(args)
    if shapes is None:
        return []
    source = ParameterSource(parameters, PARAMETERS_NAME)
    read: list[WeightsRead] = []
    resolver = Resolver(config)
    tp = args.tensor_parallel_size or 1
    for shape in shapes:
        classes = ("Linear", "LinearBase", *_vllm_classes(shape))
        group = resolver.resolve(shape.names, classes).group
        parts = source.take(shape.names)
        if group is None or group.activation is None:
            continue
        name, activation = shape.names[0], group.activation
        shards = tp if shape.row_parallel else 1
        if shape.in_features % shards == 0:  # or vLLM itself refuses this size
            check_fits(name, activation.pattern, shape.in_features, shards)
        extra = check_parameters(
            name,
            activation,
            parts,
            in_features=shape.in_features,
            outputs=shape.outputs,
        )
        elements = shape.in_features * sum(shape.outputs)
        read.append(WeightsRead(elements, activation.pattern.density, extra))
    resolver.check_targets()
    source.check_used()
    require_sparse_layers(config, len(read), len(shapes))
    sys.stderr.write(
        f"vllm-sparse serve: {len(read)} of {len(shapes)} linear layers will be "
        "sparse\n"
    )
    return read


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
    siblings: dict[str, dict[str, tuple[int, int]]] = defaultdict(dict)
    # vLLM's head is no linear layer of its own, so no target reaches it.
    head = getattr(model, "get_output_embeddings", lambda: None)()
    for name, module in model.named_modules():
        sizes = _sizes(module)
        if sizes is not None and module is not head:
            parent, _, last = name.rpartition(".")
            siblings[parent][last] = sizes
    for parent, children in siblings.items():
        prefix = f"{parent}." if parent else ""
        for fused, parts in FUSED.items():
            if all(part in children for part in parts):
                names = (prefix + fused, *(prefix + part for part in parts))
                sizes_of_parts = [children.pop(part) for part in parts]
                yield LinearShape(
                    names,
                    sizes_of_parts[0][0],
                    row_parallel=False,
                    outputs=tuple(outputs for _, outputs in sizes_of_parts),
                )
        for child, (size, outputs) in children.items():
            name = prefix + child
            row = any(
                "row" in str(style) and fnmatchcase(name, wildcard)
                for wildcard, style in plan.items()
            )
            yield LinearShape((name,), size, row if plan else None, (outputs,))


def _sizes(module: torch.nn.Module) -> tuple[int, int] | None:
    """Return K and O of a linear layer; None for other modules."""
    import torch

    if isinstance(module, torch.nn.Linear):
        return module.in_features, module.out_features
    if type(module).__name__ == "Conv1D":  # GPT-2: weight is [K, O]
        channels, outputs = module.get_parameter("weight").shape
        return int(channels), int(outputs)
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
