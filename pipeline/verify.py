"""``raysight verify``: is the dataset what was promised? Needs no ray, and trusts nothing that the job computed."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from pipeline.inspection import check_structure, open_dataset
from pipeline.located import Located
from pipeline.origin import roots
from pipeline.storage import open_store
from pipeline.tolerance import Tolerance, tolerance

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.config import ImageLimits, StorageConfig
    from pipeline.dataset import DatasetInfo
    from pipeline.manifest import Manifest
    from pipeline.sample import Comparison
    from pipeline.shard_inspection import Report
    from pipeline.storage import Store


def verify(url: str, sample: int, limits: ImageLimits, storage: StorageConfig, say: Callable[[str], None]) -> bool:
    """Checks a dataset and prints what it found.

    Args:
        url: the dataset.
        sample: rows to compute again with timm's own code; 0 leaves that out.
        limits: as for extraction.
        storage: how to reach the dataset and its source.
        say: prints a line.

    Returns:
        whether all is well.

    Raises:
        UsageError: there is no dataset at this place.
    """
    dest = open_store(url, storage)
    dest.check()
    info, manifest = open_dataset(dest)
    say(f"dataset      {dest.root}, fingerprint {info.fingerprint.digest}")
    report = check_structure(dest, info, manifest)
    say(f"rows         {report.rows:,} features + {report.rejects:,} rejects = {report.rows + report.rejects:,}")
    say(f"manifest     {report.expected:,} rows from {', '.join(manifest.sources)}")
    if sample and not report.problems:
        _check_sample(dest, info, manifest, report, sample, limits, storage, say)
    for problem in report.problems:
        say(f"PROBLEM      {problem}")
    if report.unsettled:
        say(f"UNSETTLED    a job was broken off, or is at work; to settle it: {_settling(dest, manifest)}")
    say("FAILED" if report.problems else "ok           complete, unique, finite, one fingerprint")
    return not report.problems


def _settling(dest: Store, manifest: Manifest) -> str:
    """The command that finishes what the last generation began."""
    where = shlex.quote(dest.root)
    if manifest.last.kind == "retry":
        return f"raysight retry-rejects {where}"
    return f"raysight extract {shlex.join(manifest.last.sources)} {where}, with the options that it was begun with"


def _check_sample(
    dest: Store,
    info: DatasetInfo,
    manifest: Manifest,
    report: Report,
    sample: int,
    limits: ImageLimits,
    storage: StorageConfig,
    say: Callable[[str], None],
) -> None:
    from pipeline.sample import Oracle, compare_sample  # torch and timm: seconds, which --sample 0 has no use for

    bound = tolerance(info.fingerprint.implementation, info.fingerprint.precision)
    oracle = Oracle(info, limits, storage)
    if not oracle.weights_agree:
        head = f" or the head {info.model.head}" if info.model.head else ""
        report.problem(f"the weights {info.model.weights}{head} are not those the dataset was made with")
        return
    source = Located(roots(manifest.sources), storage)
    compared = list(compare_sample(dest, source, manifest, oracle, sample, limits))
    judged = [item for item in compared if not item.skipped]
    for item in compared:
        if item.skipped:
            say(f"skipped      {item.uri}: {item.skipped}")
        elif not item.within(bound, info.model.dtype):
            of = f"{item.output}, " if item.output not in ("", "embedding") else ""
            report.problem(
                f"{item.uri}: {of}cosine {item.cosine:.6f}, largest difference {item.difference:.2e} to timm's"
            )
    for output in dict.fromkeys(item.output for item in judged):
        _describe(output, [item for item in judged if item.output == output], bound, info.model.dtype, say)
    if not judged and report.rows:
        report.problem("no row of the sample could be compared: the source is gone or has changed")


def _describe(output: str, judged: list[Comparison], bound: Tolerance, dtype: str, say: Callable[[str], None]) -> None:
    difference = max(item.difference for item in judged)
    rows = f"sample       {len(judged)} rows again by timm in fp32"
    if output == "classes":
        say(f"{rows}, classes: {difference:.2g} percentage points at most (bound {bound.percent:g})")
        return
    if output == "patches":
        rows, bound = f"{rows}, patches", bound.of_patches
    elif dtype == "float16":
        bound = bound.in_float16
    say(
        f"{rows}: least cosine {min(item.cosine for item in judged):.7f} (bound {bound.cosine:g}), largest difference"
        f" {difference:.2e}, {max(item.difference / item.scale for item in judged):.1e} of the largest value"
        f" (bound {bound.relative:g})"
    )
