"""The description of a dataset, written once: the fingerprint, and the configuration that gave it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipeline import schema
from pipeline.config import ModelConfig
from pipeline.dataset_format import check_format, format_mark
from pipeline.errors import NotFoundError, UsageError
from pipeline.fingerprint import Fingerprint
from pipeline.footer import read_footers

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pipeline.storage import Store


@dataclass(frozen=True, slots=True)
class DatasetInfo:
    """What a dataset holds.

    Attributes:
        fingerprint: of every row.
        model: the configuration, precision resolved; enough to compute a row again.
        kept: the columns kept of the tables of URIs, such as ``caption: string``.
        parameters: of the model, for the memory of whoever loads it; None where it was not recorded.
    """

    fingerprint: Fingerprint
    model: ModelConfig
    kept: tuple[str, ...] = ()
    parameters: int | None = None


def load_info(dest: Store) -> DatasetInfo | None:
    """The description of a dataset; None where there is no dataset yet.

    Raises:
        UsageError: there is something at this place, but not of a format this version reads.
    """
    try:
        data = dest.get(schema.DATASET)
    except NotFoundError:
        return None
    where = dest.uri(schema.DATASET)
    try:
        values = json.loads(data)
        check_format(values, where)
        return DatasetInfo(
            Fingerprint.from_dict(values["fingerprint"]),
            _model(values["model"]),
            tuple(values["kept"]),
            values.get("parameters"),
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UsageError(f"{where} cannot be read by this version ({type(error).__name__}: {error})") from error


def _model(values: dict[str, Any]) -> ModelConfig:
    return ModelConfig(**{**values, "features": tuple(values["features"])})  # JSON knows lists alone


def agree_on(
    dest: Store,
    fingerprint: Fingerprint,
    model: ModelConfig,
    kept: Iterable[pa.Field] = (),
    parameters: int | None = None,
) -> None:
    """Writes the description of a new dataset, or checks that an existing one has the same fingerprint and columns.

    Raises:
        UsageError: it has others; the message shows the differences.
    """
    existing = load_info(dest)
    columns = describe_kept(kept)
    if existing is None:
        values = {
            **format_mark(),
            "fingerprint": fingerprint.to_dict(),
            "model": asdict(model),
            "kept": columns,
            "parameters": parameters,
        }
        dest.put(schema.DATASET, json.dumps(values, indent=1).encode())
        return
    if differences := existing.fingerprint.differences(fingerprint):
        raise UsageError(
            f"{dest.root} holds features of another fingerprint ({existing.fingerprint.digest}, this job's is"
            f" {fingerprint.digest}):\n  " + "\n  ".join(differences) + "\nuse the same model options, or another DEST"
        )
    if change := kept_differences(existing, columns):
        raise UsageError(f"{dest.root} keeps other columns: {change}; use the same --keep, or another DEST")


def describe_kept(fields: Iterable[pa.Field]) -> tuple[str, ...]:
    """Kept columns as :attr:`DatasetInfo.kept` has them."""
    return tuple(f"{field.name}: {_type_name(field.type)}" for field in fields)


def _type_name(kind: pa.DataType) -> str:
    """A type in words; readers may rename the inner field of a list."""
    if pa.types.is_fixed_size_list(kind):
        return f"{_type_name(kind.value_type)}[{kind.list_size}]"
    return f"list<{_type_name(kind.value_type)}>" if pa.types.is_list(kind) else str(kind)


def kept_differences(existing: DatasetInfo, columns: tuple[str, ...]) -> str:
    """What a job with these kept columns would do otherwise than the dataset; empty where they agree."""
    if existing.kept == columns:
        return ""
    return f"{', '.join(existing.kept) or 'none'} → {', '.join(columns) or 'none'}"


def count_rejects(dest: Store) -> int:
    """Rejected rows of the sealed shards, from their Parquet footers."""
    shards = [item.key for item in dest.list_objects(schema.REJECTS_FOLDER) if schema.parse_shard(item.key) is not None]
    return sum(footer.num_rows for footer in read_footers(dest, shards))
