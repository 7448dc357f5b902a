"""Outcomes to answers. Every one is made of the Arrow columns that the batch job would write."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from pipeline.columns import to_numpy
from pipeline.commit import build_chunk
from pipeline.errors import RejectError
from pipeline.schema import FORMAT_VERSION, with_metadata
from serve.errors import ApiError, reject_error
from serve.outputs import columns_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from serve.bodies import Image
    from serve.engine import Engine, Outcome

JSON, NPY, ARROW = "application/json", "application/x-npy", "application/vnd.apache.arrow.stream"


@dataclass(frozen=True, slots=True)
class Answer:
    """Images, what became of them, and which outputs were asked for."""

    engine: Engine
    images: Sequence[Image]
    outcomes: Sequence[Outcome]
    outputs: Sequence[str]

    @property
    def fingerprint(self) -> str:
        """Digest of that of a dataset with these outputs."""
        return self.engine.fingerprint(columns_of(self.outputs)).digest

    def check_single(self) -> None:
        """Raises ApiError 422 when the request's only image was rejected: there is nothing else to answer."""
        if len(self.outcomes) == 1 and isinstance(self.outcomes[0], RejectError):
            raise self._refusal(self.outcomes[0])

    def embeddings(self, encoding: str) -> dict[str, Any]:
        """OpenAI's shape; a rejected image has ``embedding: null`` and an ``error``."""
        vectors = iter(self._values("embedding"))
        data: list[dict[str, Any]] = []
        for index, outcome in enumerate(self.outcomes):
            item: dict[str, Any] = {"object": "embedding", "index": index}
            if isinstance(outcome, RejectError):
                data.append({**item, "embedding": None, **self._refusal(outcome).body()})
            else:
                data.append({**item, "embedding": _encode(next(vectors), encoding)})
        count = len(self.outcomes)
        return {**self._head(), "data": data, "usage": {"prompt_tokens": count, "total_tokens": count}}

    def features(self) -> dict[str, Any]:
        """Every output of every image; a rejected image has an ``error`` instead."""
        columns = {name: iter(self._values(name)) for name in columns_of(self.outputs)}
        data: list[dict[str, Any]] = []
        for index, outcome in enumerate(self.outcomes):
            if isinstance(outcome, RejectError):
                data.append({"index": index, **self._refusal(outcome).body()})
                continue
            item: dict[str, Any] = {"index": index, "width": outcome.width, "height": outcome.height}
            row = {name: next(values) for name, values in columns.items()}
            if "embedding" in row:
                item["embedding"] = row["embedding"].tolist()
            if "patches" in row:
                item["patches"] = self._patches(row["patches"])
            if "class_index" in row:
                item["classes"] = self._classes(row["class_index"], row["class_probability"])
            data.append(item)
        return {**self._head(), "data": data}

    def npy(self) -> bytes:
        """One array for one output, an image a row. Raises ApiError 400 for several, 422 for a rejected image."""
        if len(self.outputs) != 1 or self.outputs[0] == "classes":
            raise ApiError(400, "one_array_only", f"{NPY} holds one array: ask for embedding or for patches", "outputs")
        for index, outcome in enumerate(self.outcomes):
            if isinstance(outcome, RejectError):
                error = self._refusal(outcome)
                raise ApiError(422, error.code, f"image {index}: {error.message}", limit=error.limit)
        values = self._values(self.outputs[0])
        if self.outputs[0] == "patches":
            values = values.reshape(len(values), *self.engine.patch_shape)
        buffer = io.BytesIO()
        np.save(buffer, values)
        return buffer.getvalue()

    def arrow(self) -> bytes:
        """An Arrow stream with the columns of a committed chunk, rejected images among the rows; ``uri`` is the name
        that the client gave."""
        names = columns_of(self.outputs)
        fields = [field for field in self.engine.extractor.outputs if field.name in names]
        sizes = [item if isinstance(item, RejectError) else (item.width, item.height) for item in self.outcomes]
        rejects = [
            RejectError(item.stage, item.error, self._refusal(item).message) if isinstance(item, RejectError) else item
            for item in sizes
        ]
        columns = self.engine.columns(self.outcomes, names)
        table = build_chunk([image.name for image in self.images], [""] * len(sizes), rejects, columns, fields)
        values = {"format": FORMAT_VERSION, "fingerprint": self.engine.fingerprint(names).to_dict()}
        table = table.cast(with_metadata(table.schema, values))
        sink = io.BytesIO()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table.combine_chunks())
        return sink.getvalue()

    def _head(self) -> dict[str, Any]:
        return {"object": "list", "model": self.engine.model, "fingerprint": self.fingerprint}

    def _values(self, name: str) -> NDArray[Any]:
        """(n, …) of the good images."""
        return to_numpy(self.engine.columns(self.outcomes, [name])[name])

    def _refusal(self, reject: RejectError) -> ApiError:
        return reject_error(reject, self.engine.image_limits)

    def _patches(self, values: NDArray[Any]) -> dict[str, Any]:
        little = values.astype(values.dtype.newbyteorder("<"), copy=False)
        return {
            "shape": list(self.engine.patch_shape),
            "dtype": values.dtype.name,
            "base64": base64.b64encode(little.tobytes()).decode(),
        }

    def _classes(self, indices: NDArray[Any], probabilities: NDArray[Any]) -> list[dict[str, Any]]:
        names = self.engine.class_names
        return [
            {"index": int(index), "name": names[index] if names else None, "probability": float(probability)}
            for index, probability in zip(indices, probabilities, strict=True)
        ]


def _encode(vector: NDArray[Any], encoding: str) -> list[float] | str:
    if encoding == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    values: list[float] = vector.tolist()
    return values


def pick_type(accept: str | None) -> str:
    """The content type that a client likes best, of those there are (RFC 9110, 12.5.1). Raises ApiError 406."""
    best, found = 0.0, None
    for part in (accept or "*/*").split(","):
        kind, *parameters = (piece.strip().lower() for piece in part.split(";"))
        quality = next((_quality(piece[2:]) for piece in parameters if piece.startswith("q=")), 1.0)
        match = JSON if kind in ("*/*", "application/*", JSON) else kind if kind in (NPY, ARROW) else None
        if match and quality > best:
            best, found = quality, match
    if found is None:
        raise ApiError(406, "not_acceptable", f"this can answer {JSON}, {NPY} and {ARROW}; see the header Accept")
    return found


def _quality(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0
