"""Decoding: Pillow is the oracle of what the pixels are; limits hold before a pixel is decoded."""

from __future__ import annotations

import io
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import simplejpeg
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps

from pipeline.config import ImageLimits
from pipeline.decode import FORMATS, decode_image, decode_pixels
from pipeline.errors import RejectError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

LIMITS = ImageLimits()

# Pillow remarks on odd metadata. The files here are odd on purpose, and a remark must not decide what becomes of them.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")


def decode_both_ways(data: bytes, limits: ImageLimits = LIMITS) -> NDArray[np.uint8]:
    """(h, w, 3) uint8, which both decoders must agree on to the last bit."""
    by_pillow = np.asarray(decode_image(data, limits))
    np.testing.assert_array_equal(decode_pixels(data, limits).pixels, by_pillow)
    assert by_pillow.dtype == np.uint8
    return by_pillow


def rejection(data: bytes, limits: ImageLimits = LIMITS) -> RejectError:
    """Why both decoders reject the bytes."""
    with pytest.raises(RejectError) as slow:
        decode_image(data, limits)
    with pytest.raises(RejectError) as fast:
        decode_pixels(data, limits)
    assert slow.value.stage == fast.value.stage == "decode"
    assert (slow.value.error, slow.value.message) == (fast.value.error, fast.value.message)
    return slow.value


def encode(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def header_only_png(width: int, height: int) -> bytes:
    """A PNG that promises 8-bit grayscale pixels and has none."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    checksum = struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + checksum + struct.pack(">I", 1000) + b"IDAT"


@pytest.fixture(scope="module")
def photo(photographs: dict[str, bytes]) -> Image.Image:
    """A photograph, RGB, 120×80."""
    return Image.open(io.BytesIO(photographs["chelsea.png"])).convert("RGB").resize((120, 80))


# --- what becomes of each mode -------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMATS)
def test_an_rgb_image_of_each_format_has_the_pixels_pillow_gives(form: str, photo: Image.Image) -> None:
    data = encode(photo, form)
    np.testing.assert_array_equal(decode_both_ways(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize(
    ("mode", "form"),
    [
        ("1", "PNG"),
        ("1", "TIFF"),
        ("L", "PNG"),
        ("L", "JPEG"),
        ("L", "BMP"),
        ("LA", "PNG"),
        ("LA", "TIFF"),
        ("P", "PNG"),
        ("P", "GIF"),
        ("P", "BMP"),
        ("PA", "TIFF"),
        ("RGBA", "PNG"),
        ("RGBA", "WEBP"),
        ("RGBA", "TIFF"),
        ("RGBX", "TIFF"),
        ("CMYK", "JPEG"),
        ("CMYK", "TIFF"),
        ("YCbCr", "TIFF"),
    ],
)
def test_a_mode_pillow_converts_has_the_pixels_of_its_conversion(mode: str, form: str, photo: Image.Image) -> None:
    data = encode(photo.convert("P").convert("PA") if mode == "PA" else photo.convert(mode), form)
    opened = Image.open(io.BytesIO(data))
    assert opened.mode in (mode, "RGB")  # Pillow decodes YCbCr TIFF to RGB itself
    np.testing.assert_array_equal(decode_both_ways(data), np.asarray(opened.convert("RGB")))


@pytest.mark.parametrize("transparency", [0, bytes(range(256))], ids=["one index", "a table"])
def test_a_palette_with_transparency_keeps_its_colours(transparency: int | bytes, photo: Image.Image) -> None:
    palette = photo.convert("P")
    data = encode(palette, "PNG", transparency=transparency)
    assert "transparency" in Image.open(io.BytesIO(data)).info
    np.testing.assert_array_equal(decode_both_ways(data), np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_16_bit_gray_keeps_its_high_byte(form: str) -> None:
    samples = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    decoded = decode_both_ways(encode(Image.fromarray(samples), form))
    for channel in range(3):
        np.testing.assert_array_equal(decoded[..., channel], samples // 256)


def test_16_bit_gray_in_either_byte_order_is_the_same() -> None:
    samples = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    big_endian = Image.frombytes("I;16B", (64, 64), samples.astype(">u2").tobytes())
    np.testing.assert_array_equal(decode_both_ways(encode(big_endian, "TIFF"))[..., 0], samples // 256)


def test_32_bit_integers_are_read_as_16_bit_and_clipped() -> None:
    samples = np.array([[-5, 0, 255, 256, 65535, 1 << 30]], dtype=np.int32)
    assert decode_both_ways(encode(Image.fromarray(samples), "TIFF"))[0, :, 0].tolist() == [0, 0, 0, 1, 255, 255]


@pytest.mark.parametrize(
    ("samples", "levels"),
    [
        ([0.0, 0.5, 1.0, -1.0, np.nan], [0, 128, 255, 0, 0]),  # up to 1 is a fraction
        ([0.0, 100.4, 255.0, 300.0, np.inf], [0, 100, 255, 255, 255]),  # above it are levels
    ],
)
def test_floats_are_fractions_or_levels(samples: list[float], levels: list[int]) -> None:
    data = encode(Image.fromarray(np.array([samples], dtype=np.float32)), "TIFF")
    assert decode_both_ways(data)[0, :, 0].tolist() == levels


def test_lab_is_converted_to_srgb(photo: Image.Image) -> None:
    lab = ImageCms.profileToProfile(
        photo, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    assert lab is not None
    decoded = decode_both_ways(encode(lab, "TIFF"))
    assert np.abs(decoded.astype(int) - np.asarray(photo).astype(int)).mean() < 3  # 8-bit LAB cannot hold more


def test_transparent_pixels_keep_the_colour_beneath() -> None:
    decoded = decode_both_ways(encode(Image.new("RGBA", (2, 2), (10, 20, 30, 0)), "PNG"))
    assert decoded.reshape(-1, 3).tolist() == [[10, 20, 30]] * 4


@pytest.mark.parametrize("size", [(1, 1), (3000, 40), (40, 3000), (1, 500), (7, 3)])
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_any_size_is_decoded_whole(size: tuple[int, int], form: str, photo: Image.Image) -> None:
    assert decode_both_ways(encode(photo.resize(size), form)).shape == (size[1], size[0], 3)


# --- JPEG, the fast way --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"progressive": True}, {"subsampling": 0}, {"subsampling": 1}, {"quality": 5}])
def test_a_jpeg_has_the_pixels_pillow_gives_however_it_was_encoded(options: dict[str, Any], photo: Image.Image) -> None:
    data = encode(photo, "JPEG", **options)
    np.testing.assert_array_equal(decode_both_ways(data), np.asarray(Image.open(io.BytesIO(data))))


def test_real_photographs_have_the_pixels_pillow_gives(photographs: dict[str, bytes]) -> None:
    for data in photographs.values():
        np.testing.assert_array_equal(decode_both_ways(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_an_rgb_jpeg_without_colour_conversion_is_told_by_its_header(photo: Image.Image) -> None:
    data = encode(photo, "JPEG", keep_rgb=True, quality=95)
    assert simplejpeg.decode_jpeg_header(data)[2] == "RGB"
    assert np.abs(decode_both_ways(data).astype(int) - np.asarray(photo).astype(int)).mean() < 3


def test_bytes_after_the_end_of_a_jpeg_change_nothing(photo: Image.Image) -> None:
    data = encode(photo, "JPEG")
    np.testing.assert_array_equal(decode_both_ways(data + b"\0" * 1000), decode_both_ways(data))


def test_bytes_between_the_segments_of_a_jpeg_change_nothing(photo: Image.Image) -> None:
    data = encode(photo, "JPEG")
    table = data.index(b"\xff\xdb")
    comment = b"\xff\xfe\x00\x06junk"
    np.testing.assert_array_equal(decode_both_ways(data[:table] + comment + data[table:]), decode_both_ways(data))


def test_a_multi_picture_jpeg_gives_its_first_picture(photo: Image.Image) -> None:
    data = encode(photo, "MPO", save_all=True, append_images=[ImageOps.invert(photo)])
    assert Image.open(io.BytesIO(data)).format == "MPO"
    np.testing.assert_array_equal(decode_both_ways(data), decode_both_ways(encode(photo, "JPEG")))


def test_a_memoryview_is_as_good_as_bytes(photo: Image.Image) -> None:
    data = encode(photo, "JPEG")
    np.testing.assert_array_equal(decode_pixels(memoryview(data), LIMITS).pixels, decode_pixels(data, LIMITS).pixels)


# --- at a fraction of the size -------------------------------------------------------------------------------------


def means(pixels: NDArray[np.uint8], factor: int) -> NDArray[np.float64]:
    """The mean of each square of ``factor`` pixels."""
    height, width = pixels.shape[0] // factor, pixels.shape[1] // factor
    return pixels.reshape(height, factor, width, factor, 3).mean((1, 3))


@pytest.mark.parametrize(("enough", "factor"), [(None, 1), (201, 1), (200, 2), (101, 2), (100, 4), (50, 8), (10, 8)])
def test_a_scaled_decode_keeps_enough_pixels_and_every_sample_in_its_place(
    enough: int | None, factor: int, photo: Image.Image
) -> None:
    image = photo.resize((640, 400), Image.Resampling.BICUBIC)
    data = encode(image, "JPEG", quality=95, subsampling="4:4:4")
    whole, decoded = decode_pixels(data, LIMITS).pixels, decode_pixels(data, LIMITS, enough)
    assert (decoded.width, decoded.height) == (640, 400)
    assert decoded.pixels.shape == (400 // factor, 640 // factor, 3)
    here = np.abs(decoded.pixels - means(whole, factor)).mean()
    assert here < 1
    for axis in (0, 1):  # half a pixel to either side would be worse
        shifted = (np.roll(decoded.pixels, 1, axis).astype(float) + decoded.pixels) / 2
        assert np.abs(shifted - means(whole, factor)).mean() > here


@pytest.mark.parametrize("size", [(641, 400), (640, 401), (900, 400)])
def test_a_size_that_leaves_a_rest_and_a_strip_are_decoded_whole(size: tuple[int, int], photo: Image.Image) -> None:
    data = encode(photo.resize(size), "JPEG")
    np.testing.assert_array_equal(decode_pixels(data, LIMITS, 10).pixels, decode_pixels(data, LIMITS).pixels)


def test_a_scaled_decode_is_turned_upright_too(photo: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    decoded = decode_pixels(encode(photo.resize((640, 400)), "JPEG", exif=exif), LIMITS, 200)
    assert (decoded.width, decoded.height) == (400, 640)
    assert decoded.pixels.shape == (320, 200, 3)


# --- which way up --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_an_exif_orientation_is_applied_as_pillow_applies_it(form: str, orientation: int, photo: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(photo, form, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    decoded = decode_both_ways(data)
    assert decoded.shape == ((80, 120, 3) if orientation < 5 else (120, 80, 3))
    np.testing.assert_array_equal(decoded, expected)


def test_an_xmp_orientation_is_applied_as_pillow_applies_it(photo: Image.Image) -> None:
    data = encode(photo, "JPEG", xmp=b'<rdf:Description tiff:Orientation="6"/>')
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    assert expected.shape == (120, 80, 3)
    np.testing.assert_array_equal(decode_both_ways(data), expected)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_out_of_range_is_no_orientation(orientation: int, photo: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(
        decode_both_ways(encode(photo, "JPEG", exif=exif)), decode_both_ways(encode(photo, "JPEG"))
    )


@pytest.mark.parametrize("block", [b"", b"II", b"garbage", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\0\x01\x01\x12"])
def test_a_broken_exif_block_does_not_cost_the_image(block: bytes, photo: Image.Image) -> None:
    data = encode(photo, "JPEG", exif=b"Exif\0\0" + block)
    np.testing.assert_array_equal(decode_both_ways(data), decode_both_ways(encode(photo, "JPEG")))


# --- several frames ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("form", "options"), [("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {}), ("TIFF", {})])
def test_of_several_frames_the_first_counts(form: str, options: dict[str, Any], photo: Image.Image) -> None:
    first = photo.quantize(64).convert("RGB")
    data = encode(first, form, save_all=True, append_images=[ImageOps.invert(first), ImageOps.mirror(first)], **options)
    assert getattr(Image.open(io.BytesIO(data)), "n_frames", 1) == 3
    np.testing.assert_array_equal(decode_both_ways(data), np.asarray(first))


# --- rejects -------------------------------------------------------------------------------------------------------


def test_no_bytes_are_rejected_as_empty() -> None:
    assert rejection(b"").error == "Empty"


@pytest.mark.parametrize("data", [b"\0", b"<html>404</html>", b"%PDF-1.7", bytes(10_000), b"\xff\xd8\xff"])
def test_what_is_no_image_is_rejected_as_such(data: bytes) -> None:
    assert rejection(data).error == "NotAnImage"


def test_a_format_that_is_not_allowed_is_not_an_image(photo: Image.Image) -> None:
    for form in ("PPM", "ICO", "TGA", "EPS"):
        assert rejection(encode(photo, form)).error == "NotAnImage"


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "BMP"])
def test_half_a_file_is_rejected_as_truncated(form: str, photo: Image.Image) -> None:
    data = encode(photo, form)
    assert rejection(data[: len(data) // 2]).error == "Truncated"


@pytest.mark.parametrize("form", ["WEBP", "TIFF"])
def test_half_a_file_is_rejected_where_the_format_cannot_tell_why(form: str, photo: Image.Image) -> None:
    data = encode(photo, form)
    assert rejection(data[: len(data) // 2]).error in ("Truncated", "NotAnImage", "Corrupt")


def test_a_broken_checksum_is_rejected_as_corrupt(photo: Image.Image) -> None:
    data = bytearray(encode(photo, "PNG"))
    data[data.index(b"IDAT") + 4] ^= 0xFF  # the header of the compressed stream
    assert rejection(bytes(data)).error == "Corrupt"


def test_more_bytes_than_allowed_are_rejected_whatever_they_hold(photo: Image.Image) -> None:
    data = encode(photo, "JPEG")
    assert decode_both_ways(data, ImageLimits(max_bytes=len(data))).shape == (80, 120, 3)
    reject = rejection(data, ImageLimits(max_bytes=len(data) - 1))
    assert reject.error == "TooManyBytes"
    assert str(len(data)) in reject.message
    assert "max_bytes" in reject.message


def test_as_many_pixels_as_allowed_are_decoded_and_no_more(photo: Image.Image) -> None:
    for form in FORMATS:
        data = encode(photo, form)
        assert decode_both_ways(data, ImageLimits(max_pixels=120 * 80)).shape == (80, 120, 3)
        reject = rejection(data, ImageLimits(max_pixels=120 * 80 - 1))
        assert reject.error == "TooManyPixels"
        assert "120×80" in reject.message


@pytest.mark.parametrize("side", [10_000, 14_000, 2**31 - 1], ids=["100 Mpx", "over Pillow's own bound", "2^62"])
def test_too_many_pixels_are_told_by_the_header_alone(side: int) -> None:
    # There are no pixels in the file: a decoder that went for them would complain of that.
    assert rejection(header_only_png(side, side)).error == "TooManyPixels"


def test_a_jpeg_bomb_is_told_by_its_header(photo: Image.Image) -> None:
    data = bytearray(encode(photo, "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", 65_500, 65_500)
    assert rejection(bytes(data)).error == "TooManyPixels"


def test_a_second_frame_header_cannot_smuggle_a_bomb_past_the_limit(photo: Image.Image) -> None:
    # Pillow believes the last frame header before the scan; a decoder that believed the first would take 12 GB.
    data = encode(photo, "JPEG")
    frame = data.index(b"\xff\xc0")
    before, header, after = data[:frame], data[frame : frame + 19], data[frame + 19 :]
    bomb = header[:5] + struct.pack(">HH", 65_500, 65_500) + header[9:]
    assert rejection(before + header + bomb + after).error == "TooManyPixels"
    assert rejection(before + bomb + header + after).error == "Corrupt"


def test_a_limit_above_pillows_own_is_the_only_one() -> None:
    # 200 million pixels pass the header check, so that the decoder finds the pixels missing.
    limits = ImageLimits(max_pixels=200_000_000)
    assert rejection(header_only_png(20_000, 10_000), limits).error in ("Truncated", "Corrupt")


# --- wild bytes ----------------------------------------------------------------------------------------------------


def outcome(decode: Callable[[bytes, ImageLimits], Any], data: bytes) -> NDArray[np.uint8] | str:
    """Pixels, or the error name of the only exception allowed."""
    try:
        return np.asarray(decode(data, LIMITS))
    except RejectError as reject:
        return reject.error


def assert_both_ways_agree(data: bytes) -> None:
    slow, fast = outcome(decode_image, data), outcome(lambda *file: decode_pixels(*file).pixels, data)
    assert type(slow) is type(fast)
    np.testing.assert_array_equal(slow, fast)


@pytest.fixture(scope="module")
def small_files(photo: Image.Image) -> list[bytes]:
    """A small file of each format; JPEG, where two decoders could disagree, in several kinds."""
    small = photo.resize((33, 22))
    exif = Image.Exif()
    exif[0x0112] = 6
    jpegs = [
        encode(small, "JPEG", exif=exif),
        encode(small, "JPEG", progressive=True),
        encode(small, "JPEG", restart_marker_blocks=1),
        encode(small.convert("L"), "JPEG"),
        encode(small.convert("CMYK"), "JPEG"),
        encode(small, "MPO", save_all=True, append_images=[small]),
    ]
    return jpegs + [encode(small, form) for form in FORMATS if form != "JPEG"]


wild = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@wild
@given(
    st.binary(max_size=400), st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"II*\0"])
)
def test_random_bytes_are_decoded_alike_or_rejected_alike(data: bytes, magic: bytes) -> None:
    assert_both_ways_agree(magic + data)


@wild
@given(st.data())
def test_random_truncations_are_decoded_alike_or_rejected_alike(small_files: list[bytes], data: st.DataObject) -> None:
    file = data.draw(st.sampled_from(small_files))
    assert_both_ways_agree(file[: data.draw(st.integers(0, len(file)))])


@settings(wild, max_examples=600)
@given(st.data())
def test_random_bit_flips_are_decoded_alike_or_rejected_alike(small_files: list[bytes], data: st.DataObject) -> None:
    file = bytearray(data.draw(st.sampled_from(small_files)))
    for position in data.draw(st.lists(st.integers(0, len(file) * 8 - 1), min_size=1, max_size=12)):
        file[position // 8] ^= 1 << position % 8
    assert_both_ways_agree(bytes(file))


# --- threads -------------------------------------------------------------------------------------------------------


def test_eight_threads_decode_the_same_bytes_alike(photographs: dict[str, bytes]) -> None:
    data = photographs["china.jpg"]
    expected = decode_pixels(data, LIMITS).pixels
    with ThreadPoolExecutor(8) as pool:
        for decoded in pool.map(lambda _: decode_pixels(data, LIMITS), range(32)):
            np.testing.assert_array_equal(decoded.pixels, expected)
