"""The sources of images: CIFAR-10 from torchvision, a folder or archive, or scikit-learn's digits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from flywheel import params
from flywheel.data import DataError, fetch, folder
from flywheel.data.dataset import SourceImages, Split

CIFAR10_TEST_IMAGES = 8_000  # as in the original pipeline: test images 0-7,999; 8,000 on are simulation
DIGITS_TRAIN_IMAGES, DIGITS_TEST_IMAGES = 800, 450  # of 1,797; the remaining 547 are simulation


def load(data: params.Data, cache: Path, scratch: Path | None = None) -> SourceImages:
    """Return the images of the source that the params name. Raises DataError.

    A folder's decoded images are in a file in `scratch` that vanishes with them, or in memory if that is None.
    """
    if data.source == "cifar10":
        return cifar10(cache)
    if data.source == "digits":
        return digits(data)
    return folder.read(data, scratch)


def cifar10(cache: Path, dataset_class: Any = None) -> SourceImages:
    """Return CIFAR-10 from torchvision's archive, fetched into `cache` once and verified.

    `dataset_class` is torchvision.datasets.CIFAR10 or a subclass with its own URL and checksums. Source:
    https://www.cs.toronto.edu/~kriz/cifar.html (Krizhevsky, 2009).
    """
    if dataset_class is None:
        from torchvision.datasets import CIFAR10

        dataset_class = CIFAR10
    fetch.archive(dataset_class.url, cache / dataset_class.filename, dataset_class.tgz_md5, dataset_class.base_folder)
    try:
        train, test = (dataset_class(str(cache), train=train, download=False) for train in (True, False))
    except RuntimeError:
        raise DataError(
            f"{cache / dataset_class.base_folder} does not match its checksums; remove it and run make data again"
        ) from None

    def split(part: Any) -> Split:
        return Split(part.data, np.asarray(part.targets, np.int64), np.arange(len(part.data)))

    return SourceImages(tuple(train.classes), split(train), split(test), min(CIFAR10_TEST_IMAGES, len(test.data) - 1))


def digits(data: params.Data) -> SourceImages:
    """Return scikit-learn's 1,797 handwritten digits (8x8, 17 grey levels), shuffled with the seed.

    Source: https://scikit-learn.org/stable/modules/generated/sklearn.datasets.load_digits.html
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    grey = np.round(bunch.images * (255 / 16)).astype(np.uint8)
    every = Split(grey, bunch.target.astype(np.int64), np.arange(len(grey)))
    # Neighbours in the file have one writer, so the images are shuffled before they are split.
    order = np.random.default_rng(data.seed).permutation(len(grey))
    train, test = every.take(order[:DIGITS_TRAIN_IMAGES]), every.take(order[DIGITS_TRAIN_IMAGES:])
    return SourceImages(tuple(str(digit) for digit in range(10)), train, test, DIGITS_TEST_IMAGES)
