"""Feature arrays as Arrow columns, and back."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from pipeline.schema import value_shape

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray


def to_column(values: NDArray[Any], kind: pa.DataType) -> pa.Array:
    """(n, …) numbers as n values of a (nested) fixed-size list, without a copy.

    Raises:
        ValueError: the array is not of this shape and type.
    """
    shape, dtype = value_shape(kind)
    if values.shape[1:] != shape or values.dtype != dtype.to_pandas_dtype():
        raise ValueError(f"{values.dtype}{list(values.shape[1:])} does not fit a column of {kind}")
    return _nest(pa.array(values.reshape(-1)), kind)


def _nest(flat: pa.Array, kind: pa.DataType) -> pa.Array:
    if not pa.types.is_fixed_size_list(kind):
        return flat
    return pa.FixedSizeListArray.from_arrays(_nest(flat, kind.value_type), type=kind)


class FeatureRows:
    """Features of images that come batch by batch, in the very arrays that become columns.

    A list of batches to be joined would take the memory twice, and break up the heap that the forwards live in.

    Args:
        outputs: the feature columns.
        rows: images at most.
    """

    def __init__(self, outputs: Sequence[pa.Field], rows: int) -> None:
        shapes = {field.name: value_shape(field.type) for field in outputs}
        self._arrays = {
            name: np.empty((rows, *shape), kind.to_pandas_dtype()) for name, (shape, kind) in shapes.items()
        }
        self._count = 0

    def add(self, features: Mapping[str, NDArray[Any]]) -> NDArray[np.bool_]:
        """Appends the rows of a batch (n, …) that are finite in every column; returns (n,) whether they are."""
        finite: NDArray[np.bool_] = np.logical_and.reduce([finite_rows(values) for values in features.values()])
        end = self._count + int(finite.sum())
        for name, values in features.items():
            self._arrays[name][self._count : end] = values if finite.all() else values[finite]
        self._count = end
        return finite

    @property
    def arrays(self) -> dict[str, NDArray[Any]]:
        """What was added so far: (n, …) for each column, without a copy."""
        return {name: values[: self._count] for name, values in self._arrays.items()}


def spread(column: pa.Array, present: Sequence[bool]) -> pa.ChunkedArray:
    """The values of a column in the places that are present, and null in the others, without a copy."""
    parts: list[pa.Array] = []
    start = 0
    for is_present, run in itertools.groupby(present):
        count = len(list(run))
        parts.append(column.slice(start, count) if is_present else pa.nulls(count, column.type))
        start += count * is_present
    return pa.chunked_array(parts, column.type)


def to_numpy(column: pa.Array | pa.ChunkedArray) -> NDArray[Any]:
    """n values of a (nested) fixed-size list as an array (n, …), without a copy where the column is one piece.

    Raises:
        ValueError: a value is null.
    """
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    count, shape = len(array), value_shape(array.type)[0]
    for _ in shape:
        if array.null_count:
            raise ValueError("a column with nulls is no array")
        array = array.flatten()
    values: NDArray[Any] = np.asarray(array.to_numpy(zero_copy_only=False))
    return values.reshape(count, *shape)


def finite_rows(values: NDArray[Any]) -> NDArray[np.bool_]:
    """(n,) whether all numbers of a row (n, …) are finite."""
    finite: NDArray[np.bool_] = np.isfinite(values).all(axis=tuple(range(1, values.ndim)))
    return finite
