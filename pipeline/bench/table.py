"""Figures of several rounds as a table: the median, the range, and ratios taken within each round."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def spread(values: Sequence[float], digits: int) -> str:
    """``median (least–greatest)``; the value alone where there is one."""
    if len(values) == 1:
        return f"{values[0]:,.{digits}f}"
    return f"{median(values):,.{digits}f} ({min(values):,.{digits}f}–{max(values):,.{digits}f})"


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> list[float]:
    """One ratio for each round: what disturbs the machine disturbs both of a round alike."""
    return [upper / lower for upper, lower in zip(numerators, denominators, strict=True)]


def render(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, padded to be read as it is; all columns but the first are numbers."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    rule = [f"{'-' * (width - (column > 0))}{':' * (column > 0)}" for column, width in enumerate(widths)]
    return "\n".join(_line(row, widths) for row in (header, rule, *rows))


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = [
        cell.rjust(width) if column else cell.ljust(width)
        for column, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    return f"| {' | '.join(cells)} |"


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Least-squares slope of y over x; 0 where x does not vary."""
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    spread_x = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread_x if spread_x else 0.0


def verdict(values: Mapping[str, tuple[float, float]]) -> list[str]:
    """Lines for ``what → (ratio, at least)``."""
    return [
        f"{what}: {ratio:.2f} (asked: at least {least:g}) {'reached' if ratio >= least else 'MISSED'}"
        for what, (ratio, least) in values.items()
    ]
