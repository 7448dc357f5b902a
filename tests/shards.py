"""Sealed shards whose rows leave, for the tests of rewriting them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import FailingStore, numbers, vector

from pipeline import schema
from pipeline.cut import Cut
from pipeline.dataset import load_info
from pipeline.generation import Listing, write_generation
from pipeline.inspection import check_structure
from pipeline.retire import retire_rows

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pipeline.manifest import Manifest
    from pipeline.storage import Store

CUT = Cut(chunk_rows=3, chunk_bytes=1000, shard_rows=7)
REJECTED = (1, 2, 4)


@dataclass
class Sealed:
    """Eight rows in two sealed shards, 1, 2 and 4 of them rejected; then generations that retire rows of the first."""

    dest: Store
    manifest: Manifest

    @classmethod
    def make(cls, dest: Store) -> Sealed:
        made = numbers(dest, 8, CUT, REJECTED)
        for shard in range(len(made.manifest.shards)):
            made.commit_all(shard)
            made.seal(shard)
        return cls(dest, made.manifest)

    def retire(self, *rows: int) -> None:
        """Commits a generation in which these rows leave the first shard for good."""
        columns = [[f"/nowhere/image-{n}" for n in rows], [f"v{n}" for n in rows], ["gone"] * len(rows)]
        table = pa.table(columns, schema=schema.RETIRED_SCHEMA)
        listing = Listing(("/nowhere/",))
        self.manifest = write_generation(self.dest, self.manifest, listing, [], CUT, retired=[(0, table)])

    def rewrite(self, dest: Store | FailingStore | None = None, generation: int | None = None) -> None:
        """Rewrites the first shard for a generation, the last one if none is given."""
        number = generation or self.manifest.last.number
        (part,) = self.manifest.generations[number - 1].retired
        retire_rows(dest or self.dest, number, part)  # type: ignore[arg-type]

    def read(self, tmp_path: Path, folder: str) -> dict[str, Any]:
        """uri → value of all files of ``features`` or ``rejects``, read one by one; fails where a uri comes twice."""
        column = "embedding" if folder == "features" else "message"
        found: dict[str, Any] = {}
        for item in self.dest.list_objects(f"{folder}/"):
            self.dest.get_file(item.key, tmp_path / "copy.parquet")
            for row in pq.ParquetFile(tmp_path / "copy.parquet").read().to_pylist():
                assert row["uri"] not in found, f"{row['uri']} is there twice"
                found[row["uri"]] = row[column]
        return found

    def assert_holds(self, tmp_path: Path, rows: Sequence[int]) -> None:
        """These rows, each once and with its value, and nothing else; verify agrees."""
        assert self.read(tmp_path, "features") == {f"/nowhere/image-{n}": vector(n) for n in rows if n not in REJECTED}
        assert self.read(tmp_path, "rejects") == {f"/nowhere/image-{n}": f"row {n}" for n in rows if n in REJECTED}
        info = load_info(self.dest)
        assert info is not None
        assert check_structure(self.dest, info, self.manifest).problems == []
