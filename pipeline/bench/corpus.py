"""What is measured on: real photographs at one size for the speed, tiny files under many names for the memory."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from pipeline.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

SIZE = (500, 375)
"""Width and height of a photograph of the corpus, in pixels: the usual size of ImageNet."""

_BYTES = (40_000, 60_000)
_QUALITY = 87
_LEAST_CROP = 0.6  # of the largest crop of the right shape
_TRIES = 200
_LINKS = 1000  # files in a folder
_TINY_BYTES = 16 << 10

# Photographs alone, of the pictures in the two wheels; those without detail make small files and are passed over.
_SKIMAGE = (
    "astronaut.png",
    "coffee.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "motorcycle_left.png",
    "motorcycle_right.png",
    "retina.jpg",
    "rocket.jpg",
)
_SKLEARN = ("china.jpg", "flower.jpg")


def write_corpus(folder: Path, images: int, distinct: int = 300) -> Path:
    """``images`` JPEG files of ``distinct`` contents below ``folder``; the same on every machine.

    Each is a mirrored or plain crop of a real photograph, resized to 500×375, encoded at quality 87 with 4:2:0
    chroma, of 40 to 60 kB. Files that are there already are kept, so that a second run finds its corpus.

    Returns:
        the folder that holds exactly these files.

    Raises:
        UsageError: the wheels with the photographs are not installed.
    """
    target = folder / f"photographs-{images}"
    done = target.with_suffix(".done")
    if done.exists():
        return target
    target.mkdir(parents=True, exist_ok=True)
    contents = list(photographs(min(distinct, images)))
    for number in range(images):
        (target / f"{number:07d}.jpg").write_bytes(contents[number % len(contents)])
    done.touch()
    return target


def photographs(distinct: int) -> Iterator[bytes]:
    """``distinct`` encoded JPEGs, as :func:`write_corpus` describes them."""
    sources = [Image.open(path).convert("RGB") for path in _photograph_paths()]
    generator = np.random.default_rng(0)
    for number in range(distinct):
        for attempt in range(_TRIES):
            data = _encode(sources[(number + attempt) % len(sources)], generator)
            if _BYTES[0] <= len(data) <= _BYTES[1]:
                yield data
                break
        else:
            raise UsageError(f"no crop of the photographs has {_BYTES[0]} to {_BYTES[1]} bytes; other wheels?")


def _encode(image: Image.Image, generator: np.random.Generator) -> bytes:
    width, height = SIZE
    largest = min(image.width / width, image.height / height)
    scale = largest * generator.uniform(_LEAST_CROP, 1.0)
    wide, high = int(width * scale), int(height * scale)
    left, top = (int(generator.integers(0, room + 1)) for room in (image.width - wide, image.height - high))
    crop = image.resize(SIZE, Image.Resampling.BICUBIC, box=(left, top, left + wide, top + high))
    if generator.integers(2):
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    buffer = io.BytesIO()
    crop.save(buffer, "JPEG", quality=_QUALITY, subsampling="4:2:0")
    return buffer.getvalue()


def _photograph_paths() -> list[Path]:
    try:
        import skimage
        import sklearn
    except ImportError as error:
        raise UsageError(
            "the corpus is made from the photographs of scikit-image and scikit-learn: pip install 'raysight[demo]'"
        ) from error
    data = Path(skimage.__file__).parent / "data"
    images = Path(sklearn.__file__).parent / "datasets" / "images"
    return [*(data / name for name in _SKIMAGE), *(images / name for name in _SKLEARN)]


def write_tiny(folder: Path, files: int) -> Path:
    """``files`` names of a JPEG of one pixel, a thousand in a folder; a hundred names share one file by hard links.

    Zeros after the image make each 16 KiB: a chunk of ten then lies in the object store, as a real one does, and not
    with the driver, where Ray keeps what is smaller than 100 KiB.

    Returns:
        the folder that holds exactly these files.
    """
    target = folder / f"tiny-{files}"
    done = target.with_suffix(".done")
    if done.exists():
        return target
    buffer = io.BytesIO()
    Image.new("RGB", (1, 1)).save(buffer, "JPEG")
    data = buffer.getvalue().ljust(_TINY_BYTES, b"\0")
    for number in range(files):
        path = target / f"{number // _LINKS:05d}" / f"{number:08d}.jpg"
        if number % _LINKS == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
        if number % 100 == 0:
            first = path
            path.write_bytes(data)
        elif not path.exists():
            os.link(first, path)
    done.touch()
    return target
