"""A tokenizer for model folders without one: real prompts need some tokenizer.

It is trained on the prompts, and filled up so that every id a model may generate has a
text. What a random model says means nothing either way.
"""

from __future__ import annotations

import json
from pathlib import Path

import soak_load

_LEARNED = 2000


def find(model: Path, folder: Path) -> Path:
    """Return the folder of a model's tokenizer: its own, or one made in ``folder``."""
    if (model / "tokenizer.json").is_file():
        return model
    config = json.loads((model / "config.json").read_text("utf-8"))
    return make(folder / "tokenizer", int(config["vocab_size"]))


def make(folder: Path, size: int) -> Path:
    """Write a byte-level BPE tokenizer of ``size`` tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=min(_LEARNED, size),
        special_tokens=["<bos>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    raw.train_from_iterator(soak_load.prompts(), trainer)
    data = json.loads(raw.to_str())
    vocabulary = data["model"]["vocab"]
    vocabulary |= {f"<{i}>": i for i in range(len(vocabulary), size)}
    raw = Tokenizer.from_str(json.dumps(data))
    PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<bos>").save_pretrained(
        folder
    )
    return folder
