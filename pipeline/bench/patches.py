"""A job with patch tokens: what its processes take, beside what was declared for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.bench.job import run, run_log
from pipeline.bench.processes import PeakMemory
from pipeline.config import MIB

_MODEL = {"weights": "random:0", "precision": "fp32", "features": ("embedding", "patches")}


def measure(source: str, dest: str) -> dict[str, Any]:
    """Runs the job on a fresh DEST.

    Returns:
        as :func:`pipeline.bench.job.run`; ``peaks``: MiB by role, and ``declared``: likewise; ``feature_bytes``: of the
        files at the end.
    """
    with PeakMemory() as memory:
        result = run(source, dest, "patches", {}, _MODEL)
    budget = run_log(dest)["budget"]
    declared = {role: budget[f"memory_per_{role}"] / MIB for role in ("actor", "read", "seal")}
    size = sum(path.stat().st_size for path in Path(dest).glob("features/*.parquet"))
    return {**result, "peaks": memory.peaks, "declared": declared, "feature_bytes": size}
