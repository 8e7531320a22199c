"""Build a data set from a source's images: splits, drift, hashes, disjointness, statistics."""

from __future__ import annotations

from typing import Any

import numpy as np

from flywheel import params
from flywheel.data import DataError, drift, splits
from flywheel.data.dataset import Dataset, statistics
from flywheel.data.sources import SourceImages


def build(source: SourceImages, data: params.Data) -> Dataset:
    """Return the data set of a source's images. Raises DataError."""
    labels = np.concatenate([source.train.labels, source.test.labels])
    ids = np.concatenate([source.train.ids, source.test.ids])
    first_test = len(source.train.labels)
    train, validation = np.split(np.arange(first_test), [first_test - source.validation_count])
    if not source.validation_count:
        fraction = data.validation_fraction
        train, validation = splits.stratified(source.train.labels, fraction, data.seed, source.class_names)
    first_simulation = first_test + source.test_count
    drifted = drift.apply(source.test.images[source.test_count :], ids[first_simulation:], data.drift, data.seed)
    images = np.concatenate([source.train.images, source.test.images[: source.test_count], drifted])
    hashes = splits.content_hashes(images)
    test, simulation = np.arange(first_test, first_simulation), np.arange(first_simulation, len(labels))
    named = {"train": train, "validation": validation, "test": test, "simulation": simulation}
    indices, duplicates = splits.disjoint(named, hashes)
    missing = set(range(len(source.class_names))) - set(labels[indices["train"]].tolist())
    if missing:
        raise DataError(f"class {source.class_names[min(missing)]} has no training image left after the splits")
    mean, std = statistics(images[np.sort(np.concatenate([indices["train"], indices["validation"]]))])
    if min(std) < 1e-9:  # rounding turns an exact 0 into a little more
        raise DataError("all training images have the same colour; there is nothing to learn from them")
    description: dict[str, Any] = {
        "name": data.name,
        "source": data.source,
        "class_names": list(source.class_names),
        "image_size": data.image_size,
        "mean": mean,
        "std": std,
        "splits": {name: len(index) for name, index in indices.items()},
        "holdout": int(splits.is_holdout(hashes[indices["simulation"]]).sum()),
        "duplicates": {"within": dict(duplicates.within), "across": dict(duplicates.across)},
        "drift": data.drift.model_dump(),
        "skipped": len(source.skipped),
        **({"files": source.files} if source.files else {}),
        "seed": data.seed,
    }
    return Dataset(images, labels, hashes, ids, indices, description)
