"""What a client may ask for, and the columns that it is made of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from serve.errors import ApiError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import pyarrow as pa

_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "embedding": ("embedding",),
    "patches": ("patches",),
    "classes": ("class_index", "class_probability"),
}


def columns_of(outputs: Iterable[str]) -> list[str]:
    """The names of the columns, as the dataset has them."""
    return [column for output in outputs for column in _COLUMNS[output]]


def available(fields: Iterable[pa.Field]) -> list[str]:
    """The outputs that these columns make."""
    names = {field.name for field in fields}
    return [output for output, columns in _COLUMNS.items() if names.issuperset(columns)]


def parse_outputs(text: str, served: Sequence[str]) -> list[str]:
    """A list with commas, in the order of the columns. Raises ApiError 400 for what is unknown or not served."""
    asked = [part.strip() for part in text.split(",") if part.strip()]
    for output in asked:
        if output not in _COLUMNS:
            raise ApiError(400, "unknown_output", f"outputs may be {', '.join(served)}, with commas", "outputs")
        if output not in served:
            raise ApiError(
                400, "output_not_served", f"this model has no {output}; it has {', '.join(served)}", "outputs"
            )
    if not asked:
        raise ApiError(400, "unknown_output", f"name one of the outputs: {', '.join(served)}", "outputs")
    return [output for output in served if output in asked]
