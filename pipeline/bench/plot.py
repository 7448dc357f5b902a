"""Plots of figures, where matplotlib is installed (``raysight[bench]``)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_PANELS = (("cpu_seconds", "CPU seconds"), ("mib", "MiB of memory that the step adds"))


def draw_growth(points: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> bool:
    """CPU seconds and memory over rows, on log–log scales, a line for each step, as a PNG of less than 200 kB.

    Returns:
        False where matplotlib is not installed; then there is no file.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(11, 4.6), dpi=90, layout="constrained")
    for axes, (name, title) in zip(figure.subplots(1, 2), _PANELS, strict=True):
        for step, found in points.items():
            style = "--" if step.endswith("files") else "-"
            axes.plot([item["rows"] for item in found], [item[name] for item in found], style, marker="o", label=step)
        axes.set(xscale="log", yscale="log", xlabel="rows", title=title)
        axes.grid(which="major", alpha=0.3)
    rows = [item["rows"] for found in points.values() for item in found]
    linear = [1e-6 * min(rows), 1e-6 * max(rows)]
    first = figure.axes[0]
    first.plot([min(rows), max(rows)], linear, color="grey", linestyle=":", label="linear (1 µs a row)")
    figure.legend(*first.get_legend_handles_labels(), loc="outside right upper", fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return True
