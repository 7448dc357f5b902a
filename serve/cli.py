"""The root command, ``raysight``: the top of the import graph."""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import suppress
from typing import NoReturn

from pipeline import __version__
from pipeline.bench.cli import add_commands as add_bench_command
from pipeline.bench.suite import Suite
from pipeline.cli import EXIT_ERROR, EXIT_INTERRUPTED, EXIT_USAGE, add_commands
from pipeline.errors import RaysightError
from pipeline.logs import complain
from pipeline.show import add_commands as add_show_commands
from serve.command import add_commands as add_serve_command

BENCH_SUITES = (
    Suite(
        "serve", "the endpoint beside the batch job, and beside other servers", "serve.bench.suite:run", by_name=True
    ),
    Suite("overload", "what the endpoint still answers under too much load", "serve.bench.overload:run", by_name=True),
)


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong; the usage of a command with twenty options would bury it."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USAGE, f"{self.prog}: {message} (see {self.prog} --help)\n")


def build_parser() -> argparse.ArgumentParser:
    """The command line, as documented in docs/commands.md."""
    parser: argparse.ArgumentParser = _Parser(
        prog="raysight", description="A bucket of images in, a Parquet dataset of features out, exactly once."
    )
    parser.add_argument("--version", action="version", version=f"raysight {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    add_commands(commands)
    add_show_commands(commands)
    add_serve_command(commands)
    add_bench_command(commands, BENCH_SUITES)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns its exit code; what raysight raises on purpose becomes a message."""
    options = build_parser().parse_args(arguments)
    try:
        code: int = options.run(options)
    except RaysightError as error:
        complain(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        complain("stopped")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output went away; a later flush must not complain about it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_ERROR
    except OSError as error:
        # A full disk, a folder that may not be written: the machine's trouble, which a trace would only hide.
        complain(f"{error.filename}: {error.strerror}" if error.filename else str(error) or type(error).__name__)
        return EXIT_ERROR
    return code


def entry() -> NoReturn:
    """The command as installed: ends with the exit code of :func:`main`, whatever libraries do as Python comes down.

    Arrow's threads may outlive what joins them; its process is then aborted now and then (apache/arrow issue 34314),
    with 134 where scripts expect 0. All that is ours is closed by then.
    """
    code = main()
    with suppress(BrokenPipeError):
        sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    entry()
