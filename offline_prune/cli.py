"""The command ``offline-prune``: flags are the fields of these models, no logic."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    CliApp,
    CliSubCommand,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    get_subcommand,
)
from rich.console import Console

from nmsparse.config import ConfigError
from nmsparse.packed_manifest import PackedFormatError
from offline_prune.commands.annotate import Annotate
from offline_prune.commands.calibrate import Calibrate
from offline_prune.commands.embedded_model import EmbeddedModel
from offline_prune.commands.evaluate import Evaluate
from offline_prune.commands.methods import MethodsCommand
from offline_prune.commands.packing import Pack, Unpack
from offline_prune.commands.report import Report
from offline_prune.commands.run import Run
from offline_prune.commands.verify import Verify
from offline_prune.errors import InputError, UserError

USER_ERROR = 2
INTERRUPTED = 130


class OfflinePrune(BaseSettings):
    """Prepare Hugging Face models for sparse serving with vLLM."""

    model_config = SettingsConfigDict(
        cli_prog_name="offline-prune",
        cli_kebab_case=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
    )

    run: CliSubCommand[Run] = Field(description="prune a model")
    calibrate: CliSubCommand[Calibrate] = Field(
        description="fit online activation sparsity, by pattern or byte budget"
    )
    verify: CliSubCommand[Verify] = Field(
        description="check patterns, budget and hashes of a pruned folder"
    )
    eval: CliSubCommand[Evaluate] = Field(
        description="perplexity, agreement with the dense model, zero-shot tasks"
    )
    report: CliSubCommand[Report] = Field(
        description="write report, pictures and model card anew"
    )
    methods: CliSubCommand[MethodsCommand] = Field(
        description="list scorers, allocators and compensations, with their papers"
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
                "No sub-command given. Expected run, calibrate, verify, eval, report, "
                "methods, embedded-model, annotate, pack or unpack: see offline-prune "
                "--help"
            )
        CliApp.run_subcommand(self)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments without the program's name; those of the process by default.

    Returns:
        Exit code: 0, 2 for an error the user can mend, 130 after Ctrl-C.
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
    except KeyboardInterrupt:
        _fail("interrupted. A pruning run goes on when its command is repeated.")
        return INTERRUPTED
    return 0


def _describe(error: ErrorDetails) -> str:
    """Return ``offline-prune <command> --flag: message``."""
    command, *flags = (str(part).replace("_", "-") for part in error["loc"])
    flag = " ".join(f"--{name}" for name in flags)
    return f"offline-prune {command} {flag}: {error['msg']}. See --help."


def _fail(message: str) -> int:
    """Print an error without a traceback and return the exit code."""
    Console(stderr=True).print(
        f"error: {message}", markup=False, highlight=False, soft_wrap=True
    )
    return USER_ERROR
