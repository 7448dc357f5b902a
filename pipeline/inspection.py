"""The first half of ``verify``: every manifest row exactly once, in features or rejects, with sound values."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import schema
from pipeline.dataset import load_info
from pipeline.errors import UsageError
from pipeline.manifest import ManifestReader, load_manifest
from pipeline.seal import NO_REJECTS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.dataset import DatasetInfo
    from pipeline.manifest import Manifest
    from pipeline.storage import Store

_SHOWN = 5
"""Examples named for each kind of problem."""


@dataclass(slots=True)
class Report:
    """What was found.

    Attributes:
        rows: feature rows.
        rejects: reject rows.
        expected: rows of the manifest.
        problems: one line each; none when all is well.
    """

    rows: int = 0
    rejects: int = 0
    expected: int = 0
    problems: list[str] = field(default_factory=list)

    def problem(self, text: str, examples: list[str] | None = None) -> None:
        """Notes a problem, with a few examples."""
        shown = examples or []
        more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
        self.problems.append(text + (f": {', '.join(shown[:_SHOWN])}{more}" if shown else ""))


def open_dataset(dest: Store) -> tuple[DatasetInfo, Manifest]:
    """The description and the manifest of a dataset.

    Raises:
        UsageError: there is none, or its listing never finished.
    """
    info = load_info(dest)
    if info is None:
        raise UsageError(f"{dest.root} holds no raysight dataset")
    manifest = load_manifest(dest)
    if manifest is None:
        raise UsageError(f"{dest.root}: the listing of its source never finished; run extract again")
    return info, manifest


def check_structure(dest: Store, info: DatasetInfo, manifest: Manifest) -> Report:
    """Every manifest row exactly once in features or rejects, with finite values of the right width and fingerprint.

    Reads every shard once; memory is one shard and eight bytes for each row.
    """
    report = Report(expected=manifest.rows)
    reader = ManifestReader(dest)
    features = _shards(dest, schema.FEATURES_FOLDER, report)
    rejects = _shards(dest, schema.REJECTS_FOLDER, report)
    hashes: list[np.ndarray[tuple[int], np.dtype[np.uint64]]] = []
    for shard, listed in enumerate(manifest.shards):
        data = dest.get(schema.manifest_shard(shard))
        if hashlib.sha256(data).hexdigest() != listed.sha256:
            report.problem(f"manifest shard {shard} is not the one that was committed")
            continue
        expected = reader.shard(shard)
        hashes.append(_hash(expected["uri"]))
        if shard not in features:
            report.problem(f"shard {shard} is not sealed ({listed.rows} rows); run extract again")
            continue
        _check_shard(dest, shard, expected, features.pop(shard), rejects.pop(shard, []), info, report)
    for shard, keys in {**features, **rejects}.items():
        report.problem(f"shard {shard} is not in the manifest", keys)
    if hashes and len(np.unique(np.concatenate(hashes))) != sum(map(len, hashes)):
        report.problem("the manifest names a uri twice")
    return report


def _shards(dest: Store, folder: str, report: Report) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for item in dest.list_objects(folder):
        shard = schema.parse_shard(item.key)
        if shard is None:
            report.problem("an object that raysight did not write", [item.key])
        else:
            found.setdefault(shard, []).append(item.key)
    return found


def _check_shard(
    dest: Store,
    shard: int,
    expected: pa.Table,
    features: list[str],
    rejects: list[str],
    info: DatasetInfo,
    report: Report,
) -> None:
    file = pq.ParquetFile(pa.BufferReader(dest.get(features[0])))
    table, values = file.read(), schema.metadata(file)
    if values.get("fingerprint") != info.fingerprint.to_dict():
        report.problem(f"{features[0]} has another fingerprint than the dataset")
    digest = values.get("rejects_digest", NO_REJECTS)
    wanted = [schema.rejects_shard(shard, digest)] if digest != NO_REJECTS else []
    if rejects != wanted:
        report.problem(f"rejects of shard {shard} should be {wanted}, but there are {rejects}")
    rejected = [pq.read_table(pa.BufferReader(dest.get(key))) for key in wanted if key in rejects]
    for key, part in zip(wanted, rejected, strict=False):
        if hashlib.sha256(dest.get(key)).hexdigest()[: len(digest)] != digest:
            report.problem(f"{key} is not what its name says")
        for name in ("stage", "error", "message"):
            if part[name].null_count:
                report.problem(f"{key} has rejects without {name}")
    identities = [part.select(["uri", "etag"]) for part in (table, *rejected)]
    _compare_rows(shard, expected.select(["uri", "etag"]), pa.concat_tables(identities), report)
    _check_values(features[0], table, info, report)
    report.rows += len(table)
    report.rejects += sum(map(len, rejected))


def _compare_rows(shard: int, expected: pa.Table, found: pa.Table, report: Report) -> None:
    want, have = (
        Counter(zip(*(t[name].to_pylist() for name in t.column_names), strict=True)) for t in (expected, found)
    )
    if missing := want - have:
        report.problem(f"shard {shard} lacks {missing.total()} rows", [uri for uri, _ in missing.elements()])
    if extra := have - want:
        report.problem(f"shard {shard} has {extra.total()} rows too many", [uri for uri, _ in extra.elements()])


def _check_values(key: str, table: pa.Table, info: DatasetInfo, report: Report) -> None:
    for output in info.fingerprint.outputs:
        name = output.partition(":")[0]
        if name not in table.column_names or not pa.types.is_fixed_size_list(table.schema.field(name).type):
            report.problem(f"{key}: there should be a column {output}")
            continue
        if schema.describe_output(table.schema.field(name)) != output:
            report.problem(f"{key}: there should be {output}, not {schema.describe_output(table.schema.field(name))}")
            continue
        column = table[name].combine_chunks()
        if column.null_count:
            report.problem(f"{key}: {column.null_count} rows have no {name}")
        finite = pc.is_finite(column.flatten())
        if not pc.all(finite, min_count=0).as_py():
            rows = np.flatnonzero(~finite.to_numpy(zero_copy_only=False).reshape(len(column), -1).all(axis=1))
            report.problem(f"{key}: {name} is not finite", [table["uri"][int(row)].as_py() for row in rows])
    if table["width"].null_count or table["height"].null_count or pc.any(pc.less(table["width"], 1)).as_py():
        report.problem(f"{key}: width or height is missing")


def _hash(uris: pa.ChunkedArray) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    """64 bits of each uri; two of 10⁸ collide with a probability of 3 in 10,000."""
    digests: Iterator[bytes] = (hashlib.blake2b(uri.encode(), digest_size=8).digest() for uri in uris.to_pylist())
    return np.frombuffer(b"".join(digests), dtype=np.uint64)
