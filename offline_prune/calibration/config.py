"""Settings of the calibration data."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from offline_prune.options import Options

SYNTHETIC = "synthetic"

Bos = Literal["auto", "always", "never"]


class CalibrationConfig(Options):
    """What the model reads while its layers' inputs are measured.

    The defaults of number, length and seed are those of the papers (Wanda, SparseGPT,
    OWL: 128 windows of 2048 tokens); the papers read C4, which needs a network.
    """

    source: str = Field(
        default=SYNTHETIC,
        description="A .txt, .jsonl, .json or .parquet file; the id of a dataset of "
        "the Hub, such as allenai/c4; or synthetic: random tokens, for trials only.",
    )
    text_field: str = Field(default="text", description="Field of a row with a text.")
    messages_field: str = Field(
        default="messages",
        description="Field with a conversation, rendered by the chat template.",
    )
    tokens_field: str = Field(
        default="input_ids", description="Field with a list of token ids."
    )
    subset: str | None = Field(
        default=None, description="Configuration of a Hub dataset, such as en."
    )
    split: str = Field(default="train", description="Split of a Hub dataset.")
    num_samples: int = Field(default=128, ge=1, description="Number of windows.")
    seq_len: int = Field(default=2048, ge=2, description="Tokens of a window.")
    seed: int = Field(default=0, description="Chooses documents and windows.")
    bos: Bos = Field(
        default="auto",
        description="Whether a window begins with the beginning-of-sequence token: "
        "auto does what the tokenizer does with a text.",
    )
    joined: bool = Field(
        default=False,
        description="Cut windows from all documents joined, not from single documents "
        "that are long enough.",
    )
