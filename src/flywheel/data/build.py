"""Build a data set from a source's images: splits, drift, hashes, disjointness, statistics."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np

from flywheel import params
from flywheel.data import DataError, drift, splits
from flywheel.data.dataset import Dataset, statistics
from flywheel.data.sources import SourceImages


def build(source: SourceImages, data: params.Data) -> Dataset:
    """Return the data set of a source's images. Raises DataError."""
    clean = source.test.take(slice(source.test_count, None))
    drifted = drift.apply(clean.images, clean.ids, data.drift, data.seed)
    parts = [source.train, source.test.take(slice(source.test_count)), replace(clean, images=drifted)]
    if drifted is not clean.images:
        parts.append(clean)
    images, labels, ids = (
        np.concatenate([getattr(part, key) for part in parts]) for key in ("images", "labels", "ids")
    )
    first_test = len(source.train.labels)
    train, validation = np.split(np.arange(first_test), [first_test - source.validation_count])
    if not source.validation_count:
        fraction = data.validation_fraction
        train, validation = splits.stratified(source.train.labels, fraction, data.seed, source.class_names)
    first_simulation = first_test + source.test_count
    hashes = splits.content_hashes(images)
    end = first_simulation + len(clean.labels)
    test, simulation = np.arange(first_test, first_simulation), np.arange(first_simulation, end)
    named = {"train": train, "validation": validation, "test": test, "simulation": simulation}
    twins = len(labels) - end  # from a simulation image to the same one without drift
    indices, duplicates = splits.disjoint(
        named, np.concatenate([hashes[:first_simulation], hashes[simulation + twins]])
    )
    across = Counter(duplicates.across)
    if twins:
        indices, drifted_duplicates = splits.disjoint(indices, hashes)
        across.update(drifted_duplicates.across)
    indices["clean"] = indices["simulation"] + twins
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
        "splits": {name: len(indices[name]) for name in splits.SPLITS},
        "holdout": int(splits.is_holdout(hashes[indices["simulation"]]).sum()),
        "duplicates": {"within": dict(duplicates.within), "across": dict(across)},
        "drift": data.drift.model_dump(),
        "skipped": len(source.skipped),
        **({"files": source.files} if source.files else {}),
        "seed": data.seed,
    }
    return Dataset(images, labels, hashes, ids, indices, description)
