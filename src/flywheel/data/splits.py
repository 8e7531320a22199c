"""Splits: stratified validation, the holdout side of simulation images, and disjointness by content."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from flywheel.data import DataError
from flywheel.data.images import Pixels

Indices = NDArray[np.int64]

SPLITS = ("train", "validation", "test", "simulation")
PRECEDENCE = ("test", "validation", "simulation", "train")  # the first of these keeps a duplicate
HOLDOUT_PERCENT = 30
NAMED_CLASSES = 5  # in an error message


def stratified(
    labels: NDArray[np.int64], fraction: float, seed: int, class_names: Sequence[str]
) -> tuple[Indices, Indices]:
    """Return indices (rest, held out), each sorted, with the same `fraction` of every class held out.

    Raises DataError when a class has one image, or when a part would have fewer images than there are classes.
    """
    from sklearn.model_selection import train_test_split

    count = max(round(len(labels) * fraction), 1)
    of_class = np.bincount(labels, minlength=len(class_names))
    lonely = [name for name, images in zip(class_names, of_class, strict=True) if images == 1]
    classes = int((of_class > 0).sum())
    refused = f"cannot hold out {count} of {len(labels)} training images for validation, every class alike"
    if lonely:
        named = f"{', '.join(lonely[:NAMED_CLASSES])}{' and others' if len(lonely) > NAMED_CLASSES else ''}"
        raise DataError(f"{refused}: {named} {'have' if len(lonely) > 1 else 'has'} only 1 image; add images")
    if min(count, len(labels) - count) < classes:
        raise DataError(f"{refused}: there are {classes} classes; change data.validation_fraction or add images")
    rest, held_out = train_test_split(np.arange(len(labels)), test_size=count, stratify=labels, random_state=seed)
    return np.sort(rest), np.sort(held_out)


def content_hashes(images: Pixels) -> NDArray[np.uint8]:
    """Return the SHA-256 of each image's pixels, (n, 32) uint8."""
    return np.stack([np.frombuffer(hashlib.sha256(image.tobytes()).digest(), np.uint8) for image in images])


def is_holdout(hashes: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return a mask of the content hashes (n, 32) on the side `holdout` (30 %); the others are on the side `train`."""
    numbers = hashes[:, :4].astype(np.uint64) @ np.array([1 << 24, 1 << 16, 1 << 8, 1], np.uint64)
    result: NDArray[np.bool_] = numbers % 100 < HOLDOUT_PERCENT
    return result


def disjoint(
    splits: Mapping[str, Indices], hashes: NDArray[np.uint8]
) -> tuple[dict[str, Indices], dict[str, int], dict[str, int]]:
    """Return the splits with each content in one of them only, and the counts of duplicates within and across splits.

    Copies within a split are kept, copies in a later split dropped: `test/train` counts images dropped from train
    because test has them. Raises DataError if a split is left empty.
    """
    keys = [row.tobytes() for row in hashes]
    owner: dict[bytes, str] = {}
    kept: dict[str, Indices] = {}
    within: dict[str, int] = {}
    across: dict[str, int] = {}
    for name in PRECEDENCE:
        stays = []
        for index in splits[name]:
            first = owner.setdefault(keys[index], name)
            if first == name:
                stays.append(index)
            else:
                across[f"{first}/{name}"] = across.get(f"{first}/{name}", 0) + 1
        kept[name] = np.array(stays, np.int64)
        copies = len(stays) - len({keys[index] for index in stays})
        if copies:
            within[name] = copies
        if not stays:
            raise DataError(f"the split {name} is empty: every image of it also stands in {PRECEDENCE[0]} or others")
    return {name: kept[name] for name in SPLITS}, within, across
