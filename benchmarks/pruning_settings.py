"""Settings that ``pruning.py`` compares: names to fields of ``PruneConfig``."""

from __future__ import annotations

from typing import Any

SHARES = ("50%", "60%", "70%")
PATTERNS = ("2:4", "4:8", "8:16")
SCORERS = ("magnitude", "wanda", "ria", "cvr", "sparsegpt")

Settings = dict[str, dict[str, Any]]


def budget(text: str) -> dict[str, Any]:
    """Return the fields of ``50%`` or ``2:4``."""
    if text.endswith("%"):
        return {"sparsity": float(text[:-1]) / 100}
    return {"pattern": text}


def scorers() -> Settings:
    """Every scorer at every budget, uniform."""
    return {
        f"{scorer} {target}": {"scorer": scorer, **budget(target)}
        for target in (*SHARES, *PATTERNS)
        for scorer in SCORERS
    }


def allocations() -> Settings:
    """Every allocator, correction and channel method on Wanda, at 60% and 70%."""
    methods: dict[str, dict[str, Any]] = {
        "owl": {"allocator": "owl"},
        "owl+absorption": {"allocator": "owl", "correction": "absorption"},
        "alpha_pruning": {"allocator": "alpha_pruning"},
        "alpha_pruning+absorption": {
            "allocator": "alpha_pruning",
            "correction": "absorption",
        },
        "dlp": {"allocator": "dlp"},
        # Four slopes and the uniform one, each a run of its own.
        "atp": {"allocator": "atp", "allocator_options": {"trials": 4}},
        "ogas": {"channels": "ogas"},
        "owl+ogas": {"allocator": "owl", "channels": "ogas"},
    }
    return {
        f"wanda {name} {target}": {"scorer": "wanda", **fields, **budget(target)}
        for target in ("60%", "70%")
        for name, fields in methods.items()
    }


def compensations() -> Settings:
    """What is done to the kept weights, on Wanda and CVR."""
    methods: dict[str, dict[str, Any]] = {
        "energy": {"compensation": ["energy"]},
        "output_energy": {"compensation": ["output_energy"]},
        "least_squares": {"compensation": ["least_squares"]},
        "mean_shift": {"compensation": ["mean_shift"], "bias": "available"},
        "least_squares+mean_shift": {
            "compensation": ["least_squares", "mean_shift"],
            "bias": "available",
        },
        "reconstruct": {"scorer_options": {"reconstruct": True}},
    }
    return {
        f"{scorer} {name} {target}": {"scorer": scorer, **fields, **budget(target)}
        for target in ("50%", "2:4")
        for scorer in ("wanda", "cvr")
        for name, fields in methods.items()
    } | {
        "wanda permutation 2:4": {"pattern": "2:4", "permutation": True},
        "ria permutation 2:4": {
            "scorer": "ria",
            "pattern": "2:4",
            "permutation": True,
        },
    }


def seeds() -> Settings:
    """New methods and their baselines, for the spread over calibration seeds."""
    names = {f"{s} 50%": {"scorer": s, "sparsity": 0.5} for s in SCORERS[1:]}
    chosen = {**allocations(), **compensations()}
    names["wanda 70%"] = {"scorer": "wanda", "sparsity": 0.7}
    for method in (
        "owl",
        "owl+absorption",
        "alpha_pruning",
        "alpha_pruning+absorption",
        "ogas",
    ):
        names[f"wanda {method} 70%"] = chosen[f"wanda {method} 70%"]
    for method in ("energy", "least_squares"):
        names[f"cvr {method} 50%"] = chosen[f"cvr {method} 50%"]
    return names


GROUPS = {
    "scorers": scorers,
    "allocations": allocations,
    "compensations": compensations,
    "seeds": seeds,
}
