"""The first half of ``verify``: every manifest row exactly once, in features or rejects, with sound values."""

from __future__ import annotations

import functools
import hashlib
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import schema
from pipeline.dataset import load_info
from pipeline.errors import NotFoundError, RaysightError, UsageError
from pipeline.manifest import load_manifest
from pipeline.retire import read_retired, without
from pipeline.shard_inspection import Report, ShardInspection

if TYPE_CHECKING:
    from pipeline.dataset import DatasetInfo
    from pipeline.manifest import Manifest, ManifestShard, RetiredRows
    from pipeline.storage import Store


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
        raise UsageError(f"{dest.root}: its listing never finished; the same raysight extract begins it anew")
    return info, manifest


def check_structure(dest: Store, info: DatasetInfo, manifest: Manifest) -> Report:
    """Every live manifest row once in features or rejects, with finite values of the right width and fingerprint.

    Reads every shard once; memory is one row group, the narrow columns of one shard and ten bytes for each row.
    """
    report = Report(expected=manifest.rows)
    features = _shards(dest, schema.FEATURES_FOLDER, report)
    rejects = _shards(dest, schema.REJECTS_FOLDER, report)
    digests = bytearray()
    retirements = manifest.retirements()
    unsealed: list[int] = []
    for shard, listed in enumerate(manifest.shards):
        found = features.pop(shard, [])
        beside = rejects.pop(shard, [])
        expected = _manifest_rows(dest, shard, listed, report)
        retired = _retired(dest, retirements.get(shard, []), report)
        if expected is None or retired is None:
            continue
        live = functools.reduce(without, (table for _, table in retired), expected)
        digests += _digests(live["uri"])
        if not found:
            unsealed.append(shard)
            continue
        try:
            ShardInspection(dest, shard, report).check(expected, retired, beside, info)
        except (pa.ArrowInvalid, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the machine's trouble; Arrow's of broken pages has no number
            report.problem(f"shard {shard} is damaged: {error}")
    if unsealed:
        rows = sum(manifest.shards[shard].rows for shard in unsealed)
        report.unsettled = True
        report.problem(
            f"{len(unsealed):,} of {len(manifest.shards):,} shards are not sealed ({rows:,} rows)",
            list(map(schema.features_shard, unsealed)),
        )
    for shard, keys in [*features.items(), *rejects.items()]:
        report.problem(f"shard {shard} is not in the manifest", keys)
    hashes = np.frombuffer(digests, np.uint64)
    hashes.sort()  # in place: a copy would be eight more bytes for each row
    if (hashes[1:] == hashes[:-1]).any():
        report.problem("two live rows of the manifest have the same uri")
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


def _manifest_rows(dest: Store, shard: int, listed: ManifestShard, report: Report) -> pa.Table | None:
    key = schema.manifest_shard(shard)
    try:
        data = dest.get(key)
    except NotFoundError:
        report.problem(f"{key} is gone")
        return None
    if hashlib.sha256(data).hexdigest() != listed.sha256:
        report.problem(f"{key} is not the one that was committed")
        return None
    return pq.read_table(pa.BufferReader(data), columns=None).drop_columns(["size"])


def _retired(dest: Store, parts: list[tuple[int, RetiredRows]], report: Report) -> list[tuple[int, pa.Table]] | None:
    """What has left a shard, generation by generation."""
    try:
        return [(number, read_retired(dest, number, part)) for number, part in parts]
    except RaysightError as error:
        report.problem(str(error))
        return None


def _digests(uris: pa.ChunkedArray) -> bytes:
    """64 bits of each uri; two of 10⁸ collide with a probability of 3 in 10,000."""
    return b"".join(hashlib.blake2b(uri.encode(), digest_size=8).digest() for uri in uris.to_pylist())
