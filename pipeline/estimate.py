"""What images would take on the machines of a run that was measured: hours, hours of devices, dollars."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.errors import UsageError
from pipeline.report import figures, load_runs
from pipeline.runlog import STAGES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pipeline.storage import Store

ROUND = (10**6, 10**8, 10**9)
"""Images that every estimate speaks of, besides those that are to do."""


def last_measured(dest: Store, dollars_per_hour: float | None) -> dict[str, Any] | None:
    """The report (:func:`pipeline.report.figures`) of the last run that extracted anything; None where there is none.

    Args:
        dollars_per_hour: of all its machines.
    """
    try:
        runs = load_runs(dest)
    except UsageError:
        return None
    measured = [(name, run) for name, run in runs.items() if run["rows"] and run["images_per_second"] and run["budget"]]
    return figures(*measured[-1], dollars_per_hour) if measured else None


def describe_estimate(report: Mapping[str, Any] | None, images: int) -> Iterator[str]:
    """Lines for a person.

    Args:
        report: of :func:`last_measured`.
        images: that are to do.
    """
    if report is None:
        yield "none: no run of this dataset is on record. --limit measures one; docs/sizing.md has published rates"
        return
    rate, actors, budget = report["images_per_second"], report["actors"], report["budget"]
    cpus, gpus = budget["cpus_per_actor"], budget["gpus_per_actor"]
    device = "GPU" if gpus else "CPU"
    yield (
        f"on the machines of run {report['run']}: {rate:,.2f} images/s by {actors:,} actor(s) of {cpus:g} CPUs and"
        f" {gpus:g} GPUs, bound by {report['bound_by'] or 'nothing in particular'}"
    )
    if report["chunks"] <= actors:
        yield "no actor did a second chunk then: mostly its start was measured; a longer run (--limit) shows more"
    forward = report["stages"]["forward"]["seconds_per_image"]
    if gpus == 1 and forward:
        feeding = sum(report["stages"][stage]["cpu_ms_per_image"] for stage in STAGES) / 1000 / forward
        yield f"a GPU that never waits does {1 / forward:,.2f} images/s, for which {feeding:.1f} CPUs are enough"
    price = report["dollars_per_million_images"]
    yield f"{'images':>15} {'hours':>11} {device + ' hours':>11}" + ("" if price is None else f" {'dollars':>11}")
    for number in (images, *ROUND):
        hours = number / rate / 3600
        cost = "" if price is None else f" {number / 1e6 * price:>11,.2f}"
        yield f"{number:>15,} {hours:>11,.2f} {hours * actors * (gpus or cpus):>11,.2f}{cost}"
