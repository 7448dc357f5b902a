"""The description of a dataset, written once: the fingerprint, and the configuration that gave it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import schema
from pipeline.config import ModelConfig
from pipeline.errors import NotFoundError, UsageError
from pipeline.fingerprint import Fingerprint

if TYPE_CHECKING:
    from pipeline.storage import Store


@dataclass(frozen=True, slots=True)
class DatasetInfo:
    """What a dataset holds.

    Attributes:
        fingerprint: of every row.
        model: the configuration, precision resolved; enough to compute a row again.
    """

    fingerprint: Fingerprint
    model: ModelConfig


def load_info(dest: Store) -> DatasetInfo | None:
    """The description of a dataset; None where there is no dataset yet.

    Raises:
        UsageError: there is something at this place, but not of a format this version reads.
    """
    try:
        values = json.loads(dest.get(schema.DATASET))
    except NotFoundError:
        return None
    if values.get("format") != schema.FORMAT_VERSION:
        raise UsageError(
            f"{dest.root} has format {values.get('format')}; this version reads and writes {schema.FORMAT_VERSION}"
        )
    return DatasetInfo(Fingerprint.from_dict(values["fingerprint"]), ModelConfig(**values["model"]))


def agree_on(dest: Store, fingerprint: Fingerprint, model: ModelConfig) -> None:
    """Writes the description of a new dataset, or checks that an existing one has the same fingerprint.

    Raises:
        UsageError: it has another one; the message shows the differences.
    """
    existing = load_info(dest)
    if existing is None:
        values = {"format": schema.FORMAT_VERSION, "fingerprint": fingerprint.to_dict(), "model": asdict(model)}
        dest.put(schema.DATASET, json.dumps(values, indent=1).encode())
        return
    if differences := existing.fingerprint.differences(fingerprint):
        raise UsageError(
            f"{dest.root} holds features of another fingerprint ({existing.fingerprint.digest}, this job's is"
            f" {fingerprint.digest}):\n  " + "\n  ".join(differences) + "\nuse the same model options, or another DEST"
        )


def count_rejects(dest: Store) -> int:
    """Rejected rows of the sealed shards, from their Parquet footers."""
    shards = (item.key for item in dest.list_objects(schema.REJECTS_FOLDER) if schema.parse_shard(item.key) is not None)
    return sum(pq.read_metadata(pa.BufferReader(dest.get(key))).num_rows for key in shards)
