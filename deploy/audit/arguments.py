"""The command lines of the programs that read the books: plain help, and each error as one line.

They need no package beyond those of the services, so that they also run in their image.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from deploy.local.errors import RunnerError
from deploy.local.stop_signals import (
    EXIT_STOPPED,
    Stopped,
    ignore_stop_signals,
    raise_on_stop_signals,
)

UNREADABLE = 2


class _Parser(argparse.ArgumentParser):
    """Reports a wrong option in one line."""

    def error(self, message: str) -> NoReturn:
        raise RunnerError(message)


def make_parser(module: str, description: str) -> argparse.ArgumentParser:
    """The options of ``python -m module``: so far only the data directory."""
    parser = _Parser(
        prog=f"python -m {module}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--data-dir", type=Path, help="the data directory of a stack")
    return parser


def run_command(
    parser: argparse.ArgumentParser,
    command: Callable[[argparse.Namespace], int],
    arguments: Sequence[str],
) -> NoReturn:
    """Run the command and exit with what it returns, or with 2 after an error."""
    raise_on_stop_signals()
    try:
        sys.exit(command(parser.parse_args(arguments)))
    except Stopped:
        sys.stdout.write("stopped\n")
        sys.exit(EXIT_STOPPED)
    except (RunnerError, OSError) as error:
        ignore_stop_signals()
        sys.stderr.write(f"error: {str(error).strip()}\n")
        sys.exit(UNREADABLE)
