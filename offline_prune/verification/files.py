"""Files of a pruned folder against the hashes of ``results.json``."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from offline_prune.checksum import sha256_of
from offline_prune.report.results import RESULTS_NAME, Results

_WEIGHTS = ".safetensors"


def file_problems(
    folder: Path, results: Results, *, rewritten: Collection[str] = ()
) -> list[str]:
    """Return one sentence for each file that is missing, changed or unknown.

    Args:
        folder: the pruned folder.
        results: its results.
        rewritten: recorded files whose content may differ.
    """
    problems, present = [], []
    for name, expected in results.files.items():
        if _leaves(name):
            problems.append(
                f"{RESULTS_NAME} lists the file {name!r}, which is not inside the "
                "folder. Expected names relative to it."
            )
        elif not (folder / name).is_file():
            problems.append(
                f"{name} is missing. Expected it, as {RESULTS_NAME} lists it: copy the "
                "folder again."
            )
        elif name not in rewritten:
            present.append((name, expected))
    problems += _changed(folder, present)
    recorded = {name for name in results.files if name.endswith(_WEIGHTS)}
    if recorded and not recorded & set(rewritten):
        found = {path.name for path in folder.glob(f"*{_WEIGHTS}")}
        problems += [
            f"{name} is not listed in {RESULTS_NAME}. Expected no other weight files: "
            "remove it, or prune the model again."
            for name in sorted(found - recorded)
        ]
    return problems


def _changed(folder: Path, files: list[tuple[str, str]]) -> list[str]:
    """Return a sentence for each file with another hash."""
    problems = []
    total = sum((folder / name).stat().st_size for name, _ in files)
    # disable=None: no bar where nobody watches (not a terminal).
    with tqdm(
        total=total, desc="Hashes", unit="B", unit_scale=True, disable=None
    ) as progress:
        for name, expected in files:
            found = sha256_of(folder / name, advance=progress.update)
            if found != expected.lower():
                problems.append(
                    f"{name} was changed: its SHA-256 is {found[:12]}.... Expected "
                    f"{expected[:12]}..., as in {RESULTS_NAME}."
                )
    return problems


def _leaves(name: str) -> bool:
    """Return whether a name in an edited ``results.json`` leads out of the folder."""
    path = PurePosixPath(name)
    return path.is_absolute() or ".." in path.parts or not path.parts
