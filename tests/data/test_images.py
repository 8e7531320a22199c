"""The decoder: its result for every kind of image, and its reason for refusing the others."""

from __future__ import annotations

import base64
import contextlib
import itertools
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from own_images import encode
from PIL import Image, PngImagePlugin

from flywheel.data import images
from flywheel.data.images import ImageError, decode

pytestmark = pytest.mark.filterwarnings("ignore")  # pytest replaces the filter that images.py sets

Pictures = Callable[..., NDArray[np.uint8]]

# The same examples in every run.
steady = settings(derandomize=True, deadline=None, max_examples=300)


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


# Good pictures


@pytest.mark.parametrize(
    ("kind", "options"),
    [("PNG", {}), ("BMP", {}), ("WEBP", {"lossless": True}), ("PPM", {}), ("TIFF", {}), ("TIFF", {"big_tiff": True})],
)
def test_lossless_formats_at_native_size_are_exact(
    noise_pictures: Pictures, kind: str, options: dict[str, bool]
) -> None:
    (picture,) = noise_pictures(1, 32)
    decoded = decode(encode(picture, kind, **options), 32)
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, picture)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "AVIF"])
def test_lossy_formats_at_native_size_are_close(smooth_pictures: NDArray[np.uint8], kind: str) -> None:
    picture = smooth_pictures[0]
    decoded = decode(encode(picture, kind, quality=95), 32)
    assert decoded.shape == (32, 32, 3)
    assert np.abs(decoded.astype(int) - picture).mean() < 3


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP"])
@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 90), (90, 1), (7, 9), (16, 16), (100, 75), (33, 200)])
def test_any_other_size_is_scaled_to_the_square(kind: str, width: int, height: int) -> None:
    colour = (200, 100, 50)
    decoded = decode(encode(Image.new("RGB", (width, height), colour), kind), 16)
    assert decoded.shape == (16, 16, 3)
    assert decoded.dtype == np.uint8
    np.testing.assert_allclose(decoded, np.broadcast_to(colour, decoded.shape), atol=6)  # JPEG is a little off


def test_a_longer_side_is_cropped_at_the_centre(noise_pictures: Pictures) -> None:
    (middle, left, right) = noise_pictures(3, 8)
    np.testing.assert_array_equal(decode(encode(np.concatenate([left, middle, right], axis=1)), 8), middle)
    np.testing.assert_array_equal(decode(encode(np.concatenate([left, middle, right], axis=0)), 8), middle)


def test_scaling_down_averages_and_does_not_skip_pixels() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 200
    inner = decode(encode(stripes), 8)[1:-1, 1:-1]
    np.testing.assert_allclose(inner, 100, atol=3)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "TIFF"])
def test_grey_and_one_bit_are_repeated_on_three_channels(noise_pictures: Pictures, kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    for grey, pixels in ((one := noise_pictures(1)[0, :, :, 0], one), (bits := np.eye(8, dtype=bool), bits * 255)):
        if kind != "WEBP" or grey is one:
            np.testing.assert_array_equal(decode(encode(grey, kind, **options), 8), np.dstack([pixels] * 3))


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP"])
def test_a_palette_is_looked_up(noise_pictures: Pictures, kind: str) -> None:
    palette = noise_pictures(1)[0].reshape(-1, 3)[:16]
    index = np.arange(64, dtype=np.uint8).reshape(8, 8) % 16
    image = Image.fromarray(index).convert("P")
    image.putdata(index.reshape(-1).tolist())
    image.putpalette(palette.tobytes())
    np.testing.assert_array_equal(decode(encode(image, kind), 8), palette[index])


def test_transparency_is_laid_on_white(noise_pictures: Pictures) -> None:
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
def test_a_transparent_colour_becomes_white(mode: str) -> None:
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
    noise_pictures: Pictures, orientation: int, upright: Callable[..., NDArray[np.uint8]]
) -> None:
    (stored,) = noise_pictures(1)
    np.testing.assert_array_equal(decode(encode(stored, "PNG", exif=turned(orientation)), 8), upright(stored))


def test_a_photo_taken_upright_is_turned_before_it_is_cropped() -> None:
    stored = np.zeros((16, 32, 3), np.uint8)
    stored[:, :16] = 255  # the left half of what the camera stored is the top of the photo
    decoded = decode(encode(stored, "JPEG", exif=turned(6), quality=95), 16)
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
def test_arrays_and_files_give_the_same_image(pixels: NDArray[np.uint8], size: int) -> None:
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
def test_a_truncated_file_is_refused(noise_pictures: Pictures, kind: str) -> None:
    data = encode(noise_pictures(1, 64)[0], kind)
    with pytest.raises(ImageError, match=r"truncated|not an image"):
        decode(data[: len(data) // 2], 8)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("PNG", "animated"), ("WEBP", "animated"), ("GIF", "animated"), ("AVIF", "animated"), ("TIFF", "2 pages")],
)
def test_several_pictures_in_one_file_are_refused(noise_pictures: Pictures, kind: str, reason: str) -> None:
    first, second = (Image.fromarray(picture) for picture in noise_pictures(2))
    with pytest.raises(ImageError, match=f"{reason}; a single picture is needed"):
        decode(encode(first, kind, save_all=True, append_images=[second]), 8)


@pytest.mark.parametrize(
    ("picture", "reason"),
    [(Image.new("LAB", (8, 8)), "CIELAB"), (np.full((8, 8), np.nan, np.float32), "not finite")],
    ids=["CIELAB", "not a number"],
)
def test_colours_without_an_rgb_form_are_refused(picture: Any, reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        decode(encode(picture, "TIFF"), 8)


@pytest.mark.parametrize("side", [8_001, 20_000, 2_000_000])  # over our limit, and over Pillow's own
def test_a_bomb_is_refused_by_its_header(side: int) -> None:
    with pytest.raises(ImageError, match=r"x \d+ pixels; at most 64,000,000|^more than 64,000,000 pixels"):
        decode(png_header(side, side), 8)


def test_the_limit_is_the_largest_image_that_is_read(noise_pictures: Pictures, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(noise_pictures(1)[0], "BMP")  # a PNG of this size is decoded directly
    monkeypatch.setattr(images, "MAX_PIXELS", 64)
    decode(data, 8)
    monkeypatch.setattr(images, "MAX_PIXELS", 63)
    with pytest.raises(ImageError, match="8 x 8 pixels"):
        decode(data, 8)


# Converted


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
@pytest.mark.parametrize(
    ("ink", "colour"), [((0, 255, 255, 0), (255, 0, 0)), ((0, 0, 0, 255), (0, 0, 0)), ((0,) * 4, (255, 255, 255))]
)
def test_cmyk_is_converted(kind: str, ink: tuple[int, ...], colour: tuple[int, ...]) -> None:
    np.testing.assert_allclose(decode(encode(Image.new("CMYK", (8, 8), ink), kind), 8)[0, 0], colour, atol=3)


DEPTHS = np.linspace(100, 4095, 64).astype(np.uint16).reshape(8, 8)  # 12 of 16 bits used


@pytest.mark.parametrize(
    "data",
    [
        png_header(8, 8, 16, 0, b"".join(b"\0" + row.astype(">u2").tobytes() for row in DEPTHS)),
        b"P5 8 8 65535\n" + DEPTHS.astype(">u2").tobytes(),
        *(encode(DEPTHS.astype(kind), "TIFF") for kind in (np.uint16, np.int32, np.float32)),
    ],
    ids=["PNG", "PGM", "TIFF", "TIFF of 32 bits", "TIFF of floats"],
)
def test_grey_of_more_than_8_bits_is_scaled_from_its_darkest_to_its_brightest_value(data: bytes) -> None:
    expected = np.round((DEPTHS - 100.0) * 255 / 3995)
    np.testing.assert_allclose(decode(data, 8), np.dstack([expected] * 3), atol=1)


def test_grey_of_one_value_is_black() -> None:
    assert not decode(encode(np.full((8, 8), 700, np.uint16)), 8).any()


@pytest.mark.parametrize(
    "data",
    [
        png_header(8, 8, 16, 2, b"".join(b"\0" + bytes([200, 7, 100, 7, 50, 7]) * 8 for _ in range(8))),
        png_header(8, 8, 16, 6, b"".join(b"\0" + bytes([200, 7, 100, 7, 50, 7, 255, 255]) * 8 for _ in range(8))),
        b"P6 8 8 65535\n" + bytes([200, 7, 100, 7, 50, 7]) * 64,
    ],
    ids=["rgb", "rgba", "ppm"],
)
def test_of_colours_of_16_bits_the_upper_8_are_kept(data: bytes) -> None:
    np.testing.assert_allclose(decode(data, 8), np.broadcast_to((200, 100, 50), (8, 8, 3)), atol=1)


# 16 x 16 pixels, red above blue, by libheif: nothing that we install writes HEIC.
HEIC = base64.b85decode(
    "0000SW^{RQXk}?*00000ZE0pPXk}?*ZE0a<0004eZDn*}000000000XXk=`10000000000aA{+700000000000000000000B57=IV*mgE07O6l0R"
    "RC200001pa1~?00000002S&001LtX>Mi!000000RR916=`l}WdZ;I000310BCk&F#rGn01j|zbZr0t000010002|X>f9I0002oX>en20001WXm(>"
    "m0RwOV0058x000009`FGC{rLC*01pFT0096PKmiN^|NjGU00093kN^M!000939=ZZRVE_RDDMA4O18@KU0|1Z!00RI30{|YNAb|yz>aLpR;31&EfB"
    "*mtfB*mk0EA)y0RRR>0l{;@i2wiq6Ju{|a&BX6cmM$a4FCp!0000KX>)L8000000000$0000$0000eV{Bn?0000G000010000G00001|NsBc00002|"
    "NsBc000020000GaA|mH000000|*ER0000OX>e^}0000000001009Mo0s{qv0000=ZDe6|0000!C;_ht$X+baBbb)|Y=8W>$WqhYNI#Ro+g1P03!uR"
    "yzL(K&p!RAraO}t@^3k84+Up7?oN%a+!#WQIP3`"
)


def test_a_phones_heic_is_read() -> None:
    decoded = decode(HEIC, 16)
    np.testing.assert_allclose(decoded[:7], np.broadcast_to((220, 30, 30), (7, 16, 3)), atol=20)
    np.testing.assert_allclose(decoded[9:], np.broadcast_to((30, 30, 220), (7, 16, 3)), atol=20)


def with_segment(jpeg: bytes, marker: int, content: bytes) -> bytes:
    return jpeg[:2] + struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content + jpeg[2:]


def text(**chunk: Any) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    getattr(info, chunk.pop("add"))("comment", "x" * 2_000_000, zip=True)
    return info


PICTURE = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
NEEDLESS = {
    "PNG, 2 MB of colour profile": encode(PICTURE, "PNG", icc_profile=bytes(2_000_000)),
    "PNG, 2 MB of zTXt": encode(PICTURE, "PNG", pnginfo=text(add="add_text")),
    "PNG, 2 MB of iTXt": encode(PICTURE, "PNG", pnginfo=text(add="add_itxt")),
    "PNG, eXIf of 4 bytes": encode(PICTURE, "PNG", exif=b"Exif\0\0abcd"),
    "PNG, wrong checksum of a comment": encode(PICTURE, "PNG", dpi=(72, 72)).replace(b"pHYs", b"pHYt"),
    "JPEG, short JFIF": with_segment(encode(PICTURE, "JPEG"), 0xE0, b"JFIF\0"),
    "JPEG, short Adobe": with_segment(encode(PICTURE, "JPEG"), 0xEE, b"Adobe"),
    "JPEG, short colour profile": with_segment(encode(PICTURE, "JPEG"), 0xE2, b"ICC_PROFILE\0"),
    "JPEG, damaged Exif": encode(PICTURE, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"),
    "WebP, damaged Exif": encode(PICTURE, "WEBP", lossless=True, exif=b"Exif\0\0II*\0\xff\xff\xff\xff"),
}


@pytest.mark.parametrize("data", NEEDLESS.values(), ids=NEEDLESS)
def test_metadata_that_no_pixel_needs_condemns_no_image(data: bytes) -> None:
    plain = encode(PICTURE, "JPEG") if data.startswith(b"\xff") else encode(PICTURE, "PNG")
    np.testing.assert_array_equal(decode(data, 8), decode(plain, 8))


def test_nobody_sees_a_warning_of_pillow() -> None:
    code = "import sys; from flywheel.data.images import decode; decode(sys.stdin.buffer.read(), 8)"
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, input=NEEDLESS["JPEG, damaged Exif"], capture_output=True, check=True)
    assert done.stderr == b""


def test_the_orientation_survives_a_long_comment(noise_pictures: Pictures) -> None:
    (stored,) = noise_pictures(1)
    decoded = decode(encode(stored, "PNG", exif=turned(3), pnginfo=text(add="add_text")), 8)
    np.testing.assert_array_equal(decoded, stored[::-1, ::-1])


def test_a_large_photograph_is_decoded_small(monkeypatch: pytest.MonkeyPatch) -> None:
    photo = np.zeros((640, 640, 3), np.uint8)
    photo[:320] = 255
    plain, progressive = (encode(photo, "JPEG", progressive=progressive) for progressive in (False, True))
    monkeypatch.setattr(images, "MAX_PIXELS", 80 * 80)  # an eighth of the photograph's sides
    decoded = decode(plain, 8)
    assert (decoded[:3] > 250).all()
    assert (decoded[5:] < 5).all()
    for data in (progressive, encode(photo)):
        with pytest.raises(ImageError, match="640 x 640 pixels; at most 6,400 are read"):
            decode(data, 8)
    monkeypatch.setattr(images, "MAX_JPEG_PIXELS", 640 * 640 - 1)
    with pytest.raises(ImageError, match="at most 409,599 are read"):
        decode(plain, 8)


def test_a_lack_of_memory_is_no_damaged_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(images, "to_square", no_memory)
    with pytest.raises(MemoryError):
        decode(encode(PICTURE, "BMP"), 8)


def test_an_image_that_would_take_long_is_refused_at_once_if_asked() -> None:
    for kind in ("PNG", "JPEG", "WEBP"):
        data = encode(np.zeros((30, 40, 3), np.uint8), kind)
        assert decode(data, 8, most_pixels=1200).shape == (8, 8, 3)
        with pytest.raises(images.SlowToDecode, match="more than 1,199 pixels"):
            decode(data, 8, most_pixels=1199)
    progressive = encode(np.zeros((30, 40, 3), np.uint8), "JPEG", progressive=True)
    assert decode(progressive, 8).shape == (8, 8, 3)
    with pytest.raises(images.SlowToDecode, match="or progressive"):
        decode(progressive, 8, most_pixels=1200)


@pytest.mark.parametrize(
    ("head", "name", "found"),
    [
        (b"\xff\xd8\xff\xe0", "a.txt", ""), (HEIC, "", ""), (b"BMW is a make of cars", "", None), (b"hello", "", None),
        (b"\0\0\0\x0cjP  \r\n", "a.jp2", "JPEG 2000"), (bytes(128) + b"DICM", "a", "DICOM"),
        (b"II*\0", "a.NEF", "camera raw"),
        (b'<?xml version="1.0"?>\n<!-- made by -->\n<svg>', "a.svg", "SVG"), (b"<html>", "a.jpg", None),
    ],
)  # fmt: skip
def test_the_first_bytes_tell_the_format(head: bytes, name: str, found: str | None) -> None:
    assert images.image_format(head, name) == found


# Any bytes: an image of the right form or ImageError, never another exception


def image_or_reason(data: bytes) -> None:
    with contextlib.suppress(ImageError):
        decoded = decode(data, 8)
        assert decoded.shape == (8, 8, 3)
        assert decoded.dtype == np.uint8


SMALL = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
PALETTE = Image.fromarray(SMALL).quantize(8)
VALID = {
    "PNG": encode(SMALL, "PNG"),
    "PNG with a palette": encode(PALETTE),
    "PNG with Exif": encode(SMALL, "PNG", exif=turned(6)),
    "JPEG": encode(SMALL, "JPEG", exif=turned(6)),
    "progressive JPEG": encode(SMALL, "JPEG", progressive=True),
    "WebP": encode(SMALL, "WEBP", lossless=True, exif=turned(6)),
    "BMP": encode(SMALL, "BMP"),
    "GIF": encode(PALETTE, "GIF"),
    "TIFF": encode(SMALL, "TIFF"),
    "PPM": encode(SMALL, "PPM"),
    "AVIF": encode(SMALL, "AVIF"),
    "HEIC": HEIC,
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


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(pixels: NDArray[np.uint8], level: int, parts: int, *extra: bytes) -> bytes:
    """Return a PNG with its pixels in several chunks and with other chunks before them."""
    data = encode(pixels, "PNG", compress_level=level)
    start, end = data.index(b"IDAT") + 4, data.rindex(b"IEND") - 8
    cuts = np.linspace(start, end, parts + 1).astype(int)
    pieces = (chunk(b"IDAT", data[first:last]) for first, last in itertools.pairwise(cuts))
    return b"".join((data[: start - 8], *extra, *pieces, data[end + 4 :]))


@steady
@given(arrays.arrays(np.uint8, (8, 8, 3)), st.integers(0, 9), st.integers(1, 3))
def test_a_png_of_pixels_alone_is_decoded_directly_to_the_same_bits(
    pixels: NDArray[np.uint8], level: int, parts: int
) -> None:
    data = png(pixels, level, parts)
    directly = images._plain_png(data, 8)
    assert directly is not None
    np.testing.assert_array_equal(directly, images._decode(data, 8))
    np.testing.assert_array_equal(directly, pixels)


def test_any_other_png_is_left_to_pillow(noise_pictures: Pictures) -> None:
    (pixels,) = noise_pictures(1, 8)
    good = png(pixels, 6, 1)
    long = bytearray(good)
    long[good.index(b"IDAT") - 4] = 255
    others = [
        png(pixels, 6, 1, chunk(b"tRNS", bytes(6))), png(pixels, 6, 1, chunk(b"acTL", bytes(8))),
        png(pixels, 6, 1, chunk(b"eXIf", turned(6).tobytes())), encode(pixels[..., 0], "PNG"), bytes(long),
        encode(pixels, "JPEG"), good[:-30], good[:40], good[:33],
    ]  # fmt: skip
    assert images._plain_png(good, 8) is not None
    assert [images._plain_png(data, 8) for data in others] == [None] * len(others)
    assert images._plain_png(good, 9) is None


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
@given(valid, st.floats(0, 2), st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 7)), max_size=6))
def test_any_truncation_and_flipped_bits_are_an_image_or_refused(
    data: bytes, part: float, flips: list[tuple[int, int]]
) -> None:
    damaged = bytearray(data[: int(len(data) * part)])  # half of them are not truncated
    for position, bit in flips if damaged else ():
        damaged[position % len(damaged)] ^= 1 << bit
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


def test_a_phones_photo_with_a_preview_behind_it_is_its_first_picture() -> None:
    """MPO: a JPEG with further pictures, which Pillow counts as frames."""
    first, second = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (4, 4), "blue")
    decoded = decode(encode(first, "MPO", save_all=True, append_images=[second]), 8)
    assert decoded[0, 0, 0] > 200
    assert decoded[0, 0, 2] < 60
