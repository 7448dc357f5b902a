"""The number of a dataset's format: what it says of itself, and what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline import __version__
from pipeline.errors import UsageError
from pipeline.schema import FORMAT_VERSION

if TYPE_CHECKING:
    from collections.abc import Mapping


def format_mark() -> dict[str, Any]:
    """What the description and the marker of a dataset begin with."""
    return {"format": FORMAT_VERSION, "raysight": __version__}


def check_format(values: Mapping[str, Any], where: str) -> None:
    """Makes sure that a dataset is of the format that this version reads and writes.

    Args:
        values: of its description or marker.
        where: URI of that.

    Raises:
        UsageError: it is of another one; the message says who wrote it, and what to do.
    """
    found = values.get("format")
    if found == FORMAT_VERSION:
        return
    writer = f"raysight {values['raysight']}" if "raysight" in values else "an early raysight"
    advice = "extract into another DEST, or go on with the raysight that wrote it"
    if isinstance(found, int) and found > FORMAT_VERSION:
        advice = f"use {writer} or a later one"
    raise UsageError(
        f"{where}: written by {writer} in format {found if isinstance(found, int) else 'unknown'};"
        f" raysight {__version__} reads and writes format {FORMAT_VERSION}. Nothing was changed; {advice}."
        " Any Parquet reader still reads features/"
    )
