"""The figures of runs as lines for a person."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Figures = Mapping[str, Any]
    Rows = list[tuple[str, str]]

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
NOTHING = "–"
_WIDTH = 100


def text_report(reports: Sequence[Figures], total: Figures | None) -> str:
    """One block a run, and one for all of them."""
    blocks = [_block(summary(report), stage_table(report)) for report in reports]
    if total is not None:
        blocks.append(_block(total_summary(total), []))
    return "\n\n".join(blocks)


def summary(report: Figures) -> Rows:
    """Label and value of what is not by stage."""
    rest = "the same command goes on from there"
    state = {"complete": "complete", "interrupted": f"interrupted; {rest}", "failed": f"not finished; {rest}"}
    rows = [
        ("run", f"{report['run']}, begun {report['started']} on {report['host']}, {report['seconds']:,.1f} s"),
        ("dataset", f"{report['images']:,} images, {state[report['outcome']]}; fingerprint {report['fingerprint']}"),
        (
            "rows",
            (
                f"{report['rows']:,} features, {report['rejects']:,} rejects, {report['skipped']:,} were done before;"
                f" {report['chunks']:,} chunks, {report['retries']:,} retries"
            ),
        ),
        ("rejects", counts(report["rejects_by_reason"])),
        (
            "speed",
            (
                f"{report['images_per_second']:,.2f} images/s with {report['actors']:,} actor(s)"
                f"{_batches(report['batch_sizes'], report['batch_sizes_left'])}"
            ),
        ),
        ("bytes", f"{size(report['bytes_read'])} read, {size(report['bytes_written'])} written"),
        ("requests", counts(report["requests"], upper=True)),
        ("bound by", f"{report['bound_by'] or 'nothing in particular'}: {report['bound_because']}"),
    ]
    if report["error"] is not None:
        rows.insert(2, ("ended with", f"{report['error']['class']}: {report['error']['message']}"))
    if report["busy"] is not None:
        rows.insert(-1, ("device busy", f"{100 * report['busy']['device']:.0f} %"))
    if report["dollars_per_million_images"] is not None:
        rows.append(("cost", f"${report['dollars_per_million_images']:,.2f} for a million images"))
    return rows


def total_summary(total: Figures) -> Rows:
    """As :func:`summary`, of all runs together."""
    return [
        ("together", f"{total['runs']:,} runs, {total['seconds']:,.1f} s"),
        (
            "rows",
            (
                f"{total['rows']:,} features, {total['rejects']:,} rejects; {total['chunks']:,} chunks,"
                f" {total['retries']:,} retries"
            ),
        ),
        ("rejects", counts(total["rejects_by_reason"])),
        ("bytes", f"{size(total['bytes_read'])} read, {size(total['bytes_written'])} written"),
        ("requests", counts(total["requests"], upper=True)),
    ]


def stage_table(report: Figures) -> list[tuple[str, str, str]]:
    """Stage, milliseconds an image, and milliseconds of CPU an image; the first row is the head."""
    return [
        ("stage", "ms an image", "CPU ms an image"),
        *(
            (stage, _number(values["seconds_per_image"], 1000), _number(values["cpu_ms_per_image"], 1))
            for stage, values in report["stages"].items()
        ),
    ]


def counts(values: Mapping[str, int], *, upper: bool = False) -> str:
    """``NotAnImage 2, Empty 1``, the most frequent first."""
    ordered = sorted(values.items(), key=lambda item: -item[1])
    return ", ".join(f"{name.upper() if upper else name} {value:,}" for name, value in ordered) or "none"


def size(number: float) -> str:
    """Bytes for a person."""
    unit = 0
    while number >= 1024 and unit < len(_UNITS) - 1:
        number /= 1024
        unit += 1
    return f"{number:,.1f} {_UNITS[unit]}" if unit else f"{number:,.0f} {_UNITS[0]}"


def _batches(sizes: Mapping[str, int], left: Mapping[str, int]) -> str:
    """Images of one forward, and what lack of memory left of them; of how many actors where they differ."""
    if not sizes:
        return ""
    halved = "" if left == sizes else f", of which lack of memory left {_sizes(left)}"
    return f", batches of {_sizes(sizes)}{halved}"


def _sizes(sizes: Mapping[str, int]) -> str:
    return ", ".join(size if len(sizes) == 1 else f"{size} ({actors:,})" for size, actors in sizes.items())


def _number(value: float | None, factor: float) -> str:
    return NOTHING if value is None else f"{factor * value:,.2f}"


def _block(rows: Rows, table: Sequence[tuple[str, str, str]]) -> str:
    indent = " " * 13
    lines = [textwrap.fill(f"{label:<12} {value}", _WIDTH, subsequent_indent=indent) for label, value in rows]
    lines += [""] if table else []
    lines += [f"{stage:<12} {wall:>14} {cpu:>18}" for stage, wall, cpu in table]
    return "\n".join(lines)
