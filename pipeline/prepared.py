"""What preparing an image gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Prepared:
    """One image, ready for the model.

    Attributes:
        pixels: (H, W, 3) uint8, RGB; H and W are the model's input size.
        width: of the decoded image, upright, in pixels.
        height: likewise.
    """

    pixels: NDArray[np.uint8]
    width: int
    height: int
