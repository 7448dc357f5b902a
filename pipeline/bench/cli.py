"""``raysight bench``: its options."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.bench.suite import Bench
from pipeline.bench.suites import SUITES

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from pipeline.bench.suite import Suite

FOLDER = Path("bench-output")


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser], more: Sequence[Suite] = ()) -> None:
    """Adds ``bench`` to the root parser, with the suites of this package and ``more``."""
    suites = {suite.name: suite for suite in (*SUITES, *more)}
    parser = commands.add_parser(
        "bench",
        help="the project's measurements, as tables with ratios",
        description="The project's measurements, as tables with ratios. The quick form takes less than five minutes.",
        epilog="suites: " + "; ".join(f"{suite.name}: {suite.about}" for suite in suites.values()),
    )
    named = [suite.name for suite in suites.values() if suite.by_name]
    spared = f", without --full all but {', '.join(named)}" if named else ""
    add = parser.add_argument
    add("suites", nargs="*", metavar="SUITE", help=f"what to measure: {', '.join(suites)} (default: all{spared})")
    add("--full", action="store_true", help="more files, three rounds, all sizes: hours")
    add("--work", type=Path, default=FOLDER, help="folder for corpora and outputs (default: %(default)s)")
    add("--output", type=Path, metavar="FILE", help="all figures, as JSON")

    def run(options: argparse.Namespace) -> int:
        if unknown := [name for name in options.suites if name not in suites]:
            parser.error(f"there is no suite {unknown[0]}; there are {', '.join(suites)}")
        default = [name for name in suites if options.full or name not in named]
        return run_bench([suites[name] for name in options.suites or default], options)

    parser.set_defaults(run=run)


def run_bench(suites: Sequence[Suite], options: argparse.Namespace) -> int:
    """``raysight bench``. Exits 0 whatever the figures are: they depend on the machine."""
    bench = Bench(options.work.absolute(), options.full, say=_say)
    results = {}
    for suite in suites:
        start = time.monotonic()
        _say(f"\n## {suite.name}: {suite.about}\n")
        results[suite.name] = suite.run(bench)
        _say(f"\n({suite.name}: {time.monotonic() - start:.0f} s)")
        if options.output is not None:  # after each suite: the next one may take hours, or fail
            options.output.write_text(json.dumps(results, indent=1))
    return 0


def _say(text: str) -> None:
    print(text, flush=True)
