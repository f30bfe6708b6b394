"""Settings that ``online.py`` compares: names to fields of ``CalibrateConfig``."""

from __future__ import annotations

from typing import Any

PATTERNS = ("2:4", "4:8", "8:16", "16:32", "50%", "12:16")
CRITERIA = ("clact", "amber_pruner", "wina", "second_order")
MITIGATIONS: tuple[tuple[str, ...], ...] = (
    ("d_pts",),
    ("d_pts_median",),
    ("s_pts",),
    ("l_pts",),
    ("var",),
    ("ls",),
    ("output_shift",),
    ("r_sparse",),
    ("d_pts", "var"),
    ("l_pts", "ls", "output_shift"),
)
BUDGETS = (0.3, 0.4, 0.5, 0.6, 0.75)
LOWER = 5

Settings = dict[str, dict[str, Any]]


def patterns() -> Settings:
    """Uniform patterns, by magnitude."""
    return {pattern: {"pattern": pattern} for pattern in PATTERNS}


def criteria() -> Settings:
    """Every criterion, with 8:16 and 2:4."""
    return {
        f"{pattern} {criterion}": {"pattern": pattern, "criterion": criterion}
        for pattern in ("8:16", "2:4")
        for criterion in CRITERIA
    }


def mitigations() -> Settings:
    """Mitigations and some combinations, with 8:16 and 2:4."""
    return {
        f"{pattern} {'+'.join(names)}": {"pattern": pattern, "mitigation": list(names)}
        for pattern in ("8:16", "2:4")
        for names in MITIGATIONS
    }


def groups() -> Settings:
    """Balanced groups beside consecutive ones and whole rows, all uniform."""
    return {
        f"{pattern} balanced": {"pattern": pattern, "balanced": True}
        for pattern in ("2:4", "8:16")
    }


def allocators() -> Settings:
    """Every allocator at half of the bytes."""
    profiles: Settings = {
        "uniform": {"allocator": "uniform"},
        "final": {"allocator": "final", "lower": LOWER},
        "final lower 1": {"allocator": "final"},
        "final not amplified": {"lower": LOWER, "amplification": 0.0},
        "block": {"allocator": "block", "lower": LOWER},
        "owl": {"allocator": "owl"},
        "owl+absorption": {"allocator": "owl", "correction": "absorption"},
        "dlp": {"allocator": "dlp"},
    }
    return {
        f"row {name} 0.5": {"budget": 0.5, "group": "row", **fields}
        for name, fields in profiles.items()
    } | {
        "16 balanced final 0.5": {
            "budget": 0.5,
            "group": "16",
            "balanced": True,
            "lower": LOWER,
        },
        "4 balanced final 0.5": {"budget": 0.5, "group": "4", "balanced": True},
    }


def budgets() -> Settings:
    """The curve: allocated and uniform rows, by share of bytes."""
    found: Settings = {}
    for budget in BUDGETS:
        if budget != 0.5:  # among the allocators
            found[f"row uniform {budget}"] = {"budget": budget, "allocator": "uniform"}
            lower = max(1, round(LOWER * budget / 0.5))
            found[f"row final {budget}"] = {"budget": budget, "lower": lower}
    return found


GROUPS = {
    "patterns": patterns,
    "criteria": criteria,
    "mitigations": mitigations,
    "groups": groups,
    "allocators": allocators,
    "budgets": budgets,
}
