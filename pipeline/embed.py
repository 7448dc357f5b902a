"""``raysight embed``: the features of a few images, here and now, without ray."""

from __future__ import annotations

import io
import json
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.columns import FeatureRows, to_numpy
from pipeline.commit import build_chunk, encode
from pipeline.errors import RejectError, UsageError, not_finite
from pipeline.located import Located
from pipeline.schema import FORMAT_VERSION, with_metadata
from pipeline.storage import Fetched, open_store, scheme

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa

    from pipeline.config import ImageLimits, StorageConfig
    from pipeline.extractor import Extractor


def embed(extractor: Extractor, uris: Sequence[str], limits: ImageLimits, storage: StorageConfig) -> pa.Table:
    """A table with the columns of a committed chunk, one row for each image, rejects among them."""
    outcomes: list[tuple[int, int] | RejectError] = []
    features = FeatureRows(extractor.outputs, len(uris))
    etags, names = [], []
    for uri in uris:
        name, fetched = _fetch(uri, limits, storage)
        names.append(name)
        etags.append(fetched.version if isinstance(fetched, Fetched) else "")
        try:
            if isinstance(fetched, RejectError):
                raise fetched
            prepared = extractor.prepare(fetched.data)
        except RejectError as reject:
            outcomes.append(reject)
            continue
        outcomes.append((prepared.width, prepared.height))
        if not features.add(extractor.forward([prepared.pixels])).all():
            outcomes[-1] = not_finite()
    return build_chunk(names, etags, outcomes, extractor.finish(features.arrays), extractor.outputs)


def _fetch(uri: str, limits: ImageLimits, storage: StorageConfig) -> tuple[str, Fetched | RejectError]:
    if scheme(uri) not in ("", "file"):
        return uri, Located([], storage).fetch_many([uri], limits.max_bytes)[0]
    path = _path(uri).absolute()
    store, name = open_store(str(path.parent), storage), PurePosixPath(path).name
    return store.uri(name), store.fetch_many([name], limits.max_bytes)[0]


def _path(uri: str) -> Path:
    return Path(uri.removeprefix("file://"))


def check_images(uris: Sequence[str]) -> None:
    """Raises UsageError when one of them is a folder."""
    for uri in uris:
        if scheme(uri) in ("", "file") and _path(uri).is_dir():
            raise UsageError(f"{uri} is a folder; name its images, or: raysight extract {uri} DEST")


def check_format(form: str, features: Sequence[str]) -> None:
    """Raises UsageError when the features do not fit the format."""
    if form == "npy" and tuple(features) not in (("embedding",), ("patches",)):
        raise UsageError(
            f"--format npy is one array, and cannot hold {', '.join(features)}; ask for --features embedding or patches"
            " alone, or for --format parquet"
        )


def render(table: pa.Table, extractor: Extractor, form: str) -> bytes:
    """The table as ``json`` (rejects and names of classes with it), ``parquet``, or ``npy`` (the one output alone).

    Raises:
        UsageError: an array cannot hold the images that were rejected.
    """
    if form == "json":
        answer = {"fingerprint": extractor.fingerprint.digest, "images": _rows(table, extractor)}
        return json.dumps(answer, indent=1).encode() + b"\n"
    if form == "parquet":
        values = {"format": FORMAT_VERSION, "fingerprint": extractor.fingerprint.to_dict()}
        return encode(table.cast(with_metadata(table.schema, values)))
    rejected = [
        f"{row['uri']}: {row['message']}" for row in table.select(["uri", "message"]).to_pylist() if row["message"]
    ]
    if rejected:
        raise UsageError("no row in the array for " + "; ".join(rejected))
    buffer = io.BytesIO()
    np.save(buffer, to_numpy(table[extractor.outputs[0].name]))
    return buffer.getvalue()


def _rows(table: pa.Table, extractor: Extractor) -> list[dict[str, Any]]:
    names = [field.name for field in extractor.outputs]
    rows = [
        {name: value for name, value in row.items() if value is not None}
        for row in table.drop_columns(names).to_pylist()
    ]
    good = [row for row in rows if "error" not in row]
    columns = {name: to_numpy(table[name].drop_null()) for name in names}
    for place, row in enumerate(good):
        row.update({name: values[place].tolist() for name, values in columns.items()})
        if extractor.class_names is not None:
            row["class_name"] = [extractor.class_names[index] for index in row["class_index"]]
    return rows
