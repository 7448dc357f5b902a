"""The fast resize: timm's ``Resize`` and ``CenterCrop`` in one, computing only what the crop keeps."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.preprocess import PreprocessConfig

_WASTE = 4
"""How many times the crop's area a resize may compute before another way is cheaper."""


def covers(config: PreprocessConfig) -> bool:
    """Whether :func:`resize_and_crop` knows the crop and the filter: a square, centred crop of what was resized."""
    square = config.height == config.width
    known = config.crop_mode == "center" and config.interpolation in ("bicubic", "bilinear")
    return square and known and shorter_side(config) >= config.height


def shorter_side(config: PreprocessConfig) -> int:
    """Of the resized image, before the crop, in pixels; as timm computes it."""
    return math.floor(config.height / config.crop_pct)


def resize_and_crop(pixels: NDArray[np.uint8], config: PreprocessConfig) -> NDArray[np.uint8] | None:
    """Resizes the shorter side and crops the centre, within 2 levels of Pillow's antialiased resize.

    Args:
        pixels: (h, w, 3) uint8.
        config: a square, centred crop by a bicubic or bilinear filter covers nearly every timm model.

    Returns:
        (H, W, 3) uint8; None leaves the image to timm's transform.
    """
    if not covers(config):
        return None
    height, width = pixels.shape[:2]
    # Sizes and offsets as torchvision computes them (Resize with an int size, CenterCrop).
    shorter = shorter_side(config)
    if width <= height:
        new_width, new_height = shorter, int(shorter * height / width)
    else:
        new_width, new_height = int(shorter * width / height), shorter
    if height > 2 * width and new_height < height:
        return None  # Pillow shrinks tall images in height first; rounding in between then differs in every pixel
    top, left = round((new_height - config.height) / 2), round((new_width - config.width) / 2)
    rows, out_rows, skip_rows = aligned_box(height, new_height, top, config.height)
    columns, out_columns, skip_columns = aligned_box(width, new_width, left, config.width)
    if out_rows * out_columns > _WASTE * config.height * config.width:
        return _fractional_box(pixels, config, (width / new_width, height / new_height), (left, top))
    # One axis after the other, as torch does it, so that the second pass has only the columns of the crop.
    wide = _resize(pixels[rows, columns], (pixels[rows].shape[0], out_columns), config.interpolation)
    crop = wide[:, skip_columns : skip_columns + config.width]
    return _resize(crop, (out_rows, config.width), config.interpolation)[skip_rows : skip_rows + config.height]


def _resize(pixels: NDArray[np.uint8], size: tuple[int, int], interpolation: str) -> NDArray[np.uint8]:
    """(h, w, 3) to (height, width, 3) of ``size``, both uint8."""
    # Strides that torch knows as channels last, which permute().unsqueeze() does not give: three times as fast.
    source = torch.from_numpy(np.ascontiguousarray(pixels)).unsqueeze(0).permute(0, 3, 1, 2)
    resized = interpolate(source, size=size, mode=interpolation, antialias=True, align_corners=False)
    return np.ascontiguousarray(resized[0].permute(1, 2, 0).numpy())


def _fractional_box(
    pixels: NDArray[np.uint8], config: PreprocessConfig, scale: tuple[float, float], offset: tuple[int, int]
) -> NDArray[np.uint8]:
    """For a strip without a usable alignment: Pillow takes fractional boxes, at a third of the speed.

    One pass for each axis, the width first, as Pillow resizes the whole.
    """
    filter_ = Image.Resampling[config.interpolation.upper()]
    (across, down), (left, top) = scale, offset
    image = Image.fromarray(pixels)
    columns = (left * across, 0, (left + config.width) * across, image.height)
    image = image.resize((config.width, image.height), filter_, box=columns)
    rows = (0, top * down, config.width, (top + config.height) * down)
    return np.array(image.resize((config.width, config.height), filter_, box=rows))


def aligned_box(source: int, target: int, offset: int, length: int) -> tuple[slice, int, int]:
    """The least part of one axis whose resize gives the same numbers as the whole's, over the cropped range.

    A resize of ``source`` to ``target`` samples repeats its phase every ``target / gcd`` outputs, which is exactly
    ``source / gcd`` inputs; a box that starts and ends on such a period keeps every sample position. It also keeps
    the filter's whole support (Pillow's bicubic reaches 2 samples, or 2 scales when it shrinks) on both sides.

    Returns:
        the slice of the source, the size it is resized to, and how many of those outputs precede the crop.
    """
    divisor = math.gcd(source, target)
    period_in, period_out = source // divisor, target // divisor
    scale = source / target
    support = math.ceil(2 * max(scale, 1.0) / scale) + 1
    first = max(0, offset - support) // period_out
    last = min(divisor, -(-(offset + length + support) // period_out))
    return (
        slice(first * period_in, last * period_in),
        (last - first) * period_out,
        offset - first * period_out,
    )
