"""What the tests of the package data share: small pictures in memory, and files made of them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import own_images
import pytest
from numpy.typing import NDArray
from PIL import Image

Pictures = NDArray[np.uint8]


@pytest.fixture
def noise_pictures(random: np.random.Generator) -> Callable[..., Pictures]:
    """Draw images (n, size, size, 3) of noise: no two alike, and no two crops of them alike."""

    def draw(count: int, size: int = 8) -> Pictures:
        return random.integers(0, 256, (count, size, size, 3), dtype=np.uint8)

    return draw


@pytest.fixture
def smooth_pictures(random: np.random.Generator) -> Pictures:
    """40 images (32, 32, 3) of soft blobs, away from black and white: what a drift does to them can be measured."""
    coarse = random.integers(70, 186, (40, 4, 4, 3), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(c).resize((32, 32), Image.Resampling.BICUBIC)) for c in coarse])


@pytest.fixture
def layout(noise_pictures: Callable[..., Pictures]) -> dict[str, bytes]:
    """Two classes with three training and two test images each, as path -> bytes, in the order of the paths."""
    pictures = iter(noise_pictures(10))
    names = [f"{split}/{label}/{i}.png" for split, n in (("test", 2), ("train", 3)) for label in "ab" for i in range(n)]
    return {name: own_images.encode(next(pictures)) for name in names}


@pytest.fixture
def given(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes files as `mine` (a directory, or .tar, .tar.gz, .zip) in a folder of its own."""

    def written(files: Mapping[str, bytes], form: str = "directory") -> Path:
        return own_images.write(form, files, Path(tempfile.mkdtemp(dir=tmp_path)) / "mine")

    return written
