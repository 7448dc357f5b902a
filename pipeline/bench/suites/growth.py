"""How the steps of a job grow with its rows: all linear in time, and flat in memory or close to it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.bench.corpus import write_tiny
from pipeline.bench.growth import CHUNK_ROWS
from pipeline.bench.plot import draw_growth
from pipeline.bench.runner import measure
from pipeline.bench.table import render

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pipeline.bench.suite import Bench

_HEADER = ["step", "rows", "seconds", "CPU s", "CPU µs a row", "MiB"]
_SLOPES_HEADER = ["step", "rows", "slope of CPU s", "slope of MiB", "CPU s at 10⁸ rows"]
_FAR = 1e8

Points = dict[str, list[dict[str, Any]]]
"""Step → figures at each size, with ``rows``."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Rows: of real files (in powers of ten, a whole job each), and of names alone."""

    files: tuple[int, ...]
    names: tuple[int, ...]


_QUICK, _FULL = Sizes((1000,), (10_000, 100_000)), Sizes((1000, 10_000, 100_000), (100_000, 1_000_000, 10_000_000))


def run(bench: Bench) -> dict[str, Any]:
    """The measurement in its two sizes, with a plot where matplotlib is installed."""
    return measure_growth(bench, _FULL if bench.full else _QUICK)


def measure_growth(bench: Bench, sizes: Sizes) -> dict[str, Any]:
    """Each step at each size."""
    points: Points = {}
    for rows in sizes.files:
        bench.say(f"{rows:,} files")
        _add(points, rows, _of_files(bench, rows))
    for rows in sizes.names:
        bench.say(f"{rows:,} names")
        _add(points, rows, _of_names(bench, rows))
    slopes = {step: slopes_of(found) for step, found in points.items() if len(found) > 1}
    bench.say("")
    bench.say(f"chunks of {CHUNK_ROWS} rows, extractor that does nothing, {bench.conditions(rounds=1)}")
    bench.say(render(_HEADER, [_row(step, item) for step, found in points.items() for item in found]))
    bench.say("")
    bench.say("log–log slope between the two largest sizes: 1 is linear, 0 is flat")
    bench.say(render(_SLOPES_HEADER, [_slope_row(step, points[step], found) for step, found in slopes.items()]))
    plot = bench.work / "growth.png"
    bench.say(f"plot: {plot}" if draw_growth(points, plot) else "no plot: pip install 'raysight[bench]'")
    return {"points": points, "slopes": slopes}


def slopes_of(points: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Of the last two points: slopes on log–log scales, and the time at 10⁸ rows if it goes on so.

    Returns:
        ``cpu_seconds`` and ``mib``: slopes; ``far_cpu_seconds``.
    """
    first, last = points[-2:]
    found = {}
    for name in ("cpu_seconds", "mib"):
        before, after = (max(point[name], 1e-6) for point in (first, last))
        found[name] = math.log(after / before) / math.log(last["rows"] / first["rows"])
    found["far_cpu_seconds"] = last["cpu_seconds"] * (_FAR / last["rows"]) ** found["cpu_seconds"]
    return found


def _add(points: Points, rows: int, figures: Mapping[str, dict[str, Any]]) -> None:
    for step, found in figures.items():
        points.setdefault(step, []).append({"rows": rows, **found})


def _of_files(bench: Bench, rows: int) -> dict[str, dict[str, Any]]:
    source, dest = str(write_tiny(bench.work, rows)), str(bench.work / "growth-files")
    job = {"source": source, "dest": dest, "extractor": "empty", "job": {"chunk_rows": CHUNK_ROWS, "batch_size": 64}}
    listed = _ask(bench, "listing", dest=f"{dest}-listed", rows=rows, source=source)
    whole = measure("job:run", job, timeout_s=bench.timeout_s)
    return {
        "listing, files": listed,
        "job, files": {
            "seconds": whole["whole_s"],
            "cpu_seconds": whole["images"] / whole["steady"],  # of the clock, from the first extractor on
            "mib": max(mib for _, mib in whole["memory"]),
        },
        "verify, files": _ask(bench, "verify", dest=dest),
        "sync, nothing changed, files": _ask(bench, "sync", dest=dest, rows=rows, source=source),
    }


def _of_names(bench: Bench, rows: int) -> dict[str, dict[str, Any]]:
    dest = str(bench.work / f"growth-{rows}")
    return {
        "listing": _ask(bench, "listing", dest=dest, rows=rows),
        "planning": _ask(bench, "plan", dest=dest),
        "resume at half": _ask(bench, "resume", dest=dest),
        "verify": _ask(bench, "verify", dest=dest),
        "sync, nothing changed": _ask(bench, "sync", dest=dest, rows=rows),
        "sync, 1 % changed": _ask(bench, "sync", dest=dest, rows=rows, changed=True),
    }


def _ask(bench: Bench, step: str, **arguments: Any) -> dict[str, Any]:
    return measure(f"growth:{step}", arguments, timeout_s=bench.timeout_s)


def _row(step: str, item: Mapping[str, Any]) -> list[str]:
    figures = (
        f"{item['seconds']:.3g}",
        f"{item['cpu_seconds']:.3g}",
        f"{1e6 * item['cpu_seconds'] / item['rows']:.2g}",
    )
    return [step, f"{item['rows']:,}", *figures, f"{item['mib']:.3g}"]


def _slope_row(step: str, points: Sequence[Mapping[str, Any]], found: Mapping[str, float]) -> list[str]:
    between = f"{points[-2]['rows']:,} → {points[-1]['rows']:,}"
    return [step, between, f"{found['cpu_seconds']:.2f}", f"{found['mib']:.2f}", f"{found['far_cpu_seconds']:,.2g}"]
