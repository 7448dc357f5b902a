"""The photographs of the demo: real ones, from the scikit-image and scikit-learn wheels, and two crops of each."""

from __future__ import annotations

import shutil
from importlib.resources import files
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from pathlib import Path

# What is not a photograph there stays out: drawings, text, test patterns.
_SCIKIT_IMAGE = (
    "astronaut.png",
    "brick.png",
    "camera.png",
    "cell.png",
    "chelsea.png",
    "clock_motion.png",
    "coffee.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "microaneurysms.png",
    "moon.png",
    "motorcycle_left.png",
    "motorcycle_right.png",
    "retina.jpg",
    "rocket.jpg",
)
_SCIKIT_LEARN = ("china.jpg", "flower.jpg")

CROPS = "crops"
"""The folder of the crops, below that of the photographs."""

_KEPT = 0.6
"""Of the width, in a crop; so the two overlap a little."""


def copy_photos(folder: Path) -> list[Path]:
    """Copies every photograph into ``folder`` and its left and right part into ``folder/crops``.

    Returns:
        the photographs; the crops are not among them.
    """
    (folder / CROPS).mkdir(parents=True)
    sources = [files("skimage.data") / name for name in _SCIKIT_IMAGE]
    sources += [files("sklearn.datasets") / "images" / name for name in _SCIKIT_LEARN]
    photos = []
    for source in sources:
        photo = folder / source.name
        with source.open("rb") as original, photo.open("wb") as copy:
            shutil.copyfileobj(original, copy)
        _crop(photo, folder / CROPS)
        photos.append(photo)
    return photos


def _crop(photo: Path, folder: Path) -> None:
    with Image.open(photo) as image:
        kept = round(_KEPT * image.width)
        image.crop((0, 0, kept, image.height)).save(folder / f"{photo.stem}-left.png")
        image.crop((image.width - kept, 0, image.width, image.height)).save(folder / f"{photo.stem}-right.png")
