"""A plan as tables for people to read."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator

from rich import box
from rich.console import Console
from rich.table import Table

from vllm_sparse.plan.results import Memory, Part, Plan, Step
from vllm_sparse.plan.verdict import percent

_WIDTH = 88
_GB = 1e9


def show(plan: Plan) -> str:
    """Return a plan as lines of text."""
    first = plan.steps[0]
    rank = ", one rank" if plan.tensor_parallel > 1 else ""
    about = f"A step of batch {first.tokens}, {plan.context:,} tokens each{rank}"
    lines = [*_wrapped(_head(plan)), ""]
    lines += [about, *_lines(_parts(first)), ""]
    lines += [*_lines(_steps(plan)), ""]
    lines += [*_memory(plan.memory, plan), ""]
    lines += [*_wrapped(f"- {line}" for line in plan.verdict), ""]
    lines += [*_wrapped(f"- {line}" for line in plan.assumptions), ""]
    return "\n".join(lines)


def _wrapped(lines: Iterable[str]) -> Iterator[str]:
    """Yield lines of a terminal's width; names of models and files stay whole."""
    for line in lines:
        yield from textwrap.wrap(
            line,
            _WIDTH,
            subsequent_indent="  ",
            break_long_words=False,
            break_on_hyphens=False,
        )


def _lines(table: Table) -> list[str]:
    """Return a table as lines without spaces at their ends, and without empty ones."""
    console = Console(width=200, color_system=None, force_terminal=False)
    with console.capture() as captured:
        console.print(table)
    return [line.rstrip() for line in captured.get().splitlines() if line.strip()]


def _head(plan: Plan) -> Iterator[str]:
    count = "quantized" if plan.parameters is None else _billions(plan.parameters)
    yield f"{plan.model}: {count}, {plan.dtype}; shapes from {plan.shapes}"
    yield f"sparsity: {plan.sparsity}"
    machine = plan.machine
    about = []
    if machine.memory:
        about.append(f"{machine.memory / _GB:,.0f} GB")
    if machine.bandwidth:
        about.append(f"{machine.bandwidth / _GB:,.0f} GB/s")
    if machine.flops:
        about.append(f"{machine.flops / 1e12:,.0f} TFLOPS")
    ranks = f"{plan.tensor_parallel} x " if plan.tensor_parallel > 1 else ""
    source = f" ({machine.source})" if machine.source else ""
    numbers = ", ".join(about) or "bandwidth not given"
    yield f"on {ranks}{machine.name}: {numbers}{source}"


def _billions(count: int) -> str:
    if count >= 10**9:
        return f"{count / 1e9:.2f} B parameters"
    return f"{count / 1e6:.1f} M parameters"


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        left = name in ("part", "sparsity")
        table.add_column(name, justify="left" if left else "right", no_wrap=True)
    return table


def _parts(step: Step) -> Table:
    table = _table("part", "layers", "K x O", "sparsity", "dense", "sparse", "share")
    for part in step.parts:
        table.add_row(*_part(part))
    table.add_section()
    dense, sparse = _bytes(step.dense_bytes), _bytes(step.sparse_bytes)
    table.add_row("step", "", "", "", dense, sparse, "100.0%")
    return table


def _part(part: Part) -> tuple[str, ...]:
    size = f"{part.in_features}x{part.out_features}" if part.in_features else ""
    return (
        part.kind,
        str(part.layers or ""),
        size,
        part.sparsity,
        _bytes(part.dense_bytes),
        _bytes(part.sparse_bytes),
        f"{part.share:.1%}",
    )


def _steps(plan: Plan) -> Table:
    timed = plan.steps[0].dense_seconds is not None
    names = ["batch", "dense", "sparse", "read of layers", "ceiling"]
    if timed:
        names += ["tokens/s, dense", "sparse", "bound by"]
    table = _table(*names)
    for step in plan.steps:
        read = "" if step.share_read is None else percent(step.share_read)
        cells = [str(step.tokens), _bytes(step.dense_bytes), _bytes(step.sparse_bytes)]
        cells += [read, f"{step.ceiling:.2f}x"]
        if timed:
            cells += [
                f"{step.dense_tokens_per_second or 0:,.0f}",
                f"{step.sparse_tokens_per_second or 0:,.0f}",
                step.bound,
            ]
        table.add_row(*cells)
    return table


def _memory(memory: Memory, plan: Plan) -> Iterator[str]:
    place = "of one rank" if plan.tensor_parallel > 1 else ""
    yield f"Memory {place}".strip()
    yield f"  weights           {_bytes(memory.weights)}"
    if memory.copies:
        yield f"  our copies        {_bytes(memory.copies)}"
    elif plan.machine.device == "gpu":
        yield "  our copies        none: rows are the weight in another order"
    if memory.freed:
        yield f"  vLLM's, dropped   {_bytes(-memory.freed)}"
    yield f"  all               {_bytes(memory.total)}"
    yield f"  KV cache, a token {_bytes(memory.kv_token)}"
    yield f"  KV cache of {plan.context:,}  {_bytes(memory.kv_sequence)}"
    if memory.free is not None and memory.free > 0:
        # A model without attention has no cache that could be full.
        fit = "" if memory.tokens is None else f": {memory.tokens:,} tokens"
        yield f"  left for it       {_bytes(memory.free)}{fit}"


def _bytes(count: float) -> str:
    """Return a size in decimal units."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(count) >= size:
            return f"{count / size:,.2f} {unit}"
    return f"{count:,.0f} B"
