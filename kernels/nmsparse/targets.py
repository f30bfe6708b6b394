"""Targets: which modules a rule applies to, in compressed-tensors syntax.

A target is a full module name (``model.layers.0.mlp.down_proj``), a regular expression
after ``re:`` (matched from the start of the name), or a class name (``Linear``,
``RowParallelLinear``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import IntEnum

from nmsparse.errors import printable
from nmsparse.expression import MAX_LENGTH, check_expression, matches

# The linears of decoder blocks: Llama, Qwen, Gemma, Mistral, Phi-3 and their kin; then
# OPT and GPT-J, GPT-2, MPT, GPT-NeoX/Falcon/BLOOM and Phi. Fused names are vLLM's.
DEFAULT_TARGETS = (
    r"re:.*\.(qkv_proj|q_proj|k_proj|v_proj|o_proj)$",
    r"re:.*\.(gate_up_proj|gate_proj|up_proj|down_proj)$",
    r"re:.*\.(out_proj|fc1|fc2|fc_in|fc_out)$",
    r"re:.*\.(c_attn|c_proj|c_fc)$",
    r"re:.*\.(Wqkv|W_pack|query_key_value|dense|dense_h_to_4h|dense_4h_to_h)$",
)

# What vLLM fuses in most models: these read one input, so they get one selection.
FUSED: Mapping[str, Sequence[str]] = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
}

# Never sparsified by an expression or a class, only by full name: heads and embeddings
# (they decide the output directly), MoE routers and experts, MLA's absorbed kv_b_proj
# (its weight is read without a forward), vision and audio towers, their projectors, and
# encoders (their rows are not tokens of the text).
NEVER_TARGETS = (
    r"re:(.*\.)?(lm_head|embed_tokens|score|classifier)$",
    r"re:.*\.(gate|router|shared_expert_gate)$",
    r"re:.*\.experts(\..*)?$",
    r"re:.*\.kv_b_proj$",
    r"re:(.*\.)?(vision|visual|audio|image|img|speech|siglip)[^.]*(\..*)?$",
    r"re:(.*\.)?[^.]*(encoder|tower|qformer|resampler)[^.]*\..*$",
    r"re:(.*\.)?(vit|vpm|apm|perceiver|abstractor)(\..*)?$",
    r"re:(.*\.)?(multi_modal_projector|mm_projector|connector|aligner)(\..*)?$",
)


class Specificity(IntEnum):
    """How exactly a target names a module; higher wins."""

    NONE = 0
    CLASS = 1
    REGEX = 2
    NAME = 3


def check_target(target: str) -> str:
    """Return ``target`` if its syntax is valid.

    Raises:
        ValueError: if it is empty, too long, or no regular expression that can be used.
    """
    shown = printable(target, limit=200)
    if not target.removeprefix("re:"):
        raise ValueError(
            "A target is empty. Expected a module name, a class name, or re:<regex>."
        )
    if target.startswith("re:"):
        try:
            check_expression(target.removeprefix("re:"))
        except ValueError as error:
            raise ValueError(
                f"Target '{shown}' is no valid regular expression ({error}). "
                "Escape literal characters, or give the full module name."
            ) from None
    elif len(target) > MAX_LENGTH or not target.isprintable():
        raise ValueError(
            f"Target '{shown}' is no name. Expected at most {MAX_LENGTH} printable "
            "characters: a module name or a class name."
        )
    return target


def match(target: str, name: str, class_names: Iterable[str]) -> Specificity:
    """Return how ``target`` matches a module, ``Specificity.NONE`` if it does not.

    Args:
        target: a target string.
        name: full name of the module.
        class_names: the module's class and base classes.

    Raises:
        ConfigError: if a regular expression takes too long.
    """
    if target.startswith("re:"):
        found = matches(target.removeprefix("re:"), name)
        return Specificity.REGEX if found else Specificity.NONE
    if target == name:
        return Specificity.NAME
    return Specificity.CLASS if target in class_names else Specificity.NONE


def best_match(
    targets: Sequence[str], name: str, class_names: Iterable[str]
) -> tuple[Specificity, str]:
    """Return the most specific match and its target (``""`` if none matches)."""
    best, winner = Specificity.NONE, ""
    for target in targets:
        found = match(target, name, class_names)
        if found > best:
            best, winner = found, target
    return best, winner
