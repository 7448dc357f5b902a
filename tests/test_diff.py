"""What a listing changes in a dataset, row by row."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import pyarrow as pa
import pytest

from pipeline import schema
from pipeline.cut import Cut
from pipeline.diff import Counts, Difference
from pipeline.errors import UsageError
from pipeline.generation import Listing, write_generation
from pipeline.local import LocalStore
from pipeline.staged import stage

if TYPE_CHECKING:
    from pathlib import Path

TABLE = "/data/table.csv"
CAPTIONED = pa.schema([*schema.MANIFEST_SCHEMA, pa.field('what "they" call it', pa.string())])


def rows(*values: tuple[str, int, str, str | None]) -> list[tuple[str, pa.RecordBatch]]:
    columns = [list(column) for column in zip(*values, strict=True)]
    return [(TABLE, pa.record_batch(columns, schema=CAPTIONED))]


def compare(
    folder: Path,
    before: list[tuple[str, pa.RecordBatch]],
    after: list[tuple[str, pa.RecordBatch]],
    *,
    prune: bool = False,
    whole: bool = True,
) -> tuple[Counts, list[str], list[tuple[str, str]]]:
    """Counts, uris to extract, and (uri, reason) of the rows that leave."""
    dest = LocalStore(str(folder / "out"))
    manifest = write_generation(dest, None, Listing((TABLE,)), before, Cut(2, 1 << 20, 100))
    (folder / "work").mkdir()
    listing = stage(folder / "work" / "listing.parquet", after, lambda _: None)
    with closing(Difference(listing, folder / "work", 256 << 20)) as difference:
        difference.fetch(dest, manifest)
        counts = difference.compare(manifest, (TABLE,), prune=prune, whole=whole)
        chosen = [uri for _, batch in difference.chosen() for uri in batch["uri"].to_pylist()]
        leaving = [
            (row["uri"], row["reason"]) for _, table in difference.leaving(prune=prune) for row in table.to_pylist()
        ]
    return counts, chosen, leaving


BEFORE = rows(("a", 1, "1", "x"), ("b", 1, "1", "x"), ("c", 1, "1", "x"))


def test_the_same_listing_changes_nothing(tmp_path: Path) -> None:
    counts, chosen, leaving = compare(tmp_path, BEFORE, BEFORE, prune=True)
    assert counts == Counts(listed=3, duplicates=0, new=0, changed=0, gone=0)
    assert (chosen, leaving) == ([], [])


def test_another_etag_and_another_kept_value_are_both_a_change(tmp_path: Path) -> None:
    after = rows(("a", 1, "2", "x"), ("b", 1, "1", "y"), ("c", 1, "1", "x"))
    counts, chosen, leaving = compare(tmp_path, BEFORE, after)
    assert (counts.changed, counts.new, counts.gone) == (2, 0, 0)
    assert chosen == ["a", "b"]
    assert leaving == [("a", "changed"), ("b", "changed")]


def test_a_kept_value_that_comes_or_goes_is_a_change_and_one_that_was_never_there_is_none(tmp_path: Path) -> None:
    before = rows(("a", 1, "1", None), ("b", 1, "1", "x"), ("c", 1, "1", None))
    after = rows(("a", 1, "1", "x"), ("b", 1, "1", None), ("c", 1, "1", None))
    assert compare(tmp_path, before, after)[2] == [("a", "changed"), ("b", "changed")]


def test_a_listing_that_keeps_other_columns_than_the_dataset_is_refused(tmp_path: Path) -> None:
    plain = [(TABLE, pa.record_batch([["a"], [1], ["1"]], schema=schema.MANIFEST_SCHEMA))]
    with pytest.raises(UsageError, match=r"keeps the columns \['what \"they\" call it'\], this listing has \[\]"):
        compare(tmp_path, BEFORE, plain)


def test_an_apostrophe_in_the_name_of_the_temporary_folder_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "it's").mkdir()
    counts, chosen, _ = compare(tmp_path / "it's", BEFORE, rows(("d", 1, "1", "x")))
    assert (counts.new, counts.gone, chosen) == (1, 3, ["d"])


def test_an_object_that_never_was_there_is_taken_up_unless_pruned_and_then_leaves(tmp_path: Path) -> None:
    """It becomes a reject, which says so; pruning takes it away."""
    missing = ("d", 0, "", "x")
    (tmp_path / "first").mkdir()
    counts, chosen, leaving = compare(tmp_path / "first", BEFORE, BEFORE + rows(missing))
    assert (counts.new, counts.gone, chosen, leaving) == (1, 0, ["d"], [])
    for prune, gone in ((False, []), (True, [("d", "gone")])):
        folder = tmp_path / str(prune)
        folder.mkdir()
        counts, chosen, leaving = compare(folder, BEFORE + rows(missing), BEFORE + rows(missing), prune=prune)
        assert (counts.gone, chosen, leaving) == (len(gone), [], gone)


def test_a_row_that_is_not_listed_or_not_there_leaves_only_when_asked_for(tmp_path: Path) -> None:
    after = rows(("a", 1, "1", "x"), ("b", 0, "", "x"))
    for prune, expected in ((False, []), (True, [("b", "gone"), ("c", "gone")])):
        folder = tmp_path / str(prune)
        folder.mkdir()
        counts, chosen, leaving = compare(folder, BEFORE, after, prune=prune)
        assert (counts.gone, chosen, leaving) == (2, [], expected)


def test_what_may_not_be_seen_is_not_gone_and_not_changed(tmp_path: Path) -> None:
    after = rows(("a", -1, "", "x"), ("b", -1, "", "x"), ("c", 1, "1", "x"), ("d", -1, "", "x"), ("e", 0, "", "x"))
    counts, chosen, leaving = compare(tmp_path, BEFORE, after, prune=True)
    assert (counts.gone, counts.changed, leaving) == (0, 0, [])
    assert chosen == ["d"]  # its read will say why; e is not there, and pruned as it comes


def test_in_a_listing_that_was_cut_short_nothing_is_gone(tmp_path: Path) -> None:
    counts, _, _ = compare(tmp_path, BEFORE, rows(("a", 1, "1", "x")), whole=False)
    assert counts.gone == 0


def test_of_a_uri_listed_twice_the_first_row_counts(tmp_path: Path) -> None:
    after = rows(("a", 1, "1", "x"), ("n", 1, "1", "first"), ("n", 1, "2", "second"), ("b", 1, "1", "x"))
    counts, chosen, _ = compare(tmp_path, BEFORE, after)
    assert (counts.duplicates, counts.new, chosen) == (1, 1, ["n"])
