"""The decoder: its result for every kind of image, and its reason for refusing the others."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from PIL import Image

from flywheel.data import images
from flywheel.data.images import ImageError, decode

Encode = Callable[..., bytes]
Pictures = Callable[..., NDArray[np.uint8]]

# The same examples in every run.
steady = settings(derandomize=True, deadline=None, max_examples=300)


# Good pictures


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("BMP", {}), ("WEBP", {"lossless": True}), ("PPM", {})])
def test_lossless_formats_at_native_size_are_exact(
    encode: Encode, noise_pictures: Pictures, kind: str, options: dict[str, bool]
) -> None:
    (picture,) = noise_pictures(1, 32)
    decoded = decode(encode(picture, kind, **options), 32)
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, picture)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_lossy_formats_at_native_size_are_close(encode: Encode, smooth_pictures: NDArray[np.uint8], kind: str) -> None:
    picture = smooth_pictures[0]
    decoded = decode(encode(picture, kind, quality=95), 32)
    assert decoded.shape == (32, 32, 3)
    assert np.abs(decoded.astype(int) - picture).mean() < 3


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP"])
@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 90), (90, 1), (7, 9), (16, 16), (100, 75), (33, 200)])
def test_any_other_size_is_scaled_to_the_square(encode: Encode, kind: str, width: int, height: int) -> None:
    colour = (200, 100, 50)
    decoded = decode(encode(Image.new("RGB", (width, height), colour), kind), 16)
    assert decoded.shape == (16, 16, 3)
    assert decoded.dtype == np.uint8
    np.testing.assert_allclose(decoded, np.broadcast_to(colour, decoded.shape), atol=6)  # JPEG is a little off


def test_a_longer_side_is_cropped_at_the_centre(encode: Encode, noise_pictures: Pictures) -> None:
    (middle, left, right) = noise_pictures(3, 8)
    np.testing.assert_array_equal(decode(encode(np.concatenate([left, middle, right], axis=1)), 8), middle)
    np.testing.assert_array_equal(decode(encode(np.concatenate([left, middle, right], axis=0)), 8), middle)


def test_scaling_down_averages_and_does_not_skip_pixels(encode: Encode) -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 200
    inner = decode(encode(stripes), 8)[1:-1, 1:-1]
    np.testing.assert_allclose(inner, 100, atol=3)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "TIFF"])
def test_grey_and_one_bit_are_repeated_on_three_channels(encode: Encode, noise_pictures: Pictures, kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    for grey, pixels in ((one := noise_pictures(1)[0, :, :, 0], one), (bits := np.eye(8, dtype=bool), bits * 255)):
        if kind != "WEBP" or grey is one:
            np.testing.assert_array_equal(decode(encode(grey, kind, **options), 8), np.dstack([pixels] * 3))


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP"])
def test_a_palette_is_looked_up(encode: Encode, noise_pictures: Pictures, kind: str) -> None:
    palette = noise_pictures(1)[0].reshape(-1, 3)[:16]
    index = np.arange(64, dtype=np.uint8).reshape(8, 8) % 16
    image = Image.fromarray(index).convert("P")
    image.putdata(index.reshape(-1).tolist())
    image.putpalette(palette.tobytes())
    np.testing.assert_array_equal(decode(encode(image, kind), 8), palette[index])


def test_transparency_is_laid_on_white(encode: Encode, noise_pictures: Pictures) -> None:
    (colour,) = noise_pictures(1)
    alpha = np.full((8, 8, 1), 255, np.uint8)
    alpha[:4] = 0
    expected = colour.copy()
    expected[:4] = 255
    np.testing.assert_array_equal(decode(encode(np.concatenate([colour, alpha], axis=2)), 8), expected)
    half_black = np.zeros((8, 8, 4), np.uint8)
    half_black[..., 3] = 128
    np.testing.assert_allclose(decode(encode(half_black), 8), 127, atol=1)


@pytest.mark.parametrize("mode", ["P", "L", "RGB"])
def test_a_transparent_colour_becomes_white(encode: Encode, mode: str) -> None:
    image = Image.new("RGB", (8, 8), (10, 10, 10))
    image.paste((90, 90, 90), (0, 0, 8, 4))
    image = image.quantize(2) if mode == "P" else image.convert(mode)
    key = image.getpixel((0, 0))
    decoded = decode(encode(image, "PNG", transparency=key), 8)
    assert (decoded[:4] == 255).all()
    assert (decoded[4:] == 10).all()


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda stored: stored),
        (2, lambda stored: stored[:, ::-1]),
        (3, lambda stored: stored[::-1, ::-1]),
        (4, lambda stored: stored[::-1]),
        (5, lambda stored: stored.swapaxes(0, 1)),
        (6, lambda stored: np.rot90(stored, -1)),
        (7, lambda stored: stored[::-1, ::-1].swapaxes(0, 1)),
        (8, lambda stored: np.rot90(stored)),
    ],
)
def test_the_orientation_tag_is_applied(
    encode: Encode, noise_pictures: Pictures, orientation: int, upright: Callable[..., NDArray[np.uint8]]
) -> None:
    (stored,) = noise_pictures(1)
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(decode(encode(stored, "PNG", exif=exif), 8), upright(stored))


def test_a_photo_taken_upright_is_turned_before_it_is_cropped(encode: Encode) -> None:
    stored = np.zeros((16, 32, 3), np.uint8)
    stored[:, :16] = 255  # the left half of what the camera stored is the top of the photo
    exif = Image.Exif()
    exif[0x0112] = 6
    decoded = decode(encode(stored, "JPEG", exif=exif, quality=95), 16)
    assert decoded[:7].mean() > 240
    assert decoded[9:].mean() < 15


@steady
@given(
    pixels=st.one_of(
        arrays.arrays(np.uint8, st.tuples(st.integers(1, 20), st.integers(1, 20))),
        arrays.arrays(np.uint8, st.tuples(st.integers(1, 20), st.integers(1, 20), st.just(3))),
    ),
    size=st.integers(8, 20),
)
def test_arrays_and_files_give_the_same_image(encode: Encode, pixels: NDArray[np.uint8], size: int) -> None:
    np.testing.assert_array_equal(images.from_array(pixels, size), decode(encode(pixels), size))


# Refused, with the reason


def png_header(width: int, height: int, bits: int = 8, colour: int = 2, pixels: bytes = b"") -> bytes:
    """A PNG by hand: for what Pillow does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n%%EOF\n"  # Pillow would run a program


@pytest.mark.parametrize(
    "data", [b"", b"hello", b"<html></html>", bytes(1000), b"%PDF-1.7\n", b"RIFF\x04\0\0\0WAVE", POSTSCRIPT]
)
def test_bytes_that_are_no_image_are_refused(data: bytes) -> None:
    with pytest.raises(ImageError, match="not an image" if data else "the file is empty"):
        decode(data, 8)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP"])
def test_a_truncated_file_is_refused(encode: Encode, noise_pictures: Pictures, kind: str) -> None:
    data = encode(noise_pictures(1, 64)[0], kind)
    with pytest.raises(ImageError, match=r"truncated|not an image"):
        decode(data[: len(data) // 2], 8)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "TIFF"])
def test_an_animation_is_refused(encode: Encode, noise_pictures: Pictures, kind: str) -> None:
    first, second = (Image.fromarray(picture) for picture in noise_pictures(2))
    with pytest.raises(ImageError, match="animated"):
        decode(encode(first, kind, save_all=True, append_images=[second]), 8)


@pytest.mark.parametrize(
    ("mode", "colour", "kind", "reason"),
    [
        ("CMYK", 0, "JPEG", "CMYK"), ("CMYK", 0, "TIFF", "CMYK"), ("F", 0.5, "TIFF", "float"),
        ("I", 70_000, "TIFF", "32-bit"),
    ],
)  # fmt: skip
def test_a_mode_without_an_8_bit_rgb_form_is_refused(
    encode: Encode, mode: str, colour: float, kind: str, reason: str
) -> None:
    with pytest.raises(ImageError, match=reason):
        decode(encode(Image.new(mode, (8, 8), colour), kind), 8)


def png_of_16_bits(colour: int, channels: int) -> bytes:
    return png_header(8, 8, 16, colour, b"".join(b"\0" + bytes(range(8 * channels * 2)) for _ in range(8)))


@pytest.mark.parametrize(
    "data",
    [
        png_of_16_bits(colour=0, channels=1),
        png_of_16_bits(colour=2, channels=3),
        png_of_16_bits(colour=4, channels=2),
        png_of_16_bits(colour=6, channels=4),
        b"P6 8 8 65535\n" + bytes(range(192)) * 2,
        b"P3 8 8 65535\n" + b"300 " * 192,
    ],
    ids=["grey", "rgb", "grey and alpha", "rgba", "ppm", "plain ppm"],
)
def test_sixteen_bits_a_channel_are_refused(data: bytes) -> None:
    with pytest.raises(ImageError, match="16 bit"):
        decode(data, 8)


@pytest.mark.parametrize("side", [8_001, 20_000, 2_000_000])  # over our limit, and over Pillow's own
def test_a_bomb_is_refused_by_its_header(side: int) -> None:
    with pytest.raises(ImageError, match=r"x \d+ pixels; at most 64,000,000|^more than 64,000,000 pixels"):
        decode(png_header(side, side), 8)


def test_the_limit_is_the_largest_image_that_is_read(
    encode: Encode, noise_pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = encode(noise_pictures(1)[0])
    monkeypatch.setattr(images, "MAX_PIXELS", 64)
    decode(data, 8)
    monkeypatch.setattr(images, "MAX_PIXELS", 63)
    with pytest.raises(ImageError, match="8 x 8 pixels"):
        decode(data, 8)


@pytest.mark.parametrize("shape", [(1, 1), (1, 8_000), (8_000, 1), (8_000, 8_000)], ids=str)
def test_the_smallest_and_the_largest_images_are_read(encode: Encode, shape: tuple[int, int]) -> None:
    image = Image.new("P", shape)
    image.putpalette([10, 200, 90])
    decoded = decode(encode(image, "PNG", compress_level=1), 8)
    assert decoded.shape == (8, 8, 3)
    assert (decoded == (10, 200, 90)).all()


# Any bytes: an image of the right form or ImageError, never another exception


def image_or_reason(data: bytes) -> None:
    with contextlib.suppress(ImageError):
        decoded = decode(data, 8)
        assert decoded.shape == (8, 8, 3)
        assert decoded.dtype == np.uint8


def sample(kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def palette_sample(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(sample("PNG"))).quantize(8).save(buffer, kind)
    return buffer.getvalue()


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


VALID = {
    "PNG": sample("PNG"),
    "PNG with a palette": palette_sample("PNG"),
    "PNG with Exif": sample("PNG", exif=turned()),
    "JPEG": sample("JPEG", exif=turned()),
    "progressive JPEG": sample("JPEG", progressive=True),
    "WebP": sample("WEBP", lossless=True, exif=turned()),
    "BMP": sample("BMP"),
    "GIF": palette_sample("GIF"),
    "TIFF": sample("TIFF"),
    "PPM": sample("PPM"),
}
valid = st.sampled_from(list(VALID.values()))


def tiff_with_an_empty_second_page() -> bytes:
    data = bytearray(VALID["TIFF"])
    (directory,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, directory)
    struct.pack_into("<I", data, directory + 2 + 12 * count, len(data))
    return bytes(data) + struct.pack("<HI", 0, 0)


def tiff_with_a_fraction_for_an_offset() -> bytes:
    data = bytearray(VALID["TIFF"])
    (directory,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, directory)
    for entry in range(directory + 2, directory + 2 + 12 * count, 12):
        (tag,) = struct.unpack_from("<H", data, entry)
        if tag == 273:  # StripOffsets
            struct.pack_into("<HII", data, entry + 2, 5, 1, len(data))
    return bytes(data) + struct.pack("<II", 8, 1)


@steady
@given(st.binary(max_size=400))
@example(b"\x89PNG\r\n\x1a\n")
@example(b"\xff\xd8\xff")
@example(b"BM")
@example(b"P6 0 0 255\n")
@example(b"P6 0 5 255\n")
@example(b"GIF89a")
@example(b"II*\0")
def test_any_bytes_are_an_image_or_refused(data: bytes) -> None:
    image_or_reason(data)


@steady
@given(valid, st.floats(0, 1, exclude_max=True))
def test_any_truncation_is_an_image_or_refused(data: bytes, part: float) -> None:
    image_or_reason(data[: int(len(data) * part)])


@steady
@given(valid, st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 7)), min_size=1, max_size=6))
def test_any_flipped_bits_are_an_image_or_refused(data: bytes, flips: list[tuple[int, int]]) -> None:
    damaged = bytearray(data)
    for position, bit in flips:
        damaged[position % len(data)] ^= 1 << bit
    image_or_reason(bytes(damaged))


@pytest.mark.parametrize(
    "data",
    [VALID["GIF"][:-1] + b",\0\0\0", tiff_with_an_empty_second_page(), tiff_with_a_fraction_for_an_offset()],
    ids=["GIF cut in its second frame", "TIFF with an empty second page", "TIFF with a fraction for an offset"],
)
def test_damage_that_long_fuzzing_found_is_refused(data: bytes) -> None:
    with pytest.raises(ImageError):
        decode(data, 8)


def test_the_samples_that_are_damaged_are_good() -> None:
    for data in VALID.values():
        assert decode(data, 8).shape == (8, 8, 3)


def test_a_phones_photo_with_a_preview_behind_it_is_its_first_picture(encode: Encode) -> None:
    """MPO: a JPEG with further pictures, which Pillow counts as frames."""
    first, second = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (4, 4), "blue")
    decoded = decode(encode(first, "MPO", save_all=True, append_images=[second]), 8)
    assert decoded[0, 0, 0] > 200
    assert decoded[0, 0, 2] < 60
