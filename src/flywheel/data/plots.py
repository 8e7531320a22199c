"""The picture of a data set: sample images of each split."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flywheel.data.images import from_array
from flywheel.pipeline.plotting import INK, Images, drawing, short_name

MOST_PIXELS = 96  # of an image; more are not seen, and matplotlib needs 60 bytes for each


def sample_grid(
    images: Images, labels: NDArray[np.int64], class_names: Sequence[str], title: str, path: Path, columns: int = 10
) -> Path:
    """Draw up to `columns` images (n, s, s, 3) of each of up to ten classes, a class a row."""
    shown = [index for index in range(len(class_names)) if (labels == index).any()][:10]
    side = min(len(images[0]), MOST_PIXELS)
    gap = max(1, side // 12)
    cell = side + gap
    # One mosaic, not an axis an image: a hundred axes take seconds to draw.
    mosaic = np.full((cell * len(shown) - gap, cell * columns - gap, 3), 255, np.uint8)
    for row, label in enumerate(shown):
        for column, index in enumerate(np.flatnonzero(labels == label)[:columns]):
            mosaic[row * cell : row * cell + side, column * cell : column * cell + side] = from_array(
                images[index], side
            )
    with drawing(path, 0.62 * columns + 1.4, 0.62 * len(shown) + 0.6) as figure:
        axis = figure.subplots()
        axis.imshow(mosaic, interpolation="nearest")
        axis.set_yticks(
            [row * cell + side / 2 for row in range(len(shown))], [short_name(class_names[i]) for i in shown]
        )
        axis.set_xticks([])
        axis.tick_params(length=0, colors=INK)
        axis.spines[:].set_visible(False)
        axis.set_title(title)
    return path
