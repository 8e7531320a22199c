"""The images that the gate compares models on, test and holdout of a data set, and what a model predicts."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flywheel.data import DataError, dataset, images
from flywheel.data.dataset import Dataset, Images
from flywheel.data.images import Pixels
from flywheel.gate.rules import NO_ANSWER, GateLabels, Predictions
from flywheel.metrics import classification
from flywheel.models import classifier
from flywheel.models.classifier import Classifier
from flywheel.registry import Registry, RegistryError, Version

SCALED = 1024  # images at a time
TIMED, WARM = 20, 3  # single images by which the latency is measured, and before


@dataclass(frozen=True)
class GateImages:
    """Images and their labels; `kept` tells which of all test images (n,) are among them."""

    labels: GateLabels
    test: Images
    holdout: Images
    kept: NDArray[np.bool_]


def prepare(registry: Registry, version: Version, models: Iterable[Version]) -> GateImages:
    """Return the images of a data set, without those that one of the models was trained on as part of another.

    Within one data set no training sees test or holdout images; but where splits or sources changed, an image
    that is now in test may have been in an older version's training images.
    """
    opened = dataset.open_directory(registry.open(version))
    seen = _seen(registry, models, version)
    test, simulation = opened.split("test"), opened.split("simulation")
    kept = _unseen(opened, opened.indices["test"], seen)
    held = opened.holdout & _unseen(opened, opened.indices["simulation"], seen)
    left_out = int((~kept).sum() + (opened.holdout & ~held).sum())
    labels = GateLabels(version.ref, opened.class_names, test.labels[kept], simulation.labels[held], left_out)
    return GateImages(labels, test.take(kept).images, simulation.take(held).images, kept)


def predict(
    registry: Registry,
    version: Version,
    compared: GateImages,
    *,
    probabilities: NDArray[np.float32] | None = None,
    timed: bool = True,
) -> Predictions:
    """Return what a model predicts. Raises RegistryError or ModelError when it cannot be loaded.

    `probabilities` of all test images (n, classes), where the caller has them, are not computed again. Images of
    another size than the model's are scaled as the decoder does for it.
    """
    model = classifier.load(registry.open(version))
    if model.class_names != compared.labels.class_names:
        nothing = np.zeros(0, np.int64)
        return Predictions(version.ref, version.label, model.class_names, nothing, nothing)
    test = _predict(model, compared.test) if probabilities is None else probabilities[compared.kept]
    holdout = _predict(model, compared.holdout)
    ece = None
    if len(test) and np.isfinite(test).all():
        ece = classification.calibration(test, compared.labels.test)["ece"]
    latency_ms = _latency_ms(model, _sized(compared.test[:1], model)) if timed and len(test) else None
    return Predictions(
        version.ref, version.label, model.class_names, _classes(test), _classes(holdout), ece, latency_ms
    )


def _predict(model: Classifier, pixels: Images) -> NDArray[np.float32]:
    if not len(pixels):
        return np.zeros((0, len(model.class_names)), np.float32)
    if pixels.shape[1] == model.image_size:
        return model.predict(pixels)
    parts = (pixels[start : start + SCALED] for start in range(0, len(pixels), SCALED))
    return np.concatenate([model.predict(_sized(part, model)) for part in parts])


def _classes(probabilities: NDArray[np.float32]) -> NDArray[np.int64]:
    finite = np.isfinite(probabilities).all(axis=1)
    return np.where(finite, probabilities.argmax(axis=1), NO_ANSWER).astype(np.int64)


def _sized(pixels: Pixels, model: Classifier) -> Pixels:
    size = model.image_size
    if pixels.shape[1] == size:
        return pixels
    return np.stack([images.from_array(image, size) for image in pixels])


def _latency_ms(model: Classifier, image: Pixels) -> float:
    """Return the median time of one image."""
    times = []
    for _ in range(WARM + TIMED):
        started = time.perf_counter()
        model.predict(image)
        times.append(1000 * (time.perf_counter() - started))
    return round(statistics.median(times[WARM:]), 3)


def _seen(registry: Registry, models: Iterable[Version], current: Version) -> set[bytes]:
    """Return the content hashes of what other data sets in the models' ancestry hold outside test and holdout."""
    ancestors = {
        version.ref: version
        for model in models
        for *_, version in registry.lineage(model)
        if version is not None and version.type == "dataset" and version.ref != current.ref
    }
    seen: set[bytes] = set()
    for ancestor in ancestors.values():
        try:
            other = dataset.open_directory(registry.open(ancestor))
        except (RegistryError, DataError):
            continue  # damaged: what it held is not known any more
        simulation = other.indices["simulation"][~other.holdout]
        clean = other.indices.get("clean", other.indices["simulation"])[~other.holdout]
        for index in (other.indices["train"], other.indices["validation"], simulation, clean):
            seen |= {row.tobytes() for row in other.hashes[index]}
    return seen


def _unseen(opened: Dataset, index: NDArray[np.int64], seen: set[bytes]) -> NDArray[np.bool_]:
    return np.array([row.tobytes() not in seen for row in opened.hashes[index]], bool)
