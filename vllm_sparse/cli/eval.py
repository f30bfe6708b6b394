"""``vllm-sparse eval``: perplexity, decode fidelity and tasks through the engine.

Whatever can be wrong with the input is found before the first engine starts.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nmsparse.config import Phase
from nmsparse.json_text import parse_json
from vllm_sparse.compat import check_vllm, installed_vllm
from vllm_sparse.execution import CHOICES

if TYPE_CHECKING:
    from vllm_sparse.evaluation.evaluate import Mode, Plan

PROGRAM = "vllm-sparse eval"
_SAME = ""


def evaluate(arguments: Sequence[str]) -> int:
    """Measure a model.

    Args:
        arguments: what follows ``vllm-sparse eval``.

    Returns:
        0, or 2 if the input cannot be used.
    """
    args = _parser().parse_args(list(arguments))
    try:
        check_vllm(installed_vllm())
        _check(args)
        _prepare_environment()
        plan = _plan(args)
    except (ValueError, RuntimeError, OSError) as error:
        sys.stderr.write(f"{PROGRAM}: error: {error}\n")
        return 2
    from vllm_sparse.evaluation.evaluate import evaluate as measure
    from vllm_sparse.evaluation.evaluate import record, write

    found = []
    for mode in measure(plan):
        found.append(mode)
        sys.stdout.write("".join(f"{line}\n" for line in describe(mode)))
        sys.stdout.flush()
        if args.output is not None:  # what is done is kept, whatever comes
            write(args.output, record(plan, found))
    return 0


def describe(mode: Mapping[str, Any]) -> list[str]:
    """Return the results of one mode as lines for people."""
    numbers = {k: v for k, v in mode.items() if isinstance(v, float | int)}
    lines = [f"{mode['mode']}:"]
    lines += [f"  {name.replace('_', ' ')} {v:.6g}" for name, v in numbers.items()]
    for task, metrics in mode.get("tasks", {}).items():
        lines += [f"  {task} {name} {v:.4f}" for name, v in metrics.items()]
    return lines


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=PROGRAM, description=__doc__)
    add = parser.add_argument
    add("model", metavar="MODEL", help="a folder or a Hugging Face id")
    add("--text", type=Path, metavar="FILE", help="text: .txt, .raw or .jsonl")
    add("--text-name", help="what the results call the text; the file's name")
    add("--seq-len", type=int, default=512, help="tokens in a window (512)")
    add("--windows", type=int, default=None, help="at most so many windows")
    add(
        "--continuation-tokens",
        type=int,
        default=32,
        help="with --dense: tokens the dense engine generates after the first half of "
        "every window, along which the sparse one is forced; 0 for none (32)",
    )
    add(
        "--phase",
        nargs="+",
        choices=[phase.value for phase in Phase],
        default=[Phase.BOTH.value],
        help="tokens to sparsify; one engine for each (both)",
    )
    add(
        "--dense",
        nargs="?",
        const=_SAME,
        metavar="MODEL",
        help="also measure a dense engine, and how far the others are from it: the "
        "same model without activation sparsity, or another one",
    )
    add("--activation-sparsity", metavar="N:M", help="instead of the sidecar")
    add("--criterion", help="with --activation-sparsity: how channels are ranked")
    add("--mitigation", help="with --activation-sparsity: names, with commas")
    add("--sparsity-config", metavar="FILE", help="instead of the sidecar")
    add("--tasks", nargs="+", metavar="TASK", help="tasks of lm-eval (extra eval)")
    add("--task-data", type=Path, metavar="DIR", help="TASK/*.jsonl, for no network")
    add("--limit", type=int, default=None, help="at most so many examples a task")
    add("--output", type=Path, metavar="FILE", help="write the results as JSON")
    add(
        "--engine-args",
        type=_object,
        default={},
        metavar="JSON",
        help='further arguments of vLLM\'s LLM, for example \'{"dtype": "float32"}\'',
    )
    for name, values in CHOICES.items():
        add(f"--{name.replace('_', '-')}", choices=values, help="as in serve")
    return parser


def _object(text: str) -> dict[str, Any]:
    try:
        found = parse_json(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON object")
    return found


def _check(args: argparse.Namespace) -> None:
    """Refuse what needs nothing but the arguments to be known as wrong.

    Raises:
        ValueError: naming the flag.
    """
    if args.text is None and not args.tasks:
        raise ValueError(
            "Nothing to measure. Expected a text or tasks: --text FILE or --tasks piqa."
        )
    for name, least in (("seq_len", 4), ("windows", 1), ("limit", 1)):
        value = getattr(args, name)
        if value is not None and value < least:
            flag = f"--{name.replace('_', '-')}"
            raise ValueError(f"{flag} is {value}. Expected {least} or more.")
    if args.continuation_tokens < 0 or args.continuation_tokens == 1:
        raise ValueError(
            f"--continuation-tokens is {args.continuation_tokens}. Expected 0, or 2 or "
            "more: the first one is predicted at the prompt."
        )
    if args.tasks and set(args.phase) == {Phase.DECODE.value}:
        raise ValueError(
            "--tasks with --phase decode: tasks score prompts, which stay dense then. "
            "Expected phase both or prefill as well, or no tasks."
        )
    if args.activation_sparsity is not None and args.sparsity_config is not None:
        raise ValueError(
            "--activation-sparsity and --sparsity-config are both given. Expected one."
        )
    if args.output is not None and not args.output.parent.is_dir():
        raise ValueError(
            f"--output {args.output}: {args.output.parent} does not exist. Expected a "
            "file in an existing folder."
        )


def _plan(args: argparse.Namespace) -> Plan:
    """Read and check everything.

    Raises:
        ValueError: naming the input.
        RuntimeError: if something is not installed.
    """
    from vllm_sparse.cli.preflight import check_model_exists
    from vllm_sparse.evaluation.evaluate import Plan
    from vllm_sparse.evaluation.tasks import load_tasks
    from vllm_sparse.evaluation.texts import cut, read_text

    text = read_text(args.text) if args.text is not None else None
    check_model_exists(args.model)
    modes, source = _modes(args)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    windows = None
    if text is not None:
        windows = cut(text, tokenizer, seq_len=args.seq_len, limit=args.windows)
    return Plan(
        model=args.model,
        modes=modes,
        tokenizer=tokenizer,
        windows=windows,
        text_name=args.text_name or (args.text.name if args.text else ""),
        continuation_tokens=args.continuation_tokens if args.dense is not None else 0,
        tasks=load_tasks(args.tasks, args.task_data) if args.tasks else (),
        limit=args.limit,
        engine=args.engine_args,
        source=source,
    )


def _modes(args: argparse.Namespace) -> tuple[list[Mode], str]:
    """Return the engines, and where the sparsity comes from."""
    from vllm_sparse.evaluation.engine import DENSE
    from vllm_sparse.evaluation.evaluate import Mode
    from vllm_sparse.options import (
        download_sidecar,
        local_model_folder,
        resolve_options,
    )

    options = {
        "activation_sparsity": args.activation_sparsity,
        "criterion": args.criterion,
        "mitigation": args.mitigation,
        "config_file": args.sparsity_config,
        **{name: getattr(args, name) for name in CHOICES},
    }
    given = {name: value for name, value in options.items() if value is not None}
    download_sidecar(args.model)
    found = resolve_options(given, local_model_folder(args.model))
    modes = []
    if args.dense is not None:
        modes.append(Mode("dense", args.dense or args.model, DENSE))
    if found is not None:
        modes += [
            Mode(phase, args.model, given | {"phase": phase})
            for phase in dict.fromkeys(args.phase)
        ]
    if not modes:
        raise ValueError(
            f"Model {args.model!r} has no sidecar, and no sparsity is given. Expected "
            "--activation-sparsity 8:16, a calibrated folder, or --dense alone."
        )
    return modes, "none" if found is None else found.source


def _prepare_environment() -> None:
    """Run engines in this process; the plugin must be among those vLLM loads."""
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    # Results alone go to standard output.
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    if "VLLM_PLUGINS" in os.environ:
        names = set(filter(None, os.environ["VLLM_PLUGINS"].split(",")))
        os.environ["VLLM_PLUGINS"] = ",".join(sorted(names | {"vllm_sparse"}))
