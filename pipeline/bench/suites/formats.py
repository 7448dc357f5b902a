"""Bytes of an embedding and the speed of writing and reading it, by the way it is stored."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.bench.corpus import write_corpus
from pipeline.bench.table import render, spread

if TYPE_CHECKING:
    from pipeline.bench.suite import Bench

_QUICK_ROWS, _FULL_ROWS = 20_000, 200_000


def run(bench: Bench) -> dict[str, Any]:
    """Each way, in its own process, over embeddings of real photographs (see :mod:`pipeline.bench.formats`)."""
    rows = _FULL_ROWS if bench.full else _QUICK_ROWS
    source = str(write_corpus(bench.work, 300))
    results = bench.rounds({"formats": ("formats:ways", {"source": source, "images": 64, "rows": rows})})["formats"]
    lines = [
        [
            name,
            *(
                spread([item[name][figure] for item in results], digits)
                for figure, digits in (("bytes", 0), ("write", 0), ("read", 0))
            ),
        ]
        for name in results[0]
    ]
    bench.say("")
    bench.say(f"embeddings of 384 values, {rows:,} rows in groups of 1,024, in memory, {bench.conditions()}")
    bench.say(render(["way", "bytes an embedding", "write, 1000 rows/s", "read, 1000 rows/s"], lines))
    return {"results": results}
