"""``vllm-sparse serve``: vLLM's own parser and server, plus the sparsity flags.

Everything that can be wrong with the sparsity options is found here, before the engine
starts: first the options alone (no vLLM imported), then against the model's layers.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any

from nmsparse.config import ConfigError, Phase
from vllm_sparse.cli.execution import add_execution_arguments
from vllm_sparse.cli.parameters import read_parameters_of, refuse_as_weights
from vllm_sparse.compat import check_vllm, installed_vllm
from vllm_sparse.describe import WeightsRead, describe, describe_share
from vllm_sparse.execution import EXECUTION_KEYS
from vllm_sparse.options import (
    FOLDER,
    OPTIONS_KEY,
    SOURCE,
    Found,
    download_sidecar,
    local_model_folder,
    resolve_options,
)

if TYPE_CHECKING:
    from vllm.utils.argparse_utils import FlexibleArgumentParser

PROGRAM = "vllm-sparse serve"
OFF = "off"
_OUR_FLAGS = (
    "--activation_sparsity",
    "--sparsity_",
    "--dense_fallback",
    "--sparse_w",
    "--dense_w",
    "--sparse_s",
    "--shared_l",
    "--kernel_t",
)
_PLUGIN_GROUPS = (
    "vllm.general_plugins",
    "vllm.platform_plugins",
    "vllm.stat_logger_plugins",
    "vllm.io_processor_plugins",
)


def serve(arguments: Sequence[str]) -> int:
    """Check the options, then run vLLM's server until it ends.

    Args:
        arguments: what follows ``vllm-sparse serve``.

    Returns:
        0, 1 if the engine died, or 2 if the options cannot be used.
    """
    try:
        check_vllm(installed_vllm())
        _check_early(arguments)
        _prepare_environment()
        args, command = _parse(arguments)
        _activate(args)
    except (ConfigError, RuntimeError) as error:
        sys.stderr.write(f"{PROGRAM}: error: {error}\n")
        return 2
    from vllm.logger import configure_logging_from_args

    from vllm_sparse.serving.ending import ENDING

    configure_logging_from_args(args)
    command.validate(args)
    ENDING.always = True
    command.cmd(args)
    if ENDING.died:
        sys.stderr.write(
            f"{PROGRAM}: error: the engine died, so the server ended. The reason is in "
            "the log above.\n"
        )
    return int(ENDING.died)


def add_sparsity_arguments(parser: argparse.ArgumentParser) -> None:
    """Add our flags, as a group of their own."""
    group = parser.add_argument_group(
        "vllm-sparse", "Activation sparsity of linear layers (this plugin)."
    )
    group.add_argument(
        "--activation-sparsity",
        metavar="N:M",
        default=None,
        help="Keep N of every M consecutive input channels of each token in all "
        "decoder linears, for example 8:16 or 2:4; 50%% for unstructured; 'off' to "
        "ignore the model folder's sidecar.",
    )
    group.add_argument(
        "--sparsity-phase",
        choices=[phase.value for phase in Phase],
        default=None,
        help="Tokens to sparsify: those the model generates (decode, the default), the "
        "prompt's (prefill), or both.",
    )
    group.add_argument(
        "--sparsity-criterion",
        metavar="NAME",
        default=None,
        help="With --activation-sparsity: how channels are scored, for example "
        "magnitude (the default) or wina. Criteria with fitted parameters come with a "
        "folder that offline-prune calibrate makes.",
    )
    group.add_argument(
        "--sparsity-mitigation",
        metavar="NAME[,NAME]",
        default=None,
        help="With --activation-sparsity: what reduces the error of the selection, for "
        "example d_pts,var; those without fitted parameters.",
    )
    group.add_argument(
        "--sparsity-config",
        metavar="FILE",
        default=None,
        help="JSON configuration with targets and patterns per layer, the format of "
        "vllm_sparse_config.json. A model folder with that file needs no flag.",
    )
    add_execution_arguments(group)


def sparsity_options(args: argparse.Namespace) -> dict[str, Any] | None:
    """Return the flags as ``additional_config["vllm_sparse"]``; None if none is given.

    Raises:
        ConfigError: if two flags contradict each other.
    """
    pattern, file = args.activation_sparsity, args.sparsity_config
    if pattern is not None and file is not None:
        raise ConfigError(
            "--activation-sparsity and --sparsity-config are both given. Expected one: "
            "patterns per layer belong into the file."
        )
    if pattern == OFF:
        return {"enabled": False}
    online = {
        "--sparsity-criterion": args.sparsity_criterion,
        "--sparsity-mitigation": args.sparsity_mitigation,
    }
    for flag, value in online.items():
        if value is not None and pattern is None:
            raise ConfigError(
                f"{flag} is given without --activation-sparsity. Expected both: a "
                "configuration names criteria and mitigations for each of its groups."
            )
    options = {
        "activation_sparsity": pattern,
        "criterion": args.sparsity_criterion,
        "mitigation": args.sparsity_mitigation,
        "config_file": file,
        "phase": args.sparsity_phase,
        **{name: getattr(args, name) for name in EXECUTION_KEYS},
    }
    return {k: v for k, v in options.items() if v is not None} or None


def _check_early(arguments: Sequence[str]) -> None:
    """Refuse bad options at once, without the seconds vLLM's import takes."""
    parser = argparse.ArgumentParser(prog=PROGRAM, add_help=False, allow_abbrev=False)
    add_sparsity_arguments(parser)
    # vLLM's parser also accepts underscores.
    known, _ = parser.parse_known_args([_dashed(a) for a in arguments])
    options = sparsity_options(known)
    if options and (options.keys() - {"phase", *EXECUTION_KEYS}):
        found = resolve_options(options, None)
        if found is not None:
            read_parameters_of(found)


def _dashed(argument: str) -> str:
    flag, equals, value = argument.partition("=")
    if flag.startswith(_OUR_FLAGS):
        flag = flag.replace("_", "-")
    return flag + equals + value


def _prepare_environment() -> None:
    """Let vLLM load the endpoint plugin: it must be named in ``VLLM_PLUGINS``."""
    if "VLLM_PLUGINS" in os.environ:
        names = set(filter(None, os.environ["VLLM_PLUGINS"].split(",")))
    else:
        names = {
            point.name
            for group in _PLUGIN_GROUPS
            for point in metadata.entry_points(group=group)
        }
    # Whoever runs this command wants this plugin, whatever else is allowed.
    os.environ["VLLM_PLUGINS"] = ",".join(sorted(names | {"vllm_sparse"}))
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")


def _parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, Any]:
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser: FlexibleArgumentParser = FlexibleArgumentParser(prog="vllm-sparse")
    commands = parser.add_subparsers(required=True, dest="subparser")
    command = ServeSubcommand()
    serve_parser = command.subparser_init(commands)
    add_sparsity_arguments(serve_parser)
    args = parser.parse_args(["serve", *arguments])
    # ``vllm serve`` lets the positional model win over --model.
    if getattr(args, "model_tag", None):
        args.model = args.model_tag
    return args, command


def _activate(args: argparse.Namespace) -> None:
    """Resolve the configuration, check it against the model, and pass it to vLLM."""
    flags = sparsity_options(args)
    extra = dict(args.additional_config or {})
    if flags is not None and OPTIONS_KEY in extra:
        raise ConfigError(
            f"Sparsity is given both by flags and by --additional-config "
            f"{OPTIONS_KEY}. Expected one: remove the other."
        )
    options = flags if flags is not None else extra.get(OPTIONS_KEY)
    from vllm_sparse.cli.preflight import check_model, check_model_exists, check_packed

    check_model_exists(args.model)
    unknown = download_sidecar(args.model, args.revision, args.hf_token)
    folder = local_model_folder(args.model, args.revision)
    check_packed(args.model)
    found = resolve_options(options, folder)
    if found is None and any(name in (options or {}) for name in EXECUTION_KEYS):
        sys.stderr.write(
            f"{PROGRAM}: note: no sparsity is on, so --kernels, --dense-fallback and "
            "their like change nothing unless the model folder is packed\n"
        )
    if found is None and unknown:
        sys.stderr.write(f"{PROGRAM}: note: no sidecar was looked for: {unknown}\n")
    if found is None:
        if (
            flags is not None
        ):  # "off": every process must know, they see the sidecar too
            args.additional_config = extra | {OPTIONS_KEY: flags}
        return
    config = found.config
    parts = read_parameters_of(found)
    if found.folder is not None and found.folder == folder:
        refuse_as_weights(folder, config)
    read = check_model(config, args, parts)
    _tell(found, read)
    # Inline, so that every process uses what was checked here.
    given = options or {}
    chosen = {name: given[name] for name in EXECUTION_KEYS if name in given}
    inline = {"config": config.model_dump(mode="json"), SOURCE: found.source}
    if found.folder is not None:
        inline[FOLDER] = str(found.folder)
    extra[OPTIONS_KEY] = inline | chosen
    args.additional_config = extra


def _tell(found: Found, read: Sequence[WeightsRead]) -> None:
    config = found.config
    patterns = {
        str(group.activation.pattern)
        for group in config.groups.values()
        if group.activation
    }
    sys.stderr.write(
        f"{PROGRAM}: activation sparsity {', '.join(sorted(patterns)) or 'none'} "
        f"({describe(config)}), from {found.source}{describe_share(read)}\n"
    )
