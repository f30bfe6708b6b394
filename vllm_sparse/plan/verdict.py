"""A plan in words: under which assumptions, where it pays, and where not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vllm_sparse.plan.cache import states_beside
from vllm_sparse.plan.results import Memory, Step
from vllm_sparse.plan.steps import Rank, Setting
from vllm_sparse.plan.stored import Stored
from vllm_sparse.plan.traffic import MAX_TOKENS

# Below this a ceiling is no reason to do anything: noise between two engines is more.
_WORTH = 1.05
_LARGE = 0.2


def assumptions(
    stored: Stored, rank: Rank, setting: Setting, utilization: float
) -> tuple[str, ...]:
    """Return what the numbers rest on.

    Args:
        stored: the model.
        rank: the shares of everything.
        setting: how a step is run.
        utilization: share of the memory that vLLM takes.
    """
    return tuple(_assumptions(stored, rank, setting, utilization))


def _assumptions(
    stored: Stored, rank: Rank, setting: Setting, utilization: float
) -> Iterator[str]:
    machine = setting.machine
    yield (
        "A model of bytes, a ceiling and not a measurement. Attention, norms, "
        "sampling, launches and communication take time too."
    )
    if machine.device == "gpu":
        yield "The plugin's GPU kernels have not been measured on a GPU."
    if setting.achieved == setting.ours:
        yield (
            "The plugin's kernels and vLLM's reach the same share of the bandwidth: "
            f"{setting.ours:.0%}."
        )
    else:
        yield (
            f"vLLM's kernels reach {setting.achieved:.0%} of the bandwidth and the "
            f"plugin's {setting.ours:.0%}, as given."
        )
    if machine.flops is None:
        few = " On a CPU it limits steps of a few tokens." * (machine.device == "cpu")
        yield f"Arithmetic is not counted: --tflops is not given.{few}"
    unknown = sum(not layer.elements for layer in rank.layers)
    if unknown:
        yield (
            f"{unknown} layers: headers do not tell the shapes of their quantized "
            "weights. Their bytes are counted, their arithmetic is not."
        )
    listed = any(setting.holds(layer).listed for layer in rank.layers)
    if listed and not setting.shared_lists:
        yield (
            "Tokens of a step keep channels independently of each other: the union law "
            "1 - (1 - N/M)^T. Real tokens share channels, so a step may read less."
        )
    if setting.shared_lists:
        yield (
            "From 3 to 16 tokens one list is shared: its quality was not measured, and "
            "a token's result depends on its neighbours."
        )
    if rank.experts.nbytes:
        yield "Tokens choose experts independently and uniformly."
    if machine.memory:
        yield (
            f"vLLM takes {utilization:.0%} of the memory; activations and graphs are "
            "not counted."
        )
    if stored.text.get("num_kv_shared_layers"):
        yield "Layers that share a KV cache are counted as if each had its own."
    if states_beside(stored.text):
        yield "States of layers without attention are not counted."


def verdict(
    rank: Rank,
    setting: Setting,
    steps: Sequence[Step],
    memory: Memory,
    limit: float | None,
) -> tuple[str, ...]:
    """Return where sparsity pays and where not.

    Args:
        rank: the shares of everything.
        setting: how a step is run.
        steps: of the plan.
        memory: of the plan.
        limit: tokens from which arithmetic is the limit; None if not known.
    """
    lines = [*_obstacles(rank, setting)]
    lines += [_of_step(step, rank, setting) for step in steps]
    if limit is not None:
        lines.append(
            f"From about {limit:,.0f} tokens a step on, arithmetic limits dense linear "
            "layers, and bytes saved save no time."
        )
    lines += _shares(steps[0])
    lines += _room(setting, memory)
    return tuple(lines)


def _obstacles(rank: Rank, setting: Setting) -> Iterator[str]:
    if not setting.decode:
        yield "Phase prefill: generated tokens are dense, so decoding gains nothing."
    reasons = dict.fromkeys(x.no_kernel for x in rank.layers if x.no_kernel)
    for reason in reasons:
        count = sum(layer.no_kernel == reason for layer in rank.layers)
        yield (
            f"{count} layers ({reason}): no kernel of the plugin takes them. They "
            "select and then read the whole weight: no gain, and extra work."
        )
    if rank.experts.nbytes:
        yield "Experts stay dense: vLLM runs them in fused kernels."
    few = [x for x in rank.layers if x.zeros > 0 and not setting.holds(x).packed]
    if few:
        yield f"{len(few)} layers have too few zeros to be held packed."


def _of_step(step: Step, rank: Rank, setting: Setting) -> str:
    about = f"Batch {step.tokens}"
    if step.share_read is None:
        return f"{about}: nothing is read sparse."
    if step.tokens > MAX_TOKENS:
        return (
            f"{about}: above {MAX_TOKENS} tokens a step the product is vLLM's dense "
            "one: no gain, and on a CPU the selection is extra work."
        )
    read = percent(step.share_read)
    what = " and ".join(_patterns(rank, setting))
    said = f"{about}: {what} reads {read} of the bytes of its layers"
    if step.bound == "arithmetic":
        return f"{said}, but arithmetic is the limit: no gain."
    if step.ceiling < _WORTH:
        return f"{said}: no gain ({step.ceiling:.2f}x at best)."
    return f"{said}: up to {step.ceiling:.2f}x."


def _patterns(rank: Rank, setting: Setting) -> list[str]:
    held = [(layer, setting.holds(layer)) for layer in rank.layers]
    found = dict.fromkeys(str(x.pattern) for x, kept in held if kept.listed)
    words = [next(iter(found))] if len(found) == 1 else ["N:M"] * bool(found)
    return words + ["packing"] * any(kept.packed for _, kept in held)


def percent(share: float) -> str:
    """Return a share, with digits enough not to round up to all of it."""
    digits = 0
    while digits < 5 and share < 1 and round(100 * share, digits) >= 100:
        digits += 1
    return f"{100 * share:.{max(digits, 1)}f} %"


def _shares(step: Step) -> Iterator[str]:
    """Say what else a step reads, if it is much."""
    dense = {part.kind: part.share for part in step.parts if not part.sparsity}
    names = {
        "head": "The head",
        "kv cache": "The KV cache",
        "experts": "The experts",
    }
    for kind, name in names.items():
        if dense.get(kind, 0) >= _LARGE:
            yield (
                f"{name}: {dense[kind]:.0%} of what a dense step reads at batch "
                f"{step.tokens}, and out of reach of any pattern."
            )


def _room(setting: Setting, memory: Memory) -> Iterator[str]:
    if memory.free is None:
        return
    if memory.free < 0:
        yield (
            f"The weights do not fit: {-memory.free / 1e9:.1f} GB are missing. Take a "
            "larger machine, or --tensor-parallel."
        )
        return
    if memory.sequences is None:
        return
    yield (
        f"{memory.sequences:,} sequences of {setting.context:,} tokens fit beside the "
        "weights."
    )
