"""Encoded bytes to RGB pixels, within bounds that are checked before a pixel is decoded.

What Pillow makes of a file is the rule: the fast path for JPEG gives the same pixels, and whatever it stumbles over
is judged again by Pillow.
"""

from __future__ import annotations

import io
import struct
from typing import TYPE_CHECKING

import numpy as np
import simplejpeg
from PIL import Image, ImageOps, UnidentifiedImageError

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

_EXIF_ORIENTATION = 0x0112
_JPEG_MAGIC = b"\xff\xd8\xff"


def decode_image(data: bytes | memoryview, limits: ImageLimits) -> Image.Image:
    """Decodes the first frame to an upright Pillow image of mode RGB.

    EXIF orientation is applied, alpha is dropped (as timm's transform does), 16-bit samples keep their high byte.

    Raises:
        RejectError: with stage ``decode`` and error ``Empty``, ``TooManyBytes``, ``NotAnImage``, ``TooManyPixels``,
            ``Truncated`` or ``Corrupt``.
    """
    _check_size(data, limits)
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        _check_pixels(image.width, image.height, limits)
        upright = ImageOps.exif_transpose(image)
        return _to_rgb(upright)
    except RejectError:
        raise
    except Exception as error:
        raise _judge(error) from error


def decode_pixels(data: bytes | memoryview, limits: ImageLimits) -> NDArray[np.uint8]:
    """As :func:`decode_image`, to (height, width, 3) uint8, by libjpeg-turbo alone where the file is a plain JPEG."""
    _check_size(data, limits)
    if bytes(data[:3]) == _JPEG_MAGIC:
        pixels = _decode_jpeg(data, limits)
        if pixels is not None:
            return pixels
    return np.array(decode_image(data, limits))


def _decode_jpeg(data: bytes | memoryview, limits: ImageLimits) -> NDArray[np.uint8] | None:
    """None leaves the file to Pillow: CMYK, something odd in the header, or any warning of the decoder."""
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        if colorspace not in ("YCbCr", "Gray", "RGB"):
            return None
        _check_pixels(width, height, limits)
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, colorspace="RGB")
    except ValueError:
        return None
    orientation = _jpeg_orientation(data)
    return pixels if orientation == 1 else _turn(pixels, orientation)


def _jpeg_orientation(data: bytes | memoryview) -> int:
    """The EXIF orientation (1 to 8) of a JPEG; 1 where there is none.

    Walks the markers up to the start of scan (ITU T.81, B.1.1.4) and hands the Exif block to Pillow.
    """
    view = memoryview(data)
    position = 2
    while position + 4 <= len(view) and view[position] == 0xFF:
        marker = view[position + 1]
        if marker == 0xFF:  # a fill byte
            position += 1
            continue
        if marker == 0xDA:
            break
        (length,) = struct.unpack_from(">H", view, position + 2)
        if marker == 0xE1 and bytes(view[position + 4 : position + 10]) == b"Exif\0\0":
            exif = Image.Exif()
            try:
                exif.load(bytes(view[position + 4 : position + 2 + length]))
                value = exif.get(_EXIF_ORIENTATION, 1)
            except (SyntaxError, ValueError, KeyError, TypeError, struct.error):
                return 1  # Pillow's exif_transpose leaves an unreadable block alone as well
            return value if value in range(2, 9) else 1
        position += 2 + length
    return 1


def _turn(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Pixels as seen upright, for an orientation of the EXIF standard (JEITA CP-3451, tag 0x0112)."""
    turned = {
        2: lambda x: x[:, ::-1],
        3: lambda x: x[::-1, ::-1],
        4: lambda x: x[::-1],
        5: lambda x: x.transpose(1, 0, 2),
        6: lambda x: x[::-1].transpose(1, 0, 2),
        7: lambda x: x[::-1, ::-1].transpose(1, 0, 2),
        8: lambda x: x[:, ::-1].transpose(1, 0, 2),
    }[orientation](pixels)
    return np.ascontiguousarray(turned)


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
    if image.mode == "P" and "transparency" in image.info:
        return image.convert("RGBA").convert("RGB")  # Pillow asks for this detour
    return image.convert("RGB")


def _check_size(data: bytes | memoryview, limits: ImageLimits) -> None:
    if len(data) == 0:
        raise RejectError("decode", "Empty", "the object has no bytes")
    if len(data) > limits.max_bytes:
        raise RejectError("decode", "TooManyBytes", f"{len(data)} bytes; the limit max_bytes is {limits.max_bytes}")


def _check_pixels(width: int, height: int, limits: ImageLimits) -> None:
    if width * height > limits.max_pixels:
        raise RejectError(
            "decode", "TooManyPixels", f"{width}×{height} pixels; the limit max_pixels is {limits.max_pixels}"
        )


def _judge(error: Exception) -> RejectError:
    text = str(error).strip() or type(error).__name__
    if isinstance(error, UnidentifiedImageError):
        return RejectError("decode", "NotAnImage", f"no decoder for {', '.join(FORMATS)} recognises it")
    if isinstance(error, EOFError) or "truncated" in text.lower() or "unrecognized data stream" in text.lower():
        return RejectError("decode", "Truncated", text)
    return RejectError("decode", "Corrupt", f"{type(error).__name__}: {text}")
