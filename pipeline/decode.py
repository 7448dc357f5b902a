"""Encoded bytes to RGB pixels, within bounds that are checked before a pixel is decoded.

Pillow reads every header and so decides what is an image and which way up it is; libjpeg-turbo alone then decodes the
plain JPEGs, to the same pixels and in half the time. Whatever it stumbles over is judged again by Pillow.
"""

from __future__ import annotations

import io
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


def decode_pixels(data: bytes | memoryview, limits: ImageLimits) -> NDArray[np.uint8]:
    """As :func:`decode_image`, to (height, width, 3) uint8, by libjpeg-turbo alone where the file is a plain JPEG."""
    _check_size(data, limits)
    try:
        image = _open(data, limits)
        pixels = _decode_jpeg(data, image) if image.mode in ("RGB", "L") and image.format in ("JPEG", "MPO") else None
        return np.array(_decode(image)) if pixels is None else pixels
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


def _decode_jpeg(data: bytes | memoryview, image: Image.Image) -> NDArray[np.uint8] | None:
    """None leaves the file to Pillow: any warning of the decoder, or a header that it reads in another way."""
    try:
        if simplejpeg.decode_jpeg_header(data)[:2] != (image.height, image.width):
            return None
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, colorspace="RGB")
    except ValueError:
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
