"""The driver's memory over a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.bench.corpus import write_tiny
from pipeline.bench.runner import measure
from pipeline.bench.table import render, slope

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.bench.suite import Bench

_QUICK = ((20_000, 1000),)
_FULL = ((10_000, 1000), (100_000, 1000), (1_000_000, 1000), (1_000_000, 10))
_HEADER = ["rows", "chunks", "MiB at 10 %", "at the end", "at most", "KiB a chunk, second half", "images/s, steady"]


def run(bench: Bench) -> dict[str, Any]:
    """Jobs of growing size with an extractor that does nothing."""
    return jobs(bench, _FULL if bench.full else _QUICK)


def jobs(bench: Bench, sizes: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """The driver's memory for each (rows, rows of a chunk)."""
    rows, results = [], []
    for count, chunk_rows in sizes:
        source = str(write_tiny(bench.work, count))
        bench.say(f"{count:,} rows in chunks of {chunk_rows}")
        arguments = {
            "source": source,
            "dest": str(bench.work / "raysight"),
            "extractor": "empty",
            "job": {"chunk_rows": chunk_rows},
        }
        result = measure("job:run", arguments, timeout_s=bench.timeout_s)
        results.append({"rows": count, "chunk_rows": chunk_rows, **result})
        chunks = -(-count // chunk_rows)
        working = [(done / chunk_rows, mib) for done, mib in result["memory"] if done]
        warm = [point for point in working if point[0] >= chunks / 10] or working
        growth = slope([point for point in working if point[0] >= chunks / 2] or working[-1:]) * 1024
        rows.append(
            [
                f"{count:,}",
                f"{chunks:,}",
                f"{warm[0][1]:.0f}",
                f"{warm[-1][1]:.0f}",
                f"{max(mib for _, mib in result['memory']):.0f}",
                f"{growth:.2f}",
                f"{result['steady']:,.0f}",
            ]
        )
    bench.say("")
    bench.say(f"driver's own resident memory, extractor that does nothing, {bench.conditions(rounds=1)}")
    bench.say(render(_HEADER, rows))
    return {"results": results}
