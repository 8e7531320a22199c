"""Where images come from: CIFAR-10 by torchvision, a folder or archive of yours, or scikit-learn's digits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flywheel import params
from flywheel.data import DataError, fetch, folder, images
from flywheel.data.images import Pixels

CIFAR10_TEST_IMAGES = 8_000  # as in the original pipeline: test images 0-7,999; 8,000 on are simulation
DIGITS_TRAIN_IMAGES, DIGITS_TEST_IMAGES = 800, 450  # of 1,797; the remaining 547 are simulation


@dataclass(frozen=True)
class SourceImages:
    """What a source gives: uint8 images (n, size, size, 3) with labels, and where its test images are cut.

    The first `test_count` test images become the split `test`, the others `simulation`. An image's id is
    its index among its source's train or test images, before any shuffling.
    """

    class_names: tuple[str, ...]
    train_images: Pixels
    train_labels: NDArray[np.int64]
    train_ids: NDArray[np.int64]
    test_images: Pixels
    test_labels: NDArray[np.int64]
    test_ids: NDArray[np.int64]
    test_count: int
    skipped: tuple[str, ...] = ()


def load(data: params.Data, cache: Path) -> SourceImages:
    """Return the images of the source that the params name. Raises DataError."""
    if data.source == "cifar10":
        return cifar10(data, cache)
    if data.source == "digits":
        return digits(data)
    return from_folder(data)


def cifar10(data: params.Data, cache: Path, dataset_class: Any = None) -> SourceImages:
    """Return CIFAR-10 from torchvision's archive, fetched into `cache` once and verified.

    `dataset_class` is torchvision.datasets.CIFAR10 or a subclass with its own URL and checksums. Source:
    https://www.cs.toronto.edu/~kriz/cifar.html (Krizhevsky, 2009).
    """
    if dataset_class is None:
        from torchvision.datasets import CIFAR10

        dataset_class = CIFAR10
    fetch.archive(dataset_class.url, cache / dataset_class.filename, dataset_class.tgz_md5, dataset_class.base_folder)
    try:
        train = dataset_class(str(cache), train=True, download=False)
        test = dataset_class(str(cache), train=False, download=False)
    except RuntimeError:
        raise DataError(
            f"{cache / dataset_class.base_folder} does not match its checksums; remove it and run make data again"
        ) from None
    return SourceImages(
        tuple(train.classes),
        _resized(train.data, data.image_size),
        np.asarray(train.targets, np.int64),
        np.arange(len(train.data)),
        _resized(test.data, data.image_size),
        np.asarray(test.targets, np.int64),
        np.arange(len(test.data)),
        test_count=min(CIFAR10_TEST_IMAGES, len(test.data) - 1),
    )


def digits(data: params.Data) -> SourceImages:
    """Return scikit-learn's 1,797 handwritten digits (8x8, 17 grey levels), shuffled with the seed.

    Source: https://scikit-learn.org/stable/modules/generated/sklearn.datasets.load_digits.html
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    grey = np.round(bunch.images * (255 / 16)).astype(np.uint8)
    pixels, labels = _resized(grey, data.image_size), bunch.target.astype(np.int64)
    # Neighbours in the file are by one writer, so an order is drawn before the cut.
    order = np.random.default_rng(data.seed).permutation(len(labels))
    train, test = order[:DIGITS_TRAIN_IMAGES], order[DIGITS_TRAIN_IMAGES:]
    return SourceImages(
        tuple(str(digit) for digit in range(10)),
        pixels[train],
        labels[train],
        train,
        pixels[test],
        labels[test],
        test,
        test_count=DIGITS_TEST_IMAGES,
    )


def from_folder(data: params.Data) -> SourceImages:
    """Return the images of `data.path`; the test images are shuffled with the seed and cut by `test_fraction`."""
    assert data.path is not None
    found = folder.read(Path(data.path).expanduser(), data.image_size, data.skip_corrupt)
    order = np.random.default_rng(data.seed).permutation(len(found.test_labels))
    return SourceImages(
        found.class_names,
        found.train_images,
        found.train_labels,
        np.arange(len(found.train_labels)),
        found.test_images[order],
        found.test_labels[order],
        order,
        test_count=min(max(round(len(order) * data.test_fraction), 1), len(order) - 1),
        skipped=found.skipped,
    )


def _resized(pixels: NDArray[np.uint8], size: int) -> Pixels:
    if pixels.shape[1:] == (size, size, 3):
        return pixels
    return np.stack([images.from_array(image, size) for image in pixels])
