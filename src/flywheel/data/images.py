"""The image decoder of the folder source and the server."""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from flywheel.data import DataError

Pixels = NDArray[np.uint8]

MAX_PIXELS = 64_000_000  # of one image; a larger one is refused as a decompression bomb
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
# 1-bit, grey and palette images are converted; modes without an unambiguous 8-bit RGB form are refused.
REFUSED_MODES = {"CMYK": "CMYK", "YCbCr": "YCbCr", "LAB": "LAB", "HSV": "HSV", "I": "32-bit", "F": "float"}


class ImageError(DataError):
    """Bytes are not a usable image; the message is the reason."""


def decode(data: bytes, size: int) -> Pixels:
    """Return an image as (size, size, 3) uint8 RGB.

    The orientation tag is applied, transparency becomes white, grey is repeated on three channels; other sizes are
    scaled (bilinear, antialiased) and cropped at the centre to the square. Raises ImageError for bytes that are empty,
    not an image, truncated, animated, CMYK, of more than 8 bits a channel, or of more than MAX_PIXELS.
    """
    if not data:
        raise ImageError("the file is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's warning of a bomb; _refuse has our limit
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                _refuse(image)
                return to_square(_to_rgb(ImageOps.exif_transpose(image)), size)
    except UnidentifiedImageError:
        raise ImageError(f"not an image in one of the formats {', '.join(FORMATS)}") from None
    except Image.DecompressionBombError:
        raise ImageError(f"more than {MAX_PIXELS:,} pixels") from None
    except ImageError:
        raise
    except Exception as error:  # Pillow raises any exception on damaged files
        raise ImageError(f"truncated or damaged ({' '.join(str(error).split()) or type(error).__name__})") from None


def to_square(image: Image.Image, size: int) -> Pixels:
    """Return an RGB image scaled and cropped to (size, size, 3) uint8."""
    if image.size != (size, size):
        image = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
    return np.asarray(image, dtype=np.uint8)


def from_array(pixels: NDArray[Any], size: int) -> Pixels:
    """Return a (h, w) or (h, w, 3) uint8 array as (size, size, 3), by the same steps as `decode`."""
    return to_square(Image.fromarray(np.ascontiguousarray(pixels)).convert("RGB"), size)


def _refuse(image: ImageFile.ImageFile) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError(f"{width} x {height} pixels; at most {MAX_PIXELS:,} are read")
    # Phones write photos as MPO, a JPEG with a preview behind it; only the first picture is used.
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
        raise ImageError("animated; a single picture is needed")
    if image.mode in REFUSED_MODES:
        raise ImageError(f"{REFUSED_MODES[image.mode]}; 8-bit RGB or grey is needed")
    if image.mode.startswith("I;") or any(_deeper_than_8_bits(tile) for tile in image.tile):
        raise ImageError("16 bits a channel; 8 are needed")


def _deeper_than_8_bits(tile: Any) -> bool:
    """Return whether a tile has more than 8 bits a channel, which Pillow would cut silently."""
    raw_mode, *rest = (tile.args,) if isinstance(tile.args, str) else tile.args or ("",)
    if tile.codec_name.startswith("ppm"):
        return any(isinstance(largest, int) and largest > 255 for largest in rest)
    return ";16" in str(raw_mode)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")
