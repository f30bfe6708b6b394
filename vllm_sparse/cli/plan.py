"""``vllm-sparse plan``: what a deployment would read and hold, and what it can gain.

Shapes alone are read, no weights. The numbers are ceilings.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from nmsparse.config import ConfigError, Phase, SparsityConfig
from nmsparse.packed_manifest import QUANT_METHOD
from nmsparse.pattern import parse_pattern
from vllm_sparse.execution import AUTO, CHOICES, KEEP, OFF

if TYPE_CHECKING:
    from vllm_sparse.plan.machines import Machine
    from vllm_sparse.plan.stored import Stored

PROGRAM = "vllm-sparse plan"
# What doctor and plan assume where nothing is said.
_EXAMPLE = "8:16"
_BATCHES = (1, 2, 4, 8, 16, 64)
_CONTEXT = 1024


def plan(arguments: Sequence[str]) -> int:
    """Print a plan.

    Args:
        arguments: what follows ``vllm-sparse plan``.

    Returns:
        0, or 2 if the input cannot be used.
    """
    args = _parser().parse_args(list(arguments))
    try:
        _check(args)
        machine = _machine(args)
        found = _plan(args, machine)
    except (ValueError, RuntimeError) as error:
        sys.stderr.write(f"{PROGRAM}: error: {error}\n")
        return 2
    if args.json:
        sys.stdout.write(json.dumps(asdict(found), indent=2) + "\n")
    else:
        from vllm_sparse.plan.show import show

        sys.stdout.write(show(found))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=PROGRAM, description=__doc__)
    add = parser.add_argument
    add("model", metavar="MODEL", help="a folder with config.json, or a Hub id")
    add("--json", action="store_true", help="print JSON, in bytes and seconds")
    where = parser.add_argument_group("machine")
    add = where.add_argument
    add("--gpu", metavar="NAME", help="an NVIDIA GPU of the table, for example H200")
    add("--cpu", action="store_true", help="this CPU; its bandwidth is measured")
    add("--bandwidth", type=float, metavar="GB/S", help="of memory, of any machine")
    add("--memory", type=float, metavar="GB", help="of one device")
    add("--tflops", type=float, help="dense 16-bit arithmetic of one device")
    add(
        "--achieved",
        type=float,
        nargs="+",
        default=[1.0],
        metavar="SHARE",
        help="share of the bandwidth that vLLM's kernels reach and, if it is another "
        "one, the share that the plugin's reach (1)",
    )
    add(
        "--launch-us",
        type=float,
        default=0.0,
        help="microseconds that a launch costs, whatever it reads (0)",
    )
    add(
        "--utilization",
        type=float,
        default=0.92,
        metavar="SHARE",
        help="of the memory that vLLM takes, its --gpu-memory-utilization (0.92)",
    )
    load = parser.add_argument_group("load")
    add = load.add_argument
    add(
        "--batch",
        type=int,
        nargs="+",
        default=list(_BATCHES),
        metavar="T",
        help="sequences that decode together, a token each (1 2 4 8 16 64)",
    )
    add("--context", type=int, default=None, help="tokens of every sequence (1024)")
    add("--tensor-parallel", type=int, default=1, metavar="N", help="ranks (1)")
    add("--dtype", choices=("auto", "bfloat16", "float16", "float32"), default="auto")
    add("--kv-cache-dtype", choices=("auto", "fp8"), default="auto")
    sparse = parser.add_argument_group("sparsity")
    add = sparse.add_argument
    add("--activation-sparsity", metavar="N:M", help="instead of the sidecar; off")
    add("--sparsity-config", metavar="FILE", help="instead of the sidecar")
    add("--sparsity-phase", choices=[phase.value for phase in Phase])
    add(
        "--weight-sparsity",
        metavar="N:M",
        help="weights of decoder linears are pruned, for example 50%% or 2:4, and held "
        "packed: bits and values",
    )
    for name in ("dense_fallback", "sparse_weights", "shared_lists"):
        add(f"--{name.replace('_', '-')}", choices=CHOICES[name], help="as in serve")
    return parser


def _check(args: argparse.Namespace) -> None:
    """Refuse what needs nothing but the arguments to be known as wrong.

    Raises:
        ConfigError: naming the flag.
    """
    if args.gpu is not None and args.cpu:
        raise ConfigError("--gpu and --cpu are both given. Expected one.")
    if min(args.batch) < 1:
        raise ConfigError(f"--batch is {min(args.batch)}. Expected 1 or more.")
    for flag in ("context", "tensor_parallel"):
        value = getattr(args, flag)
        if value is not None and value < 1:
            name = f"--{flag.replace('_', '-')}"
            raise ConfigError(f"{name} is {value}. Expected 1 or more.")
    for flag in ("bandwidth", "memory", "tflops"):
        value = getattr(args, flag)
        if value is not None and not value > 0:
            raise ConfigError(f"--{flag} is {value}. Expected more than 0.")
    if len(args.achieved) > 2:
        raise ConfigError(
            f"--achieved has {len(args.achieved)} values. Expected one, or two."
        )
    shares = [("achieved", share) for share in args.achieved]
    for flag, share in (*shares, ("utilization", args.utilization)):
        if not 0 < share <= 1:
            raise ConfigError(
                f"--{flag} is {share}. Expected a share above 0, at most 1."
            )
    if args.launch_us < 0:
        raise ConfigError(f"--launch-us is {args.launch_us}. Expected 0 or more.")
    if args.launch_us and not (args.gpu or args.cpu or args.bandwidth):
        raise ConfigError("--launch-us needs --gpu, --cpu or --bandwidth as well.")
    if args.activation_sparsity is not None and args.sparsity_config is not None:
        raise ConfigError(
            "--activation-sparsity and --sparsity-config are both given. Expected one."
        )


def _machine(args: argparse.Namespace) -> Machine:
    from vllm_sparse.plan.machines import Machine, find_gpu, given

    known = find_gpu(args.gpu) if args.gpu else None
    if args.cpu:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        bandwidth, source = None, "memory of this machine"
        if args.bandwidth is None:
            from vllm_sparse.plan.scan import read_bandwidth

            bandwidth = read_bandwidth()
            source = "memory of this machine, bandwidth measured now"
        known = Machine("this CPU", "cpu", memory, bandwidth, None, source)
    return given(
        known,
        device="cpu" if args.cpu else "gpu",
        bandwidth=args.bandwidth,
        memory=args.memory,
        teraflops=args.tflops,
    )


def _plan(args: argparse.Namespace, machine: Machine) -> Any:
    from vllm_sparse.plan.estimate import Question, make_plan
    from vllm_sparse.plan.stored import read_model

    # Before anything that takes time.
    zeros = None
    if args.weight_sparsity is not None:
        zeros = parse_pattern(args.weight_sparsity).sparsity
    if args.activation_sparsity not in (None, OFF):
        parse_pattern(args.activation_sparsity)
    stored = read_model(args.model)
    config, origin = _sparsity(args, stored)
    if zeros is not None:
        origin += f"; weights {args.weight_sparsity}"
    longest = stored.text.get("max_position_embeddings")
    context = args.context or min(_CONTEXT, longest or _CONTEXT)
    question = Question(
        config=config,
        origin=origin,
        machine=machine,
        batches=list(dict.fromkeys(args.batch)),
        context=context,
        dtype=args.dtype,
        cache_dtype=args.kv_cache_dtype,
        zeros=zeros,
        ranks=args.tensor_parallel,
        shared_lists=args.shared_lists == AUTO,
        sparse_weights=args.sparse_weights or AUTO,
        dense_fallback=args.dense_fallback or KEEP,
        achieved=args.achieved[0],
        ours=args.achieved[-1],
        fixed=args.launch_us / 1e6,
        utilization=args.utilization,
    )
    return make_plan(stored, question)


def _sparsity(args: argparse.Namespace, stored: Stored) -> tuple[SparsityConfig, str]:
    """Return what is sparse, and where that was said."""
    from vllm_sparse.options import download_sidecar, resolve_options

    if args.activation_sparsity == OFF:
        return SparsityConfig(), "activations dense"
    options = {
        "activation_sparsity": args.activation_sparsity,
        "config_file": args.sparsity_config,
    }
    chosen = {name: value for name, value in options.items() if value is not None}
    download_sidecar(args.model)
    found = resolve_options(chosen, stored.folder)
    if found is None and (args.weight_sparsity or stored.quantized == QUANT_METHOD):
        return SparsityConfig(), "activations dense"
    if found is None:
        config = SparsityConfig.uniform(_EXAMPLE)
        origin = f"none was given, so {_EXAMPLE} is assumed"
    else:
        config, origin = found.config, found.source
    if args.sparsity_phase is not None:
        data = config.model_dump(mode="json") | {"phase": args.sparsity_phase}
        config = SparsityConfig.parse(data, source="--sparsity-phase")
    return config, f"{origin}; phase {config.phase.value}"
