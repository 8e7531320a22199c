"""Training data that a network learns in a few steps."""

from __future__ import annotations

import numpy as np

from flywheel.training.loop import TrainingData


def two_shades(random: np.random.Generator, side: int) -> TrainingData:
    """Return two classes of noisy images that differ in brightness: 96 for training, 40 for validation."""

    def images(count: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.arange(count) % 2
        noise = random.integers(0, 80, (count, side, side, 3))
        return (noise + 150 * labels[:, None, None, None]).astype(np.uint8), labels.astype(np.int64)

    (train, train_labels), (validation, validation_labels) = images(96), images(40)
    return TrainingData(train, train_labels, validation, validation_labels, ("dark", "light"), (0.4,) * 3, (0.3,) * 3)
