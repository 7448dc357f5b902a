"""The commands that show and change nothing: the figures of a dataset's runs, and the settings that hold."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from pipeline.keys import all_keys
from pipeline.options import add_config_option, add_model_options, dollars
from pipeline.settings import load_settings, resolve
from pipeline.toml import literal, to_toml, value_of

if TYPE_CHECKING:
    import argparse


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds ``report`` and ``config`` to the root parser."""
    _add_report(commands)
    _add_config(commands)


def _add_report(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "report", help="the figures of a dataset's runs: speed, cost, and what they waited for"
    )
    parser.add_argument("dest", metavar="DEST", help="a dataset: a folder, or s3://bucket/prefix")
    add_config_option(parser)
    parser.add_argument(
        "--run",
        dest="which",
        default="latest",
        metavar="RUN",
        help="'latest', 'all', or the name of one (default: %(default)s)",
    )
    parser.add_argument(
        "--format", choices=("text", "json", "html"), default="text", help="'html' is one page (default: %(default)s)"
    )
    parser.add_argument(
        "--dollars-per-hour", type=dollars, metavar="X", help="of all machines of the job; gives the cost of a million"
    )
    parser.set_defaults(run=run_report)


def _add_config(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("config", help="show the settings that hold, and where each comes from")
    add_config_option(parser)
    add_model_options(parser)
    parser.add_argument(
        "--format",
        choices=("table", "toml"),
        default="table",
        help="'toml' is a file for --config (default: %(default)s)",
    )
    parser.set_defaults(run=run_config)


def run_report(options: argparse.Namespace) -> int:
    """``raysight report``."""
    from pipeline import report
    from pipeline.report_page import html_report
    from pipeline.report_text import text_report
    from pipeline.storage import open_store

    dest = open_store(options.dest, load_settings(options).storage)
    dest.check()
    runs = report.choose(report.load_runs(dest), options.which)
    figures = [report.figures(name, run, options.dollars_per_hour) for name, run in runs.items()]
    total = report.totals(figures) if options.which == "all" else None
    if options.format == "json":
        print(json.dumps({"dataset": dest.root, "runs": figures, "total": total}, indent=1))
    elif options.format == "html":
        print(html_report(dest.root, figures, total), end="")
    else:
        print(text_report(figures, total))
    return 0


def run_config(options: argparse.Namespace) -> int:
    """``raysight config``."""
    resolved = resolve(options, os.environ)
    if options.format == "toml":
        print(to_toml(resolved.settings), end="")
        return 0
    rows = [("setting", "value", "from")]
    for path, key in all_keys().items():
        value = value_of(resolved.settings, key)
        shown = "(not set)" if value is None else literal(value)
        rows.append((path, shown, resolved.origins.get(path, "default")))
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for setting, shown, origin in rows:
        print(f"{setting:{widths[0]}}  {shown:{widths[1]}}  {origin}")
    return 0
