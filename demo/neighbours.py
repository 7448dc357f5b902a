"""Questions to the finished dataset, put by DuckDB in plain SQL; raysight has no part in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import duckdb

NEIGHBOURS = 3


@dataclass(frozen=True, slots=True)
class Neighbour:
    """Another image, and the cosine similarity of its embedding to the photograph's."""

    path: Path
    cosine: float


def show_table(dataset: Path, rows: int = 6) -> None:
    """Prints a few rows: the image, its size, and where its embedding begins."""
    _show(f"""
        SELECT parse_filename(uri) AS image, width || '×' || height AS size, len(embedding) AS dim,
               list_transform(embedding[:4], lambda x: round(x, 3)) AS "embedding[:4]"
        FROM '{dataset}/features/*.parquet' WHERE uri NOT LIKE '%/crops/%' ORDER BY image LIMIT {rows}
    """)  # noqa: S608 — the path is the demo's own


def show_neighbours(dataset: Path, photo: str) -> None:
    """Prints the images nearest to one photograph."""
    _show(f"""
        SELECT parse_filename(b.uri) AS "nearest to {photo}",
               round(list_cosine_similarity(a.embedding, b.embedding), 3) AS cosine
        FROM '{dataset}/features/*.parquet' a, '{dataset}/features/*.parquet' b
        WHERE parse_filename(a.uri) = '{photo}' AND a.uri <> b.uri
        ORDER BY cosine DESC LIMIT {NEIGHBOURS}
    """)  # noqa: S608


def find_neighbours(dataset: Path, photos: list[Path]) -> dict[Path, list[Neighbour]]:
    """The nearest images of each photograph, among all others of the dataset; nearest first."""
    rows = duckdb.execute(
        f"""
        SELECT a.uri, b.uri, list_cosine_similarity(a.embedding, b.embedding) AS cosine
        FROM '{dataset}/features/*.parquet' a JOIN '{dataset}/features/*.parquet' b ON a.uri <> b.uri
        WHERE list_contains($photos, a.uri)
        QUALIFY row_number() OVER (PARTITION BY a.uri ORDER BY cosine DESC) <= {NEIGHBOURS}
        ORDER BY a.uri, cosine DESC
        """,  # noqa: S608 — the path is the demo's own
        {"photos": [str(photo.absolute()) for photo in photos]},
    ).fetchall()
    found: dict[Path, list[Neighbour]] = {photo: [] for photo in photos}
    by_uri = {str(photo.absolute()): photo for photo in photos}
    for uri, other, cosine in rows:
        found[by_uri[uri]].append(Neighbour(Path(other), cosine))
    return found


def _show(query: str) -> None:
    lines = [line[8:] for line in query.strip("\n").rstrip().splitlines()]
    print("duckdb> " + "\n        ".join(lines), flush=True)
    print(duckdb.sql(query), flush=True)
