"""``raysight verify``: is the dataset what was promised? Needs no ray, and trusts nothing that the job computed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.inspection import check_structure, open_dataset
from pipeline.located import Located
from pipeline.origin import roots
from pipeline.sample import Oracle, compare_sample
from pipeline.storage import open_store
from pipeline.tolerance import tolerance

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.config import ImageLimits, StorageConfig
    from pipeline.dataset import DatasetInfo
    from pipeline.manifest import Manifest
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
    say("FAILED" if report.problems else "ok           complete, unique, finite, one fingerprint")
    return not report.problems


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
    bound = tolerance(info.fingerprint.implementation, info.fingerprint.precision)
    oracle = Oracle(info, limits)
    if not oracle.weights_agree:
        report.problem(f"the weights {info.model.weights} are not those the dataset was made with")
        return
    source = Located(roots(manifest.sources), storage)
    compared = list(compare_sample(dest, source, manifest, oracle, sample, limits))
    judged = [item for item in compared if not item.skipped]
    for item in compared:
        if item.skipped:
            say(f"skipped      {item.uri}: {item.skipped}")
        elif not item.within(bound):
            report.problem(f"{item.uri}: cosine {item.cosine:.6f}, largest difference {item.difference:.2e} to timm's")
    if judged:
        cosine = min(item.cosine for item in judged)
        relative = max(item.difference / item.scale for item in judged)
        say(
            f"sample       {len(judged)} rows again by timm in fp32: least cosine {cosine:.7f} (bound {bound.cosine}),"
            f" largest difference {max(item.difference for item in judged):.2e},"
            f" {relative:.1e} of the largest value (bound {bound.relative:g})"
        )
    elif report.rows:
        report.problem("no row of the sample could be compared: the source is gone or has changed")
