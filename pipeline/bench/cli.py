"""``raysight bench``: its options."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

FOLDER = Path("bench-output")
_SUITES = ("feed", "forward", "memory")


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds ``bench`` to the root parser."""
    parser = commands.add_parser("bench", help="the project's measurements, as tables with ratios")
    parser.add_argument(
        "suite", nargs="?", choices=(*_SUITES, "all"), default="all", help="what to measure (default: all)"
    )
    add = parser.add_argument
    add("--images", type=int, default=30_000, help="photographs that feed goes through (default: %(default)s)")
    add("--peer-images", type=int, default=2_000, help="and its slower peers (default: %(default)s)")
    add("--forward-images", type=int, default=256, help="photographs that forward goes through (default: %(default)s)")
    add("--batch-size", type=int, help="images of one forward (default: as extract's)")
    add("--precision", default="fp32", help="of the forward (default: %(default)s)")
    add("--rounds", type=int, default=3, help="times that feed and forward measure everything (default: %(default)s)")
    add(
        "--sizes",
        type=_size,
        nargs="+",
        metavar="ROWS:CHUNK_ROWS",
        default=[(10_000, 1000), (100_000, 1000), (1_000_000, 1000), (1_000_000, 10)],
        help="jobs of memory (default: 10000:1000 100000:1000 1000000:1000 1000000:10)",
    )
    add("--timeout", type=float, default=3600.0, metavar="S", help="seconds for one measurement (default: %(default)s)")
    add("--work", type=Path, default=FOLDER, help="folder for corpus and outputs (default: %(default)s)")
    add("--output", type=Path, metavar="FILE", help="all figures, as JSON")
    parser.set_defaults(run=run_bench)


def run_bench(options: argparse.Namespace) -> int:
    """``raysight bench``. Exits 0 whatever the figures are: they depend on the machine."""
    from pipeline.bench import suites

    work = options.work.absolute()
    model = {"weights": "random:0", "precision": options.precision}
    chosen = _SUITES if options.suite == "all" else (options.suite,)
    results = {}
    if "feed" in chosen:
        results["feed"] = suites.feed(work, options.images, options.peer_images, options.rounds, options.timeout, _say)
    if "forward" in chosen:
        results["forward"] = suites.forward(
            work, options.forward_images, options.rounds, options.batch_size, model, options.timeout, _say
        )
    if "memory" in chosen:
        results["memory"] = suites.memory(work, options.sizes, options.timeout, _say)
    if options.output is not None:
        options.output.write_text(json.dumps(results, indent=1))
    return 0


def _say(text: str) -> None:
    print(text, flush=True)


def _size(text: str) -> tuple[int, int]:
    rows, _, chunk_rows = text.partition(":")
    if not (rows.isdecimal() and chunk_rows.isdecimal() and int(rows) > 0 and int(chunk_rows) > 0):
        raise argparse.ArgumentTypeError(f"{text} is not ROWS:CHUNK_ROWS")
    return int(rows), int(chunk_rows)
