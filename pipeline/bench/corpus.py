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

LARGE_SIZES = ((1600, 1200), (4000, 3000))
"""Of photographs from the web, and from a telephone."""

_LARGE_DISTINCT = 24

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


def write_large(folder: Path, images: int, size: tuple[int, int]) -> Path:
    """``images`` JPEG files of ``size`` below ``folder``, links to 24 contents; the same on every machine.

    The wheels have no photograph of that size, and an enlarged one would have no detail, and decode too fast. So each
    is made of photographs of 400×300 or 500×375 side by side: as many bytes a pixel as those have.

    Returns:
        the folder that holds exactly these files.

    Raises:
        UsageError: as :func:`write_corpus`.
    """
    target = folder / f"photographs-{size[0]}x{size[1]}-{images}"
    done = target.with_suffix(".done")
    if done.exists():
        return target
    target.mkdir(parents=True, exist_ok=True)
    sources = [Image.open(path).convert("RGB") for path in _photograph_paths()]
    generator = np.random.default_rng(0)
    contents = [target / f"{number:07d}.jpg" for number in range(min(_LARGE_DISTINCT, images))]
    for path in contents:
        path.write_bytes(_encode_mosaic(sources, generator, size))
    for number in range(len(contents), images):
        os.link(contents[number % len(contents)], target / f"{number:07d}.jpg")
    done.touch()
    return target


def _encode_mosaic(sources: list[Image.Image], generator: np.random.Generator, size: tuple[int, int]) -> bytes:
    across = 4 if size[0] <= 4 * SIZE[0] else 8
    width, height = size[0] // across, size[1] // across
    whole = Image.new("RGB", size)
    for place in range(across * across):
        tile = _crop(sources[int(generator.integers(len(sources)))], generator, (width, height))
        whole.paste(tile, (place % across * width, place // across * height))
    return _jpeg(whole)


def photographs(distinct: int) -> Iterator[bytes]:
    """``distinct`` encoded JPEGs, as :func:`write_corpus` describes them."""
    sources = [Image.open(path).convert("RGB") for path in _photograph_paths()]
    generator = np.random.default_rng(0)
    for number in range(distinct):
        for attempt in range(_TRIES):
            data = _jpeg(_crop(sources[(number + attempt) % len(sources)], generator, SIZE))
            if _BYTES[0] <= len(data) <= _BYTES[1]:
                yield data
                break
        else:
            raise UsageError(f"no crop of the photographs has {_BYTES[0]} to {_BYTES[1]} bytes; other wheels?")


def _crop(image: Image.Image, generator: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    width, height = size
    largest = min(image.width / width, image.height / height)
    scale = largest * generator.uniform(_LEAST_CROP, 1.0)
    wide, high = int(width * scale), int(height * scale)
    left, top = (int(generator.integers(0, room + 1)) for room in (image.width - wide, image.height - high))
    crop = image.resize(size, Image.Resampling.BICUBIC, box=(left, top, left + wide, top + high))
    if generator.integers(2):
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return crop


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_QUALITY, subsampling="4:2:0")
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
