"""docs/reference/cli.md: our options of every command, from the parsers themselves."""

from __future__ import annotations

import argparse
import importlib.util
import re
from collections.abc import Iterator
from unittest.mock import patch

from pydantic_settings import CliSettingsSource

from offline_prune.cli import OfflinePrune
from vllm_sparse import cli
from vllm_sparse.cli.serve import add_sparsity_arguments

_HEAD = """\
# Commands

<!-- Made by docs/site/reference.py from the parsers. Do not edit. -->

Our own options. Those of vLLM's server are in `vllm-sparse serve --help`. Wrong values
end with status 2 and one message that says what was expected.
"""


class _Parsed(Exception):
    """Carries the parser of a command that was about to parse."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self.parser = parser


def page() -> str:
    """Return the whole page."""
    parts = [_HEAD, "## vllm-sparse\n", *_vllm_sparse()]
    parts += ["## offline-prune\n", *_offline_prune()]
    return "\n".join(parts)


def _vllm_sparse() -> Iterator[str]:
    serve = argparse.ArgumentParser(prog="vllm-sparse serve", add_help=False)
    add_sparsity_arguments(serve)
    serve.description = "The server of vLLM with its own flags, and these."
    yield _section(serve, "vllm-sparse serve MODEL")
    for name in ("eval", "doctor", "plan"):
        if importlib.util.find_spec(f"vllm_sparse.cli.{name}"):
            parser = _parser(name)
            if parser is not None:
                yield _section(parser, f"vllm-sparse {name}")


def _parser(name: str) -> argparse.ArgumentParser | None:
    """Return the parser that a command makes when it is called; None if none."""

    def stop(self: argparse.ArgumentParser, *_: object, **__: object) -> None:
        raise _Parsed(self)

    with (
        patch.object(argparse.ArgumentParser, "parse_args", stop),
        patch("sys.stderr"),
    ):
        try:
            cli.main([name])
        except _Parsed as found:
            return found.parser
    return None


def _offline_prune() -> Iterator[str]:
    config = OfflinePrune.model_config
    source = CliSettingsSource(
        OfflinePrune,
        cli_prog_name="offline-prune",
        cli_kebab_case=config["cli_kebab_case"],
        cli_hide_none_type=config["cli_hide_none_type"],
        cli_avoid_json=config["cli_avoid_json"],
        cli_parse_args=False,
    )
    for action in source.root_parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, parser in action.choices.items():
                yield _section(parser, f"offline-prune {name}")


def _section(parser: argparse.ArgumentParser, title: str) -> str:
    actions = [action for action in parser._actions if action.dest != "help"]
    if " MODEL" not in title:
        names = [_plain(a) for a in actions if not a.option_strings]
        title = " ".join([title, *names])
    about = " ".join((parser.description or "").replace("``", "`").split())
    about = re.sub(r"^`[\w -]+`: ", "", about)
    about = about[:1].upper() + about[1:]
    lines = [
        f"### {title}",
        "",
        about,
        "",
        "| option | value | meaning |",
        "|---|---|---|",
    ]
    return "\n".join([*lines, *(_row(action) for action in actions), ""])


def _plain(action: argparse.Action) -> str:
    name = str(action.metavar or action.dest).upper()
    return f"[{name}]" if action.nargs == "?" else name


def _row(action: argparse.Action) -> str:
    names = ", ".join(f"`{name}`" for name in action.option_strings)
    names = names or f"`{_plain(action).strip('[]')}`"
    value = ""
    if action.choices:
        value = ", ".join(f"`{choice}`" for choice in action.choices)
    elif action.nargs != 0 and action.option_strings and "--no-" not in names:
        kind = str(action.metavar or getattr(action.type, "__name__", "text"))
        value = f"`{'text' if kind == 'str' else kind}`"
    if action.nargs in ("+", "*"):
        value += ", several"
    text = (action.help or "").replace("%%", "%").replace("(default: None)", "")
    text = re.sub(r"\s+", " ", text).strip().replace("|", r"\|")
    return f"| {names} | {value} | {text[:1].upper() + text[1:]} |"
