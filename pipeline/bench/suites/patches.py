"""The memory of a job with wide rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.bench.corpus import write_corpus
from pipeline.bench.runner import measure
from pipeline.bench.table import render

if TYPE_CHECKING:
    from pipeline.bench.suite import Bench

_QUICK, _FULL = 200, 2000


def run(bench: Bench) -> dict[str, Any]:
    """Embedding and patch tokens of the default model at 518 px, all but each thread's first forward replaced."""
    images = _FULL if bench.full else _QUICK
    arguments = {"source": str(write_corpus(bench.work, images)), "dest": str(bench.work / "raysight")}
    result = measure("patches:measure", arguments, timeout_s=bench.timeout_s)
    rows = [
        [role, f"{result['peaks'].get(role, 0):,.0f}", f"{result['declared'][role]:,.0f}" if role != "driver" else ""]
        for role in ("driver", "actor", "read", "seal")
    ]
    written = result["feature_bytes"] / 2**20
    bench.say(f"{images:,} images with patch tokens, {written:,.0f} MiB of features, {bench.conditions(rounds=1)}")
    bench.say(render(["process", "MiB at most", "MiB declared"], rows))
    return result
