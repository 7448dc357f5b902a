"""Encoded bytes to the uint8 crop that the model sees: the presets, and their two implementations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from timm.data import create_transform

from pipeline.decode import decode_image, decode_pixels
from pipeline.errors import RejectError, UsageError
from pipeline.prepared import Prepared
from pipeline.resize import covers, resize_and_crop, shorter_side

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from pipeline.config import ImageLimits, Implementation, Preset

PRESET_SIZES: Mapping[Preset, int | None] = {"timm": None, "dinov2-224": 224}
"""Side of the crop in pixels that a preset asks for; None is the model's own."""

_ENOUGH = 2
"""How many times the resized side a scaled decode must keep, so that the resize's own filter decides what is seen."""


@dataclass(frozen=True, slots=True)
class PreprocessConfig:
    """A resolved preset, in the terms of timm's data config.

    Attributes:
        height: of the crop, in pixels.
        width: of the crop, in pixels.
        crop_pct: crop size over resized size.
        crop_mode: timm's ``center``, ``squash`` or ``border``.
        interpolation: timm's name of the filter.
        mean: per channel, of values in 0..1.
        std: likewise.
        implementation: ``fast``, ``scaled`` or ``reference``.
    """

    height: int
    width: int
    crop_pct: float
    crop_mode: str
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    implementation: Implementation


def input_side(preset: Preset, image_size: int | None) -> int | None:
    """Side of the model's input in pixels; None is the model's own.

    Raises:
        UsageError: the preset fixes it already.
    """
    fixed = PRESET_SIZES[preset]
    if image_size is not None and fixed is not None and image_size != fixed:
        raise UsageError(
            f"--preset {preset} makes {fixed}×{fixed} crops; --image-size {image_size} goes with timm's alone"
        )
    return image_size or fixed


def resolve_preset(
    data_config: Mapping[str, Any],
    preset: Preset,
    implementation: Implementation,
    image_size: int | None = None,
) -> PreprocessConfig:
    """What a preset means for a model.

    Args:
        data_config: the model's, as ``timm.data.resolve_model_data_config`` gives it.
        preset: ``timm``: the data config as it is; ``dinov2-224``: resize the shorter side to 256, crop 224, bicubic
            (``make_classification_eval_transform`` of Meta's DINOv2).
        implementation: ``fast``, ``scaled`` or ``reference``.
        image_size: side of the crop in pixels where it is not the preset's; crop_pct stays.

    Raises:
        UsageError: the model does not take three channels.
    """
    channels, height, width = data_config["input_size"]
    if channels != 3:
        raise UsageError(f"the model takes {channels} channels; raysight feeds it RGB")
    crop_pct, crop_mode = float(data_config["crop_pct"]), str(data_config["crop_mode"])
    interpolation = str(data_config["interpolation"])
    if image_size is not None:
        height = width = image_size
    side = PRESET_SIZES[preset]
    if side is not None:
        height, width, crop_pct, crop_mode, interpolation = side, side, 224 / 256, "center", "bicubic"
    return PreprocessConfig(
        height=height,
        width=width,
        crop_pct=crop_pct,
        crop_mode=crop_mode,
        interpolation=interpolation,
        mean=tuple(map(float, data_config["mean"])),
        std=tuple(map(float, data_config["std"])),
        implementation=implementation,
    )


def timm_transform(config: PreprocessConfig, *, normalize: bool) -> Any:
    """timm's own evaluation transform; without ``normalize`` it ends at the (3, H, W) uint8 tensor."""
    return create_transform(
        input_size=(3, config.height, config.width),
        is_training=False,
        interpolation=config.interpolation,
        mean=config.mean,
        std=config.std,
        crop_pct=config.crop_pct,
        crop_mode=config.crop_mode,
        use_prefetcher=not normalize,
    )


class Preprocessor:
    """``prepare(bytes)`` for one preset. Thread-safe, picklable, knows nothing of the model."""

    def __init__(self, config: PreprocessConfig, limits: ImageLimits) -> None:
        self.config = config
        self.limits = limits
        self._transform = timm_transform(config, normalize=False)
        scaled = config.implementation == "scaled" and covers(config)
        self._enough = _ENOUGH * shorter_side(config) if scaled else None

    @property
    def image_bytes(self) -> int:
        """Bytes of the pixels of a prepared image."""
        return self.config.height * self.config.width * 3

    def prepare(self, data: bytes | memoryview) -> Prepared:
        """Decodes, resizes and crops one image.

        Raises:
            RejectError: the bytes cannot be decoded within the limits. Whatever else a decoder raises on wild bytes
                counts as error ``Corrupt`` of this image, so that one image never ends a job.
        """
        try:
            return self._prepare(data)
        except RejectError:
            raise
        except Exception as error:
            raise RejectError("decode", "Corrupt", f"{type(error).__name__}: {error}") from error

    def _prepare(self, data: bytes | memoryview) -> Prepared:
        if self.config.implementation == "reference":
            image = decode_image(data, self.limits)
            self._check_resized(image.width, image.height)
            return Prepared(self._timm(image), image.width, image.height)
        decoded = decode_pixels(data, self.limits, self._enough)
        self._check_resized(decoded.width, decoded.height)
        crop = resize_and_crop(decoded.pixels, self.config)
        if crop is None:
            crop = self._timm(Image.fromarray(decoded.pixels))
        return Prepared(crop, decoded.width, decoded.height)

    def _check_resized(self, width: int, height: int) -> None:
        """timm resizes the whole image before it crops, which would blow a strip up without bound.

        Judged alike for both implementations, so that the same images are in a dataset whichever made it.
        """
        if self.config.crop_mode != "center":
            return  # resized to the model's input size or less
        scale = max(self.config.height / height, self.config.width / width) / self.config.crop_pct
        if width * height * scale**2 > self.limits.max_pixels:
            raise RejectError(
                "decode",
                "TooManyPixels",
                f"{width}×{height} would be resized to more than max_pixels, {self.limits.max_pixels}",
            )

    def _timm(self, image: Image.Image) -> NDArray[np.uint8]:
        """timm's transform, verbatim."""
        pixels: NDArray[np.uint8] = np.ascontiguousarray(self._transform(image).permute(1, 2, 0).numpy())
        return pixels
