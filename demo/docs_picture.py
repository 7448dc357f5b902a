"""The picture of the README: ``python -m demo.docs_picture``, after ``make demo``.

Only photographs that are in the public domain, or free to show with their author's name (given there).
"""

from __future__ import annotations

from pathlib import Path

from demo.__main__ import NOTE, PHOTOS, TRAINED
from demo.neighbours import find_neighbours
from demo.sheet import draw_sheet
from demo.weights import TRAINED_MODEL

PICTURE = Path("docs/images/neighbours.png")
_SHOWN = (
    "chelsea.png",
    "coffee.png",
    "camera.png",
    "astronaut.png",
    "hubble_deep_field.jpg",
    "moon.png",
    "grass.png",
    "rocket.jpg",
)

if __name__ == "__main__":
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    photos = [PHOTOS / name for name in _SHOWN]
    draw_sheet(find_neighbours(TRAINED, photos), PICTURE, f"Nearest neighbours by {TRAINED_MODEL}", NOTE, colours=160)
