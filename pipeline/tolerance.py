"""How far features may be from timm's own, in fp32, on the same image and weights.

About twice the largest difference measured over photographs at odd sizes, for the most sensitive of several models
(docs/tolerances.md has the table). ``fast`` differs by its resize, the half precisions by their forward.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Bounds on one row.

    Attributes:
        cosine: least cosine similarity.
        relative: largest absolute difference, as a fraction of the reference's largest absolute value.
        percent: largest difference of a class's probability, in percentage points.
    """

    cosine: float
    relative: float
    percent: float

    @property
    def of_patches(self) -> Tolerance:
        """The bounds on an image's patch tokens together, which no pooling evens out; stored in float16."""
        return Tolerance(1 - 6 * (1 - self.cosine), 4 * self.relative + FLOAT16_ROUNDING, self.percent)

    @property
    def in_float16(self) -> Tolerance:
        """The bounds on an embedding that is stored in float16."""
        return Tolerance(self.cosine, self.relative + FLOAT16_ROUNDING, self.percent)


FLOAT16_ROUNDING = 2.0**-11
"""Half of the last of float16's eleven bits, relative to the number."""

_PRECISION = {
    "fp32": Tolerance(0.999999, 1e-4, 0.05),
    "fp16": Tolerance(0.9998, 4e-2, 4.0),
    "bf16": Tolerance(0.99, 0.3, 25.0),
}
_FAST = Tolerance(0.9999, 3e-2, 2.5)


def tolerance(implementation: str, precision: str) -> Tolerance:
    """The bounds for an implementation and a precision (``fp32``, ``bf16``, ``fp16``), by name."""
    bound = _PRECISION[precision]
    if implementation == "reference":
        return bound
    return Tolerance(
        min(bound.cosine, _FAST.cosine), max(bound.relative, _FAST.relative), max(bound.percent, _FAST.percent)
    )
