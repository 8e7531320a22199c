"""The pictures of the reports: whatever the names are, a picture comes and nothing is said on stderr."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flywheel import pictures

NAMES = (
    "$5",
    "$\\nothing$",
    "a_b^c",
    "%s{0}",
    "кошка",
    "قط",
    "猫",
    "🐈",
    "_hidden",
    "a very long name of a class " * 3,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "picture.png"


def drawn(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def test_any_class_name_can_be_drawn_without_a_warning(path: Path, random: np.random.Generator) -> None:
    labels = np.repeat(np.arange(len(NAMES)), 3)
    images = random.integers(0, 256, (len(labels), 8, 8, 3), dtype=np.uint8)
    probabilities = random.dirichlet(np.ones(len(NAMES)), len(labels)).astype(np.float32)
    matrix = random.integers(0, 9, (len(NAMES), len(NAMES))).tolist()
    paths = iter(range(9))

    def place() -> Path:
        return path.with_stem(str(next(paths)))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for made in (
            pictures.sample_grid(images, labels, NAMES, "$title$", place()),
            pictures.confusion_matrix(matrix, NAMES, "$title$", place()),
            pictures.worst_mistakes(images, labels, probabilities, NAMES, "$title$", place()),
        ):
            assert drawn(made).std() > 0
