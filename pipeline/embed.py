"""``raysight embed``: the features of a few images, here and now, without ray."""

from __future__ import annotations

import io
import json
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

from pipeline.commit import build_chunk, encode
from pipeline.errors import RejectError, UsageError
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
    parts: dict[str, list[np.ndarray[tuple[int, ...], np.dtype[np.float32]]]] = {}
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
        for column, values in extractor.forward([prepared.pixels]).items():
            parts.setdefault(column, []).append(values)
    stacked = {
        field.name: np.concatenate(parts.get(field.name, [np.empty((0, 1), np.float32)])) for field in extractor.outputs
    }
    columns = extractor.finish(stacked)
    return build_chunk(names, etags, outcomes, columns, extractor.outputs)


def _fetch(uri: str, limits: ImageLimits, storage: StorageConfig) -> tuple[str, Fetched | RejectError]:
    if scheme(uri) == "s3":
        parent, _, name = uri.rpartition("/")
        store = open_store(parent, storage)
    else:
        path = Path(uri.removeprefix("file://")).absolute()
        store, name = open_store(str(path.parent), storage), PurePosixPath(path).name
    return store.uri(name), store.fetch_many([name], limits.max_bytes)[0]


def render(table: pa.Table, extractor: Extractor, form: str) -> bytes:
    """The table as ``json`` (with the rejects), ``npy`` (n, dim) float32, or ``parquet``.

    Raises:
        UsageError: a matrix cannot hold the images that were rejected.
    """
    if form == "json":
        rows = [{name: value for name, value in row.items() if value is not None} for row in table.to_pylist()]
        return json.dumps({"fingerprint": extractor.fingerprint.digest, "images": rows}, indent=1).encode() + b"\n"
    if form == "parquet":
        values = {"format": FORMAT_VERSION, "fingerprint": extractor.fingerprint.to_dict()}
        return encode(table.cast(with_metadata(table.schema, values)))
    rejected = [
        f"{row['uri']}: {row['message']}" for row in table.select(["uri", "message"]).to_pylist() if row["message"]
    ]
    if rejected:
        raise UsageError("no row in the matrix for " + "; ".join(rejected))
    buffer = io.BytesIO()
    width = extractor.outputs[0].type.list_size
    np.save(buffer, table["embedding"].combine_chunks().flatten().to_numpy().reshape(-1, width))
    return buffer.getvalue()
