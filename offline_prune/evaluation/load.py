"""Open a model folder for evaluation: dense, pruned or packed."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nmsparse.packed_manifest import QUANT_METHOD
from offline_prune.errors import InputError
from offline_prune.packing.config_text import KEY
from offline_prune.packing.folder import ModelFolder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready to evaluate.

    Attributes:
        model: in evaluation mode.
        tokenizer: None if the folder has none.
        packed: whether the folder was packed.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    packed: bool


def load_model(
    folder: str | Path, *, dtype: str = "auto", device: str = "cpu"
) -> LoadedModel:
    """Load a folder with transformers; a packed one is unpacked for the time it takes.

    Both models of a comparison should be loaded here, so that they run on one backend:
    serving engines differ from transformers by as much as light pruning does.

    Args:
        folder: a Hugging Face model folder.
        dtype: ``auto`` for the folder's own, or a name such as ``float32``.
        device: where the model runs.

    Raises:
        InputError: if the folder cannot be loaded.
    """
    source = ModelFolder.open(Path(folder))
    quantization = source.config.get(KEY)
    packed = (
        isinstance(quantization, dict)
        and quantization.get("quant_method") == QUANT_METHOD
    )
    if not packed:
        model = _load(source.path, source.path, dtype)
    else:
        from offline_prune.packing.convert import unpack

        with tempfile.TemporaryDirectory(prefix="offline-prune-") as temporary:
            dense = unpack(source.path, output=Path(temporary) / "dense").folder
            model = _load(dense, source.path, dtype)
            # Here, while the files exist: weights may still be mapped from them.
            model = model.to(device)
    return LoadedModel(model.to(device).eval(), _tokenizer(source.path), packed)


def _load(path: Path, named: Path, dtype: str) -> Any:
    from transformers import AutoModelForCausalLM

    try:
        return AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise InputError(
            f"Model folder {named}: transformers cannot load it ({_first(error)}). "
            "Expected a causal language model it knows: check config.json, or upgrade "
            "transformers."
        ) from error


def _tokenizer(path: Path) -> Any:
    if not any((path / name).is_file() for name in _TOKENIZER_FILES):
        return None
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise InputError(
            f"Model folder {path}: its tokenizer cannot be loaded ({_first(error)}). "
            "Expected the files of the base model's tokenizer: copy them again."
        ) from error


def _first(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
