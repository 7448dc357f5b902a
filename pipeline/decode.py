"""Encoded bytes to RGB pixels, within bounds that are checked before a pixel is decoded.

Pillow reads every header and so decides what is an image and which way up it is; libjpeg-turbo alone then decodes the
plain JPEGs, to the same pixels and in half the time. Whatever it stumbles over is judged again by Pillow.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import simplejpeg
from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError

from pipeline.errors import RejectError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.config import ImageLimits

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""The decoders that untrusted bytes may reach."""

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
"""What counts as an image in a listing, whatever its case."""

OTHER_SUFFIXES = (".avif", ".heic", ".heif", ".jxl", ".jp2", ".psd", ".svg", ".arw", ".cr2", ".cr3", ".dng", ".nef")
"""Of images that none of the decoders reads: a listing counts them."""

# ImageLimits.max_pixels is checked against the header below, so Pillow's own bound would only add a second, fixed one.
Image.MAX_IMAGE_PIXELS = None

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns an image upright, by its EXIF orientation (JEITA CP-3451, tag 0x0112)."""


def decode_image(data: bytes | memoryview, limits: ImageLimits) -> Image.Image:
    """Decodes the first frame to an upright Pillow image of mode RGB.

    EXIF orientation is applied, alpha is dropped (as timm's transform does), 16-bit samples keep their high byte.

    Raises:
        RejectError: with stage ``decode`` and error ``Empty``, ``TooManyBytes``, ``NotAnImage``, ``TooManyPixels``,
            ``Truncated`` or ``Corrupt``.
    """
    _check_size(data, limits)
    try:
        return _decode(_open(data, limits))
    except RejectError:
        raise
    except Exception as error:
        raise _judge(error) from error


@dataclass(frozen=True, slots=True)
class Decoded:
    """An upright image.

    Attributes:
        pixels: (h, w, 3) uint8, RGB; of a large JPEG possibly a half, a quarter or an eighth of each side.
        width: of the whole image, in pixels.
        height: likewise.
    """

    pixels: NDArray[np.uint8]
    width: int
    height: int


def decode_pixels(data: bytes | memoryview, limits: ImageLimits, enough: int | None = None) -> Decoded:
    """As :func:`decode_image`, by libjpeg-turbo alone where the file is a plain JPEG.

    Args:
        data: of one file.
        limits: what one image may cost.
        enough: a JPEG may be decoded at a fraction of its size that leaves its shorter side this many pixels; None
            decodes all of it.
    """
    _check_size(data, limits)
    try:
        image = _open(data, limits)
        plain = image.mode in ("RGB", "L") and image.format in ("JPEG", "MPO")
        eighths = 8 if enough is None else _eighths(image.width, image.height, enough)
        pixels = _decode_jpeg(data, image, eighths) if plain else None
        if pixels is None:
            pixels, eighths = np.array(_decode(image)), 8
        return Decoded(pixels, pixels.shape[1] * 8 // eighths, pixels.shape[0] * 8 // eighths)
    except RejectError:
        raise
    except Exception as error:
        raise _judge(error) from error


def image_size(data: bytes | memoryview, limits: ImageLimits) -> tuple[int, int]:
    """Width and height in pixels, as the header has them: nothing is decoded or turned. Raises RejectError."""
    _check_size(data, limits)
    try:
        return _open(data, limits).size
    except RejectError:
        raise
    except Exception as error:
        raise _judge(error) from error


def _open(data: bytes | memoryview, limits: ImageLimits) -> Image.Image:
    """Reads the header alone."""
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    if image.width * image.height == 0:
        raise RejectError("decode", "Corrupt", f"{image.width}×{image.height} pixels")
    if image.width * image.height > limits.max_pixels:
        raise RejectError(
            "decode",
            "TooManyPixels",
            f"{image.width}×{image.height} pixels; the limit max_pixels is {limits.max_pixels}",
        )
    return image


def _decode(image: Image.Image) -> Image.Image:
    image.load()  # before the orientation is read: Pillow turns a TIFF upright while it loads, and says so then
    return _turn_upright(_to_rgb(image), image)


def _eighths(width: int, height: int, enough: int) -> int:
    """The least fraction, in eighths, at which a JPEG can be decoded with ``enough`` pixels on its shorter side.

    An inverse DCT of fewer coefficients gives each block of 8×8 as 4×4, 2×2 or 1×1: the same picture, every sample in
    its place, where the whole size shrinks by that factor without a rest. Else the last block would stand out, and a
    resize would shift all samples by a part of a pixel. Other eighths have no fast code in libjpeg-turbo.
    """
    if max(width, height) > 2 * min(width, height):
        return 8  # Pillow resizes some strips in another order, and they are left to it, from the whole
    for eighths in (1, 2, 4):
        if min(width, height) * eighths >= 8 * enough and width * eighths % 8 == height * eighths % 8 == 0:
            return eighths
    return 8


def _decode_jpeg(data: bytes | memoryview, image: Image.Image, eighths: int) -> NDArray[np.uint8] | None:
    """None leaves the file to Pillow: any warning of the decoder, or a header that it reads in another way."""
    width, height = image.width * eighths // 8, image.height * eighths // 8
    try:
        if simplejpeg.decode_jpeg_header(data)[:2] != (image.height, image.width):
            return None
        # The decoder takes the least size that is not below these; at 8/8 it is told nothing, and takes the whole.
        least = {"min_height": height, "min_width": width} if eighths < 8 else {}
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, colorspace="RGB", **least)
    except ValueError:
        return None
    if pixels.shape[:2] != (height, width):
        return None
    # Making a Pillow image copies every pixel: only where it must be turned.
    method = _upright_method(image)
    return pixels if method is None else np.array(Image.fromarray(pixels).transpose(method))


def _turn_upright(pixels: Image.Image, header: Image.Image) -> Image.Image:
    """Applies the EXIF (or XMP) orientation that the header names, as Pillow's ``exif_transpose`` does."""
    method = _upright_method(header)
    return pixels if method is None else pixels.transpose(method)


def _upright_method(header: Image.Image) -> Image.Transpose | None:
    try:
        return _UPRIGHT.get(header.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        # Broken metadata raises all sorts (SyntaxError, struct.error, TypeError, ...), and costs nobody the image.
        return None


def _to_rgb(image: Image.Image) -> Image.Image:
    """Mode RGB; modes that Pillow would clip are scaled first."""
    if image.mode.startswith("I;16") or image.mode == "I":
        samples = np.asarray(image)
        # 16-bit samples, also where Pillow widens them to 32 bits; what lies outside is clipped.
        return Image.fromarray((samples.astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        samples = np.nan_to_num(np.asarray(image), nan=0.0)
        top = 1.0 if samples.max(initial=0.0) <= 1.0 else 255.0
        return Image.fromarray((samples.clip(0.0, top) * (255.0 / top)).round().astype(np.uint8)).convert("RGB")
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.applyTransform(image, ImageCms.buildTransform(lab, srgb, "LAB", "RGB"))
        assert converted is not None  # it is None for inPlace=True alone
        return converted
    # Two detours that Pillow asks for: a palette with transparency, and premultiplied alpha.
    if image.mode == "P" and "transparency" in image.info:
        return image.convert("RGBA").convert("RGB")
    if image.mode in ("RGBa", "La"):
        return image.convert(image.mode.upper()).convert("RGB")
    return image.convert("RGB")


def _check_size(data: bytes | memoryview, limits: ImageLimits) -> None:
    if len(data) == 0:
        raise RejectError("decode", "Empty", "the object has no bytes")
    if len(data) > limits.max_bytes:
        raise RejectError("decode", "TooManyBytes", f"{len(data)} bytes; the limit max_bytes is {limits.max_bytes}")


def _judge(error: Exception) -> RejectError:
    text = str(error).strip() or type(error).__name__
    if isinstance(error, UnidentifiedImageError):
        return RejectError("decode", "NotAnImage", f"no decoder for {', '.join(FORMATS)} recognises it")
    if isinstance(error, EOFError) or "truncated" in text.lower() or "unrecognized data stream" in text.lower():
        return RejectError("decode", "Truncated", text)
    return RejectError("decode", "Corrupt", f"{type(error).__name__}: {text}")
