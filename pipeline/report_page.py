"""The figures of runs as one HTML page that needs nothing else."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

from pipeline.report_text import stage_table, summary, total_summary

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --bar: #2a78c8; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.5rem; }
table { border-collapse: collapse; margin: 1rem 0; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line); }
caption { text-align: left; }
th { font-weight: 600; white-space: nowrap; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
.track { background: var(--line); height: .8rem; min-width: 8rem; }
.bar { background: var(--bar); height: 100%; }
"""


def html_report(dataset: str, reports: Sequence[Mapping[str, Any]], total: Mapping[str, Any] | None) -> str:
    """A whole document; every value is escaped."""
    parts = [_run(report) for report in reports]
    if total is not None:
        parts.append(f"<h2>All of these runs</h2>{_pairs(total_summary(total))}")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>raysight: {escape(dataset)}</title><style>{_STYLE}</style></head>\n"
        f"<body><h1>{escape(dataset)}</h1>\n{''.join(parts)}</body></html>\n"
    )


def _run(report: Mapping[str, Any]) -> str:
    head, *stages = stage_table(report)
    return (
        f"<h2>{escape(report['run'])}</h2>\n{_pairs(summary(report))}"
        f"<table><caption>Time by stage</caption>{_row(head, 'th')}{''.join(_row(row, 'td') for row in stages)}"
        f"</table>\n"
        f"{_busy(report['busy'] or {})}"
    )


def _pairs(rows: Iterable[tuple[str, str]]) -> str:
    body = "".join(f'<tr><th scope="row">{escape(label)}</th><td>{escape(value)}</td></tr>' for label, value in rows)
    return f"<table>{body}</table>\n"


def _row(cells: tuple[str, str, str], tag: str) -> str:
    first, *numbers = (escape(cell) for cell in cells)
    rest = "".join(f'<{tag} class="number">{cell}</{tag}>' for cell in numbers)
    return f"<tr><{tag}>{first}</{tag}>{rest}</tr>"


def _busy(fractions: Mapping[str, float]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(name.replace("_", " "))}</th><td class="number">{100 * value:.0f} %</td>'
        f'<td><div class="track"><div class="bar" style="width:{100 * value:.1f}%"></div></div></td></tr>'
        for name, value in fractions.items()
    )
    return f"<table><caption>Busy, of the time in which the actors had work</caption>{rows}</table>\n" if rows else ""
