"""Feature arrays as Arrow columns, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from pipeline.schema import value_shape

if TYPE_CHECKING:
    from collections.abc import Sequence

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


def stack_rows(parts: Sequence[NDArray[Any]], field: pa.Field) -> NDArray[Any]:
    """Parts (n_i, …) of a column as one array; (0, …) of the right type when there are none."""
    if parts:
        return np.concatenate(parts)
    shape, dtype = value_shape(field.type)
    return np.empty((0, *shape), dtype.to_pandas_dtype())


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
